"""A file written past the page cache, which would cost more CPU than the write and make the final sync long."""

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

from vmbackup.engine.images.image_file import serves_directly
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.images.targets import WRITE_BYTES

_ALIGNED = 4096  # bytes: what direct writes must be multiples of, on any disk


class DirectFile:
    """An open file: `fd` through the page cache, `direct` past it, -1 where its file system cannot."""

    def __init__(self, path: Path, flags: int = 0) -> None:
        """`flags`: more of open(2). Raises TargetError."""
        self.path = path
        self.fd = self.direct = -1
        with told(path):
            try:
                self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
                if serves_directly(path):
                    self.direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
            except BaseException:
                self.close()
                raise

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer. Raises TargetError."""
        with told(self.path):
            while buffer:
                got = os.preadv(self.fd, [buffer], offset)
                if not got:
                    raise OSError(errno.EIO, "it was cut short")
                buffer, offset = buffer[got:], offset + got

    def close(self) -> None:
        """May be called twice."""
        for fd in (self.fd, self.direct):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct = -1


class DirectWriter:
    """One thread's way to write to a file: a buffer where bytes lie as direct writes want them."""

    def __init__(self, file: DirectFile) -> None:
        self._file = file
        self._buffer = mmap.mmap(-1, WRITE_BYTES) if file.direct >= 0 else None

    def write(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Writes the pieces, one after the other. Raises TargetError."""
        length = sum(map(len, pieces))
        aligned = not (offset % _ALIGNED or length % _ALIGNED or length > WRITE_BYTES)
        with told(self._file.path):
            if self._buffer is not None and aligned:
                self._buffer.seek(0)
                for piece in pieces:
                    self._buffer.write(piece)
                with memoryview(self._buffer) as view:
                    _write_all(self._file.direct, offset, view[:length])
            else:
                _write_all(self._file.fd, offset, memoryview(b"".join(pieces)))

    def close(self) -> None:
        """Frees its memory; may be called twice."""
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    with data:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)
