"""Who on this host has a block device open for writing.

QEMU's locks do not tell: libvirt gives each QEMU a /dev of its own, and a lock on a node there is not seen here.
"""

import os
import stat
from collections.abc import Iterator

from vmbackup.errors import JobConflictError


def refuse_writers(path: str) -> None:
    """Raises JobConflictError where a process has a block device open for writing; of files a lease tells."""
    found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode):
        return
    for process in _processes():
        if any(_writes(process, number, found.st_rdev) for number in _numbers(process)):
            raise JobConflictError(
                f"{path} is open for writing, by another guest or program ({_name(process)}, process {process})",
                "two guests that have one device at a time destroy its content: see 'virsh list'",
            )


def _processes() -> Iterator[str]:
    own = str(os.getpid())
    return (name for name in os.listdir("/proc") if name.isdigit() and name != own)


def _numbers(process: str) -> list[str]:
    """Those of its open files; none where it has ended, or is another user's and we are not root."""
    try:
        return os.listdir(f"/proc/{process}/fd")
    except OSError:
        return []


def _writes(process: str, number: str, device: int) -> bool:
    try:
        found = os.stat(f"/proc/{process}/fd/{number}")
        if not stat.S_ISBLK(found.st_mode) or found.st_rdev != device:
            return False
        with open(f"/proc/{process}/fdinfo/{number}", encoding="ascii") as file:
            flags = next(line.split()[1] for line in file if line.startswith("flags:"))
    except (OSError, StopIteration):
        return False
    return int(flags, 8) & os.O_ACCMODE != os.O_RDONLY


def _name(process: str) -> str:
    try:
        with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"
