"""What a failed write says: the path, and whether space is what lacks."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from vmbackup.errors import TargetError
from vmbackup.nbd.errors import NbdError

_FULL = ("No space left on device", "Disk quota exceeded")


def no_space(path: Path) -> TargetError:
    """The file system is full."""
    return TargetError(f"no space is left for {path}", "make space, or restore to another folder")


def tool_error(path: Path, complaint: str) -> TargetError:
    """What a tool that was to make `path` says, in English."""
    if any(full in complaint for full in _FULL):
        return no_space(path)
    return TargetError(f"cannot make {path}: {complaint}")


def nbd_error(path: Path, error: NbdError) -> TargetError:
    """What a failed write through qemu-nbd says."""
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC:
        return no_space(path)
    return TargetError(f"cannot write {path}: {error}")


def in_use(path: Path, why: str) -> TargetError:
    """Somebody else works with the target; `why` says who."""
    return TargetError(f"{path} is in use: {why}", "stop that first; nothing was written")


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Errors of the system in this block become TargetError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(path) from error
        raise TargetError(f"cannot write {path}: {error.strerror}") from error
