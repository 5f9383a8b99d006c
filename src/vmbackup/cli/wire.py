"""The line to the service that started this process (`--progress-fd`): progress as JSON, and the end with it."""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
from typing import Any

from vmbackup.errors import UsageError

# Seconds between two lines of progress.
_PACE = 0.25
# Bytes of a line, at most: a pipe that is ready takes so much at once (PIPE_BUF of pipe(7)), whole or not at all.
_LINE = 4096
# Characters of a task or a note: in JSON each is 12 bytes at most, two \u escapes.
_TEXT = 300
_PR_SET_PDEATHSIG = 1  # prctl(2)


class Wire:
    """A sink of progress: JSON lines into a pipe, about the task that moved last.

    Nothing waits for the reader: what finds the pipe full is dropped, and once it is closed nothing is written.
    Raises UsageError where there is no such descriptor.
    """

    def __init__(self, fd: int) -> None:
        try:
            os.fstat(fd)
        except (OSError, OverflowError):
            raise UsageError(f"there is no file descriptor {fd}", "the service gives --progress-fd") from None
        self._fd = fd
        self._lock = threading.Lock()
        self._tasks: dict[str, dict[str, Any]] = {}
        self._moved: dict[str, Any] | None = None  # what is told next
        self._told: dict[str, Any] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, task: str, total_bytes: int | None) -> None:
        """Tell that it begins, at the next beat."""
        with self._lock:
            self._moved = self._tasks[task] = {"task": task[:_TEXT], "done_bytes": 0, "total_bytes": total_bytes}
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
                self._thread.start()

    def advance(self, task: str, n_bytes: int) -> None:
        """Count."""
        with self._lock:
            if task in self._tasks:
                self._moved = self._tasks[task]
                self._moved["done_bytes"] += n_bytes

    def finish(self, task: str) -> None:
        """It moves no more; where it got to is told at the next beat."""
        with self._lock:
            self._tasks.pop(task, None)

    def note(self, text: str) -> None:
        """A line at once."""
        self._write({"note": text[:_TEXT]})

    def tell(self) -> None:
        """A line on the task that moved last, unless it was told already."""
        with self._lock:
            now = dict(self._moved) if self._moved else None
        if now and now != self._told and self._write(now):
            self._told = now

    def close(self) -> None:
        """Stop the pace. The descriptor stays open: it is not ours."""
        self._closed.set()
        if self._thread is not None and self._thread.is_alive():  # an interrupt may come before its start
            self._thread.join()
            self.tell()

    def _run(self) -> None:
        self.tell()
        while not self._closed.wait(_PACE):
            self.tell()

    def _write(self, document: dict[str, Any]) -> bool:
        """Whether it was taken."""
        line = json.dumps(document).encode() + b"\n"
        assert len(line) <= _LINE
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        try:
            if poll.poll(0) != [(self._fd, select.POLLOUT)]:
                return False  # full, or closed
            return os.write(self._fd, line) == len(line)
        except OSError:
            return False


def end_with_parent(fd: int) -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends. Linux only; elsewhere nothing.

    Raises KeyboardInterrupt where that thread's process is gone already.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # It may have died before the call: between the two looks, or (init has taken us over then, and the pipe has
    # lost its reader) before the first one.
    if os.getppid() != parent or (parent == 1 and _has_no_reader(fd)):
        raise KeyboardInterrupt


def _has_no_reader(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
