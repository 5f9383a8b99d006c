"""Packs on their way to the store: a fixed set of builders, and one thread that puts what is full."""

import queue
import random
import threading
from typing import Literal

from vmbackup.errors import VmbackupError
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.run import Run
from vmbackup.repository.session import Session

VerifyUploads = Literal["sample", "all"]
# Chunks of each pack that are decoded again before the upload: encoders and memory have lied to others for months.
_SAMPLE = 4


class Pack:
    """A builder that a worker fills, and the session that it was begun in."""

    def __init__(self) -> None:
        self.builder = PackBuilder()
        self._session: Session | None = None

    def begin(self, run: Run) -> None:
        """The next pack of the run's current session."""
        self._session = run.begin_pack(self.builder)

    @property
    def session(self) -> Session:
        """The session that the pack belongs to."""
        if self._session is None:
            raise RuntimeError("this pack was not begun")
        return self._session

    @property
    def session_number(self) -> int:
        """The session's number in the map."""
        return self.session.number


class PackWriter:
    """Takes full packs from any thread and stores them in one of its own; hands empty ones out.

    The number of packs bounds the memory (33 MiB each) and holds back workers that outrun the store.
    """

    def __init__(self, run: Run, packs: int, verify: VerifyUploads) -> None:
        self._run, self._verify = run, verify
        self._free: queue.SimpleQueue[Pack] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[Pack | None] = queue.SimpleQueue()
        self._unmade = packs
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.stored_bytes = 0
        self._thread = threading.Thread(target=self._work, name="pack-writer", daemon=True)
        self._thread.start()

    def take(self) -> Pack:
        """A pack, begun. Raises what the store raised."""
        with self._lock:
            make = self._unmade > 0 and self._free.empty()
            self._unmade -= make
        pack = Pack() if make else self._free.get()
        self.check()
        pack.begin(self._run)
        return pack

    def put(self, pack: Pack) -> None:
        """A pack to be stored; it is the writer's from here on."""
        self._full.put(pack)

    def check(self) -> None:
        """Raises what the store raised."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread; what is not stored yet never is."""
        self._error = self._error or VmbackupError("the run was stopped")
        self._full.put(None)
        self._thread.join()

    def close(self) -> None:
        """Waits until all is stored. Raises what the store raised."""
        self._full.put(None)
        self._thread.join()
        self.check()

    def _work(self) -> None:
        while (pack := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._store(pack)
            except BaseException as error:
                self._error = error
            finally:
                pack.builder.clear()
                self._free.put(pack)

    def _store(self, pack: Pack) -> None:
        session, builder = pack.session, pack.builder
        if not len(builder):
            session.drop_pack()
            return
        slots = len(builder)
        builder.check(
            range(slots) if self._verify == "all" else sorted(random.sample(range(slots), min(_SAMPLE, slots)))
        )
        self.stored_bytes += session.put_pack(builder)
