"""`vmbackup daemon` from its start to its end: signals, systemd, the servers, the main loop."""

import logging
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from vmbackup.config.secrets import read_key_file
from vmbackup.daemon.control import ControlServer
from vmbackup.daemon.metrics import exposition, write_textfile
from vmbackup.daemon.notify import Notifier
from vmbackup.daemon.service import STOP_SECONDS, Service
from vmbackup.daemon.text import status_line
from vmbackup.daemon.web import WebServer
from vmbackup.engine.drill.pictures import read as read_picture
from vmbackup.errors import VmbackupError

_TURN_SECONDS = 1.0  # the main loop turns at least so often: for signals, the watchdog, the status line
_STATUS_SECONDS = 5.0
_TEXTFILE_SECONDS = 15.0
_log = logging.getLogger("vmbackup.daemon")


class _EndAskedForError(Exception):
    """SIGTERM came while nothing runs yet that must be ended with care."""


class Signals:
    """SIGTERM and SIGINT ask for the end, SIGHUP for a reload: only noted, for a handler must take no lock.

    While `impatient` the end is not waited for: what goes on is left at once.
    """

    def __init__(self) -> None:
        self.end = self.reload = False
        self.impatient = True
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        else:
            self.end, impatient, self.impatient = True, self.impatient, False
            if impatient:
                raise _EndAskedForError


def serve(file: Path | None) -> int:
    """Runs the service until it is told to end. Raises VmbackupError where it cannot begin."""
    service = Service(file)
    notifier = Notifier.from_environment()
    signals = Signals()
    with ExitStack() as stack:
        stack.callback(service.close)
        try:
            control = _control(service, stack)
            _log.info("starting: %d jobs, %d repositories", len(service.config.jobs), len(service.config.repositories))
            notifier.status("putting right what was left, and looking at the repositories")
            service.prepare(notifier.extend)
            signals.impatient = False
        except _EndAskedForError:
            _log.info("ended before it ran")
            return 0
        _web(service, stack)
        service.start()
        notifier.ready()
        _log.info("running; control socket %s, metrics at %s", control, service.config.daemon.listen)
        Loop(service, notifier, signals).run()
        notifier.stopping()
        notifier.extend(STOP_SECONDS * 2)
        service.stop()
    _log.info("ended")
    return 0


def _control(service: Service, stack: ExitStack) -> Path:
    """The control socket, there from the first moment on: it says that the service is starting."""
    daemon = service.config.daemon
    server = ControlServer(daemon.socket, daemon.socket_group, service)
    server.start()
    stack.callback(server.shutdown)
    return daemon.socket


def _web(service: Service, stack: ExitStack) -> None:
    """Metrics and the page, there only once all is known: a scrape never sees half of it."""
    daemon = service.config.daemon
    token = read_key_file(daemon.web_token_file, "token") if daemon.web and daemon.web_token_file else None
    server = WebServer(
        daemon.listen,
        lambda: exposition(service.snapshot()),
        service.snapshot,
        service.sick,
        daemon.web,
        token,
        lambda name: read_picture(service.config.daemon.state_dir, name),
        recent=service.recent,
    )
    server.start()
    stack.callback(server.shutdown)


class Loop:
    """The main loop."""

    def __init__(self, service: Service, notifier: Notifier, signals: Signals) -> None:
        self._service, self._notifier, self._signals = service, notifier, signals
        self._status_at = self._textfile_at = self._watchdog_at = 0.0
        self._textfile_error: str | None = None

    def run(self) -> None:
        """Turns until the end is asked for."""
        while not self._signals.end:
            self._service.turn(_TURN_SECONDS)
            if self._signals.reload:
                self._signals.reload = False
                self._reload()
            self._watchdog()
            self._status()
            self._textfile()

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            self._service.reload()
        except VmbackupError:
            pass  # told by the service, and shown by its status and metrics
        except Exception:  # runs go on, whatever was wrong with it
            _log.exception("the reload failed")
        finally:
            self._notifier.ready()

    def _watchdog(self) -> None:
        """Fed only while scheduler, dispatcher and looks give signs of life."""
        now, every = time.monotonic(), self._notifier.watchdog_interval
        if every is None or now - self._watchdog_at < every:
            return
        sick = self._service.sick()
        if sick is None:
            self._watchdog_at = now
            self._notifier.watchdog()
        else:
            _log.critical("%s; systemd restarts the service", sick)

    def _status(self) -> None:
        now = time.monotonic()
        if now - self._status_at >= _STATUS_SECONDS:
            self._status_at = now
            self._notifier.status(status_line(self._service.snapshot()))

    def _textfile(self) -> None:
        path, now = self._service.config.daemon.textfile, time.monotonic()
        if path is None or now - self._textfile_at < _TEXTFILE_SECONDS:
            return
        self._textfile_at = now
        try:
            write_textfile(path, exposition(self._service.snapshot()))
            error = None
        except (VmbackupError, OSError) as failure:
            error = str(failure)
        if error != self._textfile_error:
            _log.log(logging.WARNING if error else logging.INFO, "textfile %s: %s", path, error or "written again")
        self._textfile_error = error
