"""One process of a run: started, listened to and waited for by one thread, ended from others.

The thread that starts it must be the one that waits for it, and end after it: the kernel tells a child that asked for
it (PR_SET_PDEATHSIG) of the death of the thread that started it, not of the process.

The process leads a session and a process group of its own, so that a terminal's Ctrl-C does not reach it. What it
leaves behind in its group when it ends is killed. The watchdogs that thaw guests are not: they lead a session of their
own again (hypervisor/live/quiesce.py), and outlive their run as they must.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

# -P: a folder in which the service was started must not lend its modules.
PROGRAM = (sys.executable, "-P", "-m", "vmbackup.cli")
# What is between systemd and the service only.
_NOT_INHERITED = frozenset(
    ("JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
)
_PIECE = 65536  # bytes read at once: what a pipe holds
_LAST_PIECES = 16  # of each pipe, after the end: whoever else holds it may go on writing
_IDLE = 5.0  # seconds

Sink = Callable[[bytes], None]


def environment() -> dict[str, str]:
    """The environment of a process of ours."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    return {**kept, "NO_COLOR": "1"}


class Child:
    """A process. `wait` must be called, by the thread that made it. Raises OSError where it cannot be started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._lock = threading.Lock()
        self._there = True  # its pid is its own until it is reaped
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._reap()
            raise

    def end(self, *, hard: bool) -> None:
        """Ask it to end, or kill it with all of its group. Nothing where it has ended."""
        with self._lock:
            if self._there and hard:
                self._kill_group()
            elif self._there:
                # Only the process itself: it needs its helpers to put things right.
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def wait(self, output: Sink, error: Sink, others: Mapping[int, Sink], idle: Callable[[], None]) -> int:
        """Listen until it has ended, whoever else holds its pipes; gives its exit code, or minus the signal.

        `idle` is called every few seconds.
        """
        assert self._process.stdout
        assert self._process.stderr
        sinks = {self._process.stdout.fileno(): output, self._process.stderr.fileno(): error, **others}
        try:
            with selectors.DefaultSelector() as selector:
                _register(selector, sinks)
                selector.register(self._pidfd, selectors.EVENT_READ)
                while not _listen(selector):
                    idle()
                selector.unregister(self._pidfd)
                for key in list(selector.get_map().values()):
                    _drain(key.fd, key.data)
        finally:
            self._reap()
        return self._process.returncode

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Make sure of its end and of all that it left in its group, and let its pid and pipes go."""
        with self._lock:
            self._kill_group()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # without the lock: a process stuck in the kernel
        with self._lock:
            self._process.wait()
            self._there = False
            if self._pidfd >= 0:
                os.close(self._pidfd)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()


def _register(selector: selectors.BaseSelector, sinks: Mapping[int, Sink]) -> None:
    for fd, sink in sinks.items():
        os.set_blocking(fd, False)
        selector.register(fd, selectors.EVENT_READ, sink)


def _listen(selector: selectors.BaseSelector) -> bool:
    """Pass on what there is; True once the process has ended."""
    ended = False
    for key, _ in selector.select(_IDLE):
        if key.data is None:
            ended = True
        elif _pass_on(key.fd, key.data) == b"":
            selector.unregister(key.fd)
    return ended


def _drain(fd: int, sink: Sink) -> None:
    """Pass on what an ended process left in a pipe."""
    for _ in range(_LAST_PIECES):
        if not _pass_on(fd, sink):
            return


def _pass_on(fd: int, sink: Sink) -> bytes | None:
    """A piece of a pipe; b"" at its end, None where there is none now."""
    try:
        data = os.read(fd, _PIECE)
    except BlockingIOError:
        return None
    if data:
        sink(data)
    return data
