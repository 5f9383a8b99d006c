"""A new raw file as the target of a restore."""

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.image_file import serves_directly
from vmbackup.engine.reserved_space import reserve
from vmbackup.engine.target_errors import told
from vmbackup.engine.targets import WRITE_BYTES, Writer

_ZEROS = bytes(WRITE_BYTES)
_ALIGNED = 4096  # bytes: what direct writes must be multiples of, on any disk
_WORTH_RESERVING = 1 << 20  # bytes: a call for each small part would cost more than it gains


class RawTarget:
    """A raw file, sparse unless its space is to be reserved (`falloc`) or written (`full`) first.

    It is written past the page cache, which would cost more CPU than the write and make the final sync long.
    """

    def __init__(self, path: Path, size: int, preallocation: str = "off", *, resume: bool = False) -> None:
        """`resume`: the file is there, and stays as it is."""
        self._path, self._direct = path, -1
        with told(path):
            new = 0 if resume else os.O_CREAT | os.O_EXCL
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | new, 0o600)
            try:
                os.ftruncate(self._fd, size)
                if serves_directly(path):
                    self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
                if preallocation != "off" and size and not resume:
                    os.posix_fallocate(self._fd, 0, size)
                if preallocation == "full" and not resume:
                    _RawWriter(self._fd, -1, path).zero(0, size)
            except BaseException:
                self.abandon()
                raise

    def open_writer(self) -> Writer:
        """All threads share the file."""
        return _RawWriter(self._fd, self._direct, self._path)

    def expect(self, offset: int, length: int) -> None:
        """See Target: of a hole that is filled only one direct write at a time would go on."""
        if self._direct >= 0 and length >= _WORTH_RESERVING:
            reserve(self._fd, offset, length)

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
        for fd in (self._fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct = -1


class _RawWriter:
    def __init__(self, fd: int, direct: int, path: Path) -> None:
        self._fd, self._direct, self._path = fd, direct, path
        self._aligned = mmap.mmap(-1, WRITE_BYTES) if direct >= 0 else None

    def write(self, offset: int, pieces: Sequence[bytes]) -> None:
        length = sum(map(len, pieces))
        fits = offset % _ALIGNED == 0 and length % _ALIGNED == 0 and length <= WRITE_BYTES
        with told(self._path):
            if self._aligned is not None and fits:
                self._aligned.seek(0)
                for piece in pieces:
                    self._aligned.write(piece)
                with memoryview(self._aligned) as view:
                    _write_all(self._direct, offset, view[:length])
            else:
                _write_all(self._fd, offset, memoryview(b"".join(pieces)))

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
        """Frees its memory."""
        if self._aligned is not None:
            self._aligned.close()
            self._aligned = None


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    with data:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)
