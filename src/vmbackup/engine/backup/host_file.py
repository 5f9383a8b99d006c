"""A file of this host, read as a disk is: whole, and as it was from the first byte to the last."""

import os
import stat
import time
from collections.abc import Iterator

from vmbackup.engine.immediate_reader import ImmediateReader
from vmbackup.hypervisor.boot_files import check_fit
from vmbackup.hypervisor.source import BootFile
from vmbackup.nbd.extents import Extent, Kind

# Nanoseconds since a file's last change: clocks of file systems tick in steps, and two changes may have one time.
_SETTLED = 2_000_000_000


class HostFile:
    """A ReadableDisk. Reading never raises, for others read on through the same workers: `problem` tells of it."""

    def __init__(self, file: BootFile) -> None:
        """Raises OSError, and ValueError where it is nothing to be read whole."""
        self.file = file
        check_fit(os.stat(file.path))  # before it is opened: opening a pipe or a device does something
        self._fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.look()
        except BaseException:
            self.close()
            raise

    def look(self) -> None:
        """What is read from now on is of the file as it is now. Raises ValueError, OSError."""
        found = os.fstat(self._fd)
        check_fit(found)
        self.size, self.mode = found.st_size, stat.S_IMODE(found.st_mode)
        times = found.st_mtime_ns, found.st_ctime_ns
        told = " ".join(map(str, (found.st_dev, found.st_ino, found.st_size, *times)))
        self.state = told if abs(time.time_ns() - max(times)) > _SETTLED else None
        self._begun = found.st_size, found.st_mtime_ns
        self.problem: str | None = None

    @property
    def is_same(self) -> bool:
        """Whether nothing was written to it since `look`."""
        found = os.fstat(self._fd)
        return (found.st_size, found.st_mtime_ns) == self._begun

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        """See ReadableDisk."""
        stop = self.size if end is None else end
        if stop > start:
            yield Extent(start, stop - start, Kind.DATA)

    def open_reader(self) -> "HostFileReader":
        """See ReadableDisk."""
        return HostFileReader(self, self._fd)

    def close(self) -> None:
        """No reader is used any more."""
        os.close(self._fd)


class HostFileReader(ImmediateReader):
    """What cannot be read is zeros, and the file has a problem."""

    def __init__(self, file: HostFile, fd: int) -> None:
        super().__init__()
        self._file, self._fd = file, fd

    def _fill(self, offset: int, buffer: memoryview) -> None:
        done = 0
        try:
            while done < len(buffer):
                got = os.preadv(self._fd, [buffer[done:]], offset + done)
                if not got:
                    raise OSError(0, "it was cut while it was read")
                done += got
        except OSError as error:
            self._file.problem = error.strerror
            buffer[done:] = bytes(len(buffer) - done)
