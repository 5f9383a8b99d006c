"""What a service must not lose: its threads and file descriptors; and pids that others left."""

from __future__ import annotations

import contextlib
import glob
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
    threads, files, ended = set(threading.enumerate()), descriptors(), _ended_children()
    yield
    end = time.monotonic() + within
    while set(threading.enumerate()) - threads and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) - threads == set()
    assert descriptors() - files == set()
    assert _ended_children() - ended == set()


def _ended_children() -> set[str]:
    """Children of this process that ended and that nobody has waited for; other tests may have left some."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path) as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                found.add(path)
    return found


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
