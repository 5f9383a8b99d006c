"""A file written past the page cache, which would cost more CPU than the write and make the final sync long."""

import errno
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    """One thread's way to write to a file: from memory where bytes lie as direct writes want them.

    A thread of its own brings them there and writes them, while the next ones are decoded. Copied by the kernel (the
    memory is a file to it), which does not hold the interpreter's lock as a copy by Python would.
    """

    def __init__(self, file: DirectFile) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._written: Future[None] | None = None
        self._memory = os.memfd_create("vmbackup-write")
        os.ftruncate(self._memory, WRITE_BYTES)
        self._buffer = mmap.mmap(self._memory, WRITE_BYTES)

    def write(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        """Writes the pieces, one after the other; returns before they are. Raises TargetError, for earlier ones too."""
        self.close()
        self._written = self._thread.submit(self._write, offset, pieces)

    def _write(self, offset: int, pieces: Sequence[bytes | memoryview]) -> None:
        length = sum(map(len, pieces))
        aligned = not (offset % _ALIGNED or length % _ALIGNED or length > WRITE_BYTES)
        with told(self._file.path):
            if self._file.direct >= 0 and aligned and os.pwritev(self._memory, pieces, 0) == length:
                with memoryview(self._buffer) as view, view[:length] as data:
                    _write_all(self._file.direct, offset, data)
            else:
                _write_all(self._file.fd, offset, memoryview(b"".join(pieces)))

    def close(self) -> None:
        """Waits until all is written. Raises TargetError."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def abandon(self) -> None:
        """Waits too, and frees its memory: the file may be closed then. May be called twice. Never raises."""
        self._thread.shutdown(wait=True)
        if self._memory >= 0:
            self._buffer.close()
            os.close(self._memory)
            self._memory = -1


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    with data:
        done = 0
        while done < len(data):
            with data[done:] as rest:
                done += os.pwrite(fd, rest, offset + done)
