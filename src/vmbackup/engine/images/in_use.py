"""Who on this host works with an image or a block device, as the kernel knows it; QEMU's locks tell of QEMU."""

import errno
import os
import stat
from pathlib import Path

from vmbackup.engine.images.target_errors import in_use, told

_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")
_SYS = Path("/sys")


class DeviceClaim:
    """A block device that the kernel gives to nobody else while this is held: no mount, no swap, no mapping of it."""

    def __init__(self, path: Path) -> None:
        """Raises TargetError, naming who has it."""
        with told(path):
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise in_use(path, _holder(os.stat(path).st_rdev)) from error

    def release(self) -> None:
        """Lets it go; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def refuse_file_in_use(path: Path) -> None:
    """Raises TargetError where the kernel works with a file: as swap, or as a loop device."""
    if why := _swap(path) or _loop(path):
        raise in_use(path, why)


def _holder(device: int) -> str:
    """What has a device, or a part of it."""
    numbers = {device, *_parts(device)}
    for number in numbers:
        if why := _mounted(number) or _held(number):
            return why
    return next((why for number in numbers if (why := _swap_device(number))), "something on this host has claimed it")


def _block(device: int) -> Path:
    return _SYS / "dev/block" / f"{os.major(device)}:{os.minor(device)}"


def _parts(device: int) -> list[int]:
    """Its partitions."""
    found = []
    for entry in _block(device).glob("*/partition"):
        major, _, minor = (entry.parent / "dev").read_text().strip().partition(":")
        found.append(os.makedev(int(major), int(minor)))
    return found


def _mounted(device: int) -> str | None:
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return f"it is mounted at {_unescaped(fields[4])}"
    return None


def _held(device: int) -> str | None:
    """By LVM, RAID, multipath, encryption."""
    holders = sorted(path.name for path in _block(device).glob("holders/*"))
    return f"it is a part of {', '.join(holders)}" if holders else None


def _swap_device(device: int) -> str | None:
    for path in _swaps():
        try:
            found = path.stat()
        except OSError:
            continue
        if stat.S_ISBLK(found.st_mode) and found.st_rdev == device:
            return "it is swap space"
    return None


def _swap(path: Path) -> str | None:
    return "it is swap space" if any(_is_same(swap, path) for swap in _swaps()) else None


def _swaps() -> list[Path]:
    return [Path(_unescaped(line.split()[0])) for line in _SWAPS.read_text().splitlines()[1:]]


def _loop(path: Path) -> str | None:
    for entry in _SYS.glob("block/loop*/loop/backing_file"):
        try:
            backing = Path(entry.read_text().strip())
        except OSError:
            continue
        if _is_same(backing, path):
            return f"it is the loop device /dev/{entry.parent.parent.name}"
    return None


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _unescaped(text: str) -> str:
    """The kernel writes blanks in names as octal numbers."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
