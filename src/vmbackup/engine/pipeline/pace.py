"""A limit on how fast disks are read, kept by all processes of this host that share its name together.

The generic cell rate algorithm (ITU-T I.371): a small file holds the time from which on the next read is due. Who
wants to read claims bytes, which moves that time on, and waits for what it was before. So claims queue up in the order
in which they were made, whoever made them; one whose process dies costs its own bytes, no more.
"""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vmbackup.errors import VmbackupError

# Seconds that lie unused may be made up for: threads wake late, and lose what they could have read.
_BURST = 0.2
# Claims that may wait at a time, and seconds that these may take anyhow: what lies further ahead is none of ours.
_MOST_WAITING = 64
_FURTHEST = 60.0
# Seconds to wait for the file: it is held for microseconds, unless its holder was stopped.
_LOCK_SECONDS = 1.0
_FILE = struct.Struct(">36sq")  # boot id, nanoseconds of CLOCK_MONOTONIC
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SECOND = 1_000_000_000  # nanoseconds


@dataclass(frozen=True)
class Limit:
    """At most so many bytes a second, of all that share the file `path` (made where it lacks, may be deleted)."""

    path: Path
    bytes_per_second: int


class Pacer:
    """Claims under a limit, from any thread. Leaving it as a context ends all waiting: `wait` raises from then on.

    Where the file cannot be used this process keeps to the limit by itself.
    """

    def __init__(self, limit: Limit, clock: Callable[[], int] = time.monotonic_ns, boot: bytes | None = None) -> None:
        """`clock`: nanoseconds since the boot whose id is `boot` (the kernel's unless told)."""
        self._limit, self._clock = limit, clock
        self._boot = (_boot_id() if boot is None else boot).ljust(36)[:36]
        self._lock = threading.Lock()
        self._own = 0  # the time that the file held last
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    def claim(self, n_bytes: int) -> float:
        """Seconds to wait before so many bytes may be read; 0 where they may at once."""
        cost = n_bytes * _SECOND // self._limit.bytes_per_second
        with self._lock:
            try:
                return self._claim_shared(cost)
            except OSError:
                return self._claim(self._own, cost)

    def wait(self, seconds: float) -> None:
        """Waits. Raises VmbackupError once the pacer was left."""
        if self._stopped.wait(seconds):
            raise VmbackupError("the run was stopped")

    def _claim_shared(self, cost: int) -> float:
        fd = self._opened()
        try:
            _acquire(fd)
            seconds = self._claim(self._read(fd), cost)
            os.pwrite(fd, _FILE.pack(self._boot, self._own), 0)
        finally:
            os.close(fd)
        return seconds

    def _opened(self) -> int:
        path, flags = self._limit.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, flags, 0o600)

    def _read(self, fd: int) -> int:
        """The time that the file holds; 0 for one of another boot, or no such file of ours."""
        data = os.pread(fd, _FILE.size + 1, 0)
        if len(data) != _FILE.size:
            return 0
        boot, due = _FILE.unpack(data)
        return int(due) if boot == self._boot else 0

    def _claim(self, due: int, cost: int) -> float:
        now = self._clock()
        due = max(due, now - int(_BURST * _SECOND))
        if due - now > max(_MOST_WAITING * cost, int(_FURTHEST * _SECOND)):
            due = now
        self._own = due + cost
        return max(0, due - now) / _SECOND


def _acquire(fd: int) -> None:
    """The file's lock, held until it is closed. Raises OSError where it is not to be had in time."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return


def _boot_id() -> bytes:
    try:
        return _BOOT_ID.read_bytes().strip()
    except OSError:
        return b""
