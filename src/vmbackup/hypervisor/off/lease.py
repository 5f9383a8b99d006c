"""Who else writes an image that is being read: told by the kernel before it happens, or by what it leaves behind."""

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterable

from vmbackup.errors import JobConflictError

# Fields of a block device's `stat` (Documentation/block/stat.rst): writes and discards completed.
_WRITES, _DISCARDS = 4, 11
_NOT_OFFERED = (errno.EINVAL, errno.EACCES, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class Lease:
    """A read lease (fcntl(2), F_SETLEASE) on a file: whoever opens it for writing waits until `release`.

    The kernel waits for at most /proc/sys/fs/lease-break-time (45 s). Only files have one, on local file systems:
    `held` is False elsewhere. Raises JobConflictError where the file is open for writing.
    """

    def __init__(self, path: str) -> None:
        self.path, self.held = path, False
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                self._take()
        except BaseException:
            self.release()
            raise

    def _take(self) -> None:
        # The kernel's own signal for a break, SIGIO, would end us; this one is ignored unless somebody wants it.
        fcntl.fcntl(self._fd, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise JobConflictError(
                    f"{self.path} is open for writing, by another guest or program", f"'fuser -v {self.path}' names it"
                ) from None
            if error.errno not in _NOT_OFFERED:
                raise
            return
        self.held = True

    @property
    def broken(self) -> bool:
        """True once somebody wants to open the file for writing, and waits for us."""
        return self.held and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_RDLCK

    def release(self) -> None:
        """Lets the others go on; may be called twice."""
        if self._fd < 0:
            return
        if self.held:  # not by closing alone: a child that is just being started has the file too, for a moment
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        os.close(self._fd)
        self._fd, self.held = -1, False


def traces(paths: Iterable[str]) -> tuple[object, ...]:
    """What a write to one of these files or devices changes. Raises OSError where one is gone."""
    return tuple(map(_trace, paths))


def _trace(path: str) -> object:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # opened: a network file system asks its server then
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if stat.S_ISBLK(found.st_mode):
        return found.st_rdev, _written(found.st_rdev)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _written(device: int) -> tuple[str, ...]:
    """How often a block device was written to, in this host."""
    with open(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat", encoding="ascii") as file:
        fields = file.read().split()
    return fields[_WRITES], *fields[_DISCARDS : _DISCARDS + 1]
