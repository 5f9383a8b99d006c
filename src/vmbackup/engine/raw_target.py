"""A new raw file as the target of a restore."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.target_errors import told
from vmbackup.engine.targets import WRITE_BYTES, Writer

_ZEROS = bytes(WRITE_BYTES)


class RawTarget:
    """A raw file, sparse unless its space is to be reserved (`falloc`) or written (`full`) first."""

    def __init__(self, path: Path, size: int, preallocation: str = "off", *, resume: bool = False) -> None:
        """`resume`: the file is there, and stays as it is."""
        self._path = path
        with told(path):
            new = 0 if resume else os.O_CREAT | os.O_EXCL
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | new, 0o600)
            try:
                os.ftruncate(self._fd, size)
                if preallocation != "off" and size and not resume:
                    os.posix_fallocate(self._fd, 0, size)
                if preallocation == "full" and not resume:
                    _RawWriter(self._fd, path).zero(0, size)
            except BaseException:
                os.close(self._fd)
                raise

    def open_writer(self) -> Writer:
        """All threads share the file."""
        return _RawWriter(self._fd, self._path)

    def sync(self) -> None:
        """See Target."""
        with told(self._path):
            os.fdatasync(self._fd)

    def finish(self) -> int:
        """Syncs the file."""
        with told(self._path):
            os.fsync(self._fd)
        taken = os.fstat(self._fd).st_blocks * 512
        self.abandon()
        return taken

    def abandon(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _RawWriter:
    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path = fd, path

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        left = sum(map(len, pieces))
        with told(self._path):
            done = os.pwritev(self._fd, pieces, offset)
            if done < left:
                rest = memoryview(b"".join(pieces))
                while done < left:
                    done += os.pwrite(self._fd, rest[done:], offset + done)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See Writer."""
        with told(self._path):
            while buffer:
                got = os.preadv(self._fd, [buffer], offset)
                if not got:
                    raise OSError(errno.EIO, "it was cut short")
                buffer, offset = buffer[got:], offset + got

    def zero(self, offset: int, length: int) -> None:
        """Writes zeros."""
        for at in range(offset, offset + length, WRITE_BYTES):
            self.write(at, [_ZEROS[: offset + length - at]])

    def close(self) -> None:
        """Nothing is held back."""

    def abandon(self) -> None:
        """Nothing is held back."""
