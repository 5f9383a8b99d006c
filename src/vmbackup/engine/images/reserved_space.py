"""Space of a file reserved ahead of what is written to it.

A file that grows with each write, or gets space for a hole with each, takes one direct write at a time: ext4 and XFS
hold its lock meanwhile. Into space that is reserved several go at once: 2 to 4 times as many bytes a second were seen.
"""

import ctypes
import errno
import os
from pathlib import Path

STEP = 1 << 30  # bytes: some 10 ms each
AHEAD = 512 << 20  # bytes: more than is under way
_LIBC = ctypes.CDLL(None, use_errno=True)


def reserve(fd: int, offset: int, length: int) -> bool:
    """Reserves a part of a file; False where its file system cannot. It never writes, as posix_fallocate(3) may."""
    if _LIBC.fallocate(fd, 0, ctypes.c_longlong(offset), ctypes.c_longlong(length)) == 0:
        return True
    return ctypes.get_errno() == errno.EINTR


class GrowingFile:
    """A new image that its writer makes longer bit by bit: space is reserved behind it, and what is left given back."""

    def __init__(self, path: Path, cluster_size: int) -> None:
        self._cluster = cluster_size
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._end = self._expected = os.fstat(self._fd).st_size
        self._works = True

    def expect(self, n_bytes: int) -> None:
        """So many more bytes will be written soon."""
        self._expected += n_bytes
        while self._works and self._expected + AHEAD > self._end:
            self._works = reserve(self._fd, self._end, STEP)
            self._end += STEP

    def trim(self) -> None:
        """Cuts off what was reserved and not written, once all is."""
        end = -(-_written_end(self._fd) // self._cluster) * self._cluster
        if end < os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, end)

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _written_end(fd: int) -> int:
    """Where the last written part ends; reserved parts count as holes."""
    end = 0
    while True:
        try:
            end = os.lseek(fd, os.lseek(fd, end, os.SEEK_DATA), os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return end
            raise
