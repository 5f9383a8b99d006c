"""When libvirt and the repositories are looked at: at the start, every so often, and when something has changed."""

import logging
import threading
import time
from collections.abc import Callable

from vmbackup.config.models import Config
from vmbackup.daemon.outlook import LOOK_SECONDS, Outlook

_log = logging.getLogger("vmbackup.daemon.outlook")


class Looker:
    """A thread that looks. Several wishes for the same repository come to one look."""

    def __init__(self, outlook: Outlook, config: Callable[[], Config]) -> None:
        self._outlook, self._config = outlook, config
        self._wanted: set[str] = set()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._closed = False
        self._looking: float | None = None  # monotonic, since when
        self._thread = threading.Thread(target=self._run, name="looker", daemon=True)

    def start(self) -> None:
        """Look every so often from now on; the first look is `all`'s."""
        self._thread.start()

    def ask(self, name: str) -> None:
        """Look at this repository soon."""
        with self._lock:
            self._wanted.add(name)
        self._wake.set()

    def all(self, between: Callable[[], None] = lambda: None) -> None:
        """Looks at everything, one after the other, calling `between` before each."""
        between()
        self._outlook.look_at_libvirt()
        for name in list(self._config().repositories):
            between()
            self._look(name)

    @property
    def stuck(self) -> bool:
        """Whether a look takes longer than any can."""
        looking = self._looking
        return looking is not None and time.monotonic() - looking > LOOK_SECONDS + 60

    def close(self) -> None:
        """No more looks; one that goes on is not waited for."""
        self._closed = True
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """After `close`: until a look that goes on has ended, or is ended: its process must not outlive the service."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        if self._thread.is_alive():
            self._outlook.end_look()
            self._thread.join(seconds)

    def _run(self) -> None:
        due = time.monotonic() + self._every()
        while not self._closed:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            if self._closed:
                return
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + self._every()
                    self.all()
                else:
                    self._asked()
            except Exception:  # the next look may go better; the thread must not end
                _log.exception("a look failed")

    def _asked(self) -> None:
        with self._lock:
            wanted, self._wanted = self._wanted, set()
        for name in wanted:
            self._look(name)

    def _look(self, name: str) -> None:
        repository = self._config().repositories.get(name)
        if repository is None or self._closed:
            return
        self._looking = time.monotonic()
        try:
            self._outlook.look_at_store(name, repository.url)
        finally:
            self._looking = None

    def _every(self) -> float:
        return self._config().daemon.look_every.total_seconds()
