"""What a failed write says: the path, and whether space is what lacks."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from vmbackup.errors import TargetError
from vmbackup.nbd.errors import NbdError


def nbd_error(path: Path, error: NbdError) -> TargetError:
    """What a failed write through qemu-nbd says."""
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC:
        return TargetError(f"no space is left for {path}", "make space, or restore to another folder")
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
            raise TargetError(f"no space is left for {path}", "make space, or restore to another folder") from error
        raise TargetError(f"cannot write {path}: {error.strerror}") from error
