"""QEMU's locks on an image: bytes of the file that each process which has it open holds (QEMU, block/file-posix.c)."""

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from vmbackup.engine.images.target_errors import told

# A byte for each permission that is held from 100 on, for each that is not shared from 200 on.
_FIRST, _BYTES = 100, 200
_LOCK = struct.Struct("@hhqqi4x")
# qemu-nbd of a restore that was killed ends with it, but not at the same instant.
_WAIT_SECONDS = 2.0
_POLL_SECONDS = 0.05


def is_open_in_qemu(path: Path, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Whether a QEMU, or one of its tools, has the image open, if only to read it. Raises TargetError."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while _is_locked(path):
        if time.monotonic() > deadline:
            return True
        sleep(_POLL_SECONDS)
    return False


def _is_locked(path: Path) -> bool:
    with told(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _FIRST, _BYTES, 0)
            found: int = _LOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
        finally:
            os.close(fd)
    return found != fcntl.F_UNLCK
