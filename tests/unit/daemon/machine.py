"""What a service must not lose: its threads and file descriptors; and pids that others left."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator


def descriptors() -> set[tuple[int, str]]:
    """The open files of this process, by number and what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


@contextlib.contextmanager
def nothing_left(within: float = 5.0) -> Iterator[None]:
    """Threads, files and children are at the end what they were at the start."""
    threads, files = set(threading.enumerate()), descriptors()
    yield
    end = time.monotonic() + within
    while set(threading.enumerate()) - threads and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) - threads == set()
    assert descriptors() - files == set()
    with contextlib.suppress(ChildProcessError):
        pid, _ = os.waitpid(-1, os.WNOHANG)
        assert pid == 0, f"the child {pid} was never waited for"


def lives(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
