"""Scratch space: how much a run needs, whether it is there, when it runs short, and whether its storage keeps it.

QEMU copies each block into scratch before the guest overwrites it for the first time. A full scratch pauses
the guest, so a run ends itself before that.
"""

import math
import os
from collections.abc import Iterable, Sequence

from vmbackup.errors import HypervisorError, ScratchFullError
from vmbackup.hypervisor.live.lost_writes import LostWrites
from vmbackup.hypervisor.tidy.intents import Intent

# What a run wants free before it starts: 20 % of its disks' virtual size, at most 10 GiB.
NEED_SHARE, NEED_MOST = 0.2, 10 << 30
# A run gives up when its scratch files have taken 80 % of what was free for it,
USED_SHARE = 0.8
# or when less than this is free on the file system, whoever took it: the rest of the fifth, at most 1 GiB.
FLOOR_MOST = 1 << 30
# Seconds between two looks at the file system: a disk writes a few GiB in that time.
LOOK_INTERVAL = 2.0


def prepare_folder(path: str) -> None:
    """Makes the scratch folder, 0711: QEMU's user must pass through it, and nobody else needs to list it."""
    try:
        if not os.path.isdir(path):
            os.makedirs(path, mode=0o711)
            os.chmod(path, 0o711)  # noqa: S103 (makedirs' mode is cut by the umask)
    except OSError as error:
        raise HypervisorError(
            f"the scratch folder {path} cannot be made: {error.strerror}", "set [libvirt] scratch_dir to another place"
        ) from error


def free_bytes(path: str) -> int:
    """Bytes that QEMU's user can still write on the file system of `path`. Raises HypervisorError."""
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise HypervisorError(
            f"the scratch folder {path} cannot be looked at: {error.strerror}",
            "it must stay where it is while backups run: mount it again, or set [libvirt] scratch_dir to another place",
        ) from error
    return found.f_bavail * found.f_frsize


def needed_bytes(sizes: Iterable[int]) -> int:
    """What must be free for a run over disks of these virtual sizes."""
    return min(int(sum(sizes) * NEED_SHARE), NEED_MOST)


def used_bytes(paths: Iterable[str]) -> int:
    """Bytes that scratch files take on disk; those that are gone count nothing."""
    total = 0
    for path in paths:
        try:
            total += os.stat(path).st_blocks * 512
        except OSError:
            continue
    return total


def budget(folder: str, need: int, others: Sequence[Intent]) -> int:
    """Bytes this run may use: what is free, less what other runs have reserved and not yet used.

    Raises ScratchFullError where that is below `need`.
    """
    free = free_bytes(folder)
    reserved = sum(max(0, other.scratch_bytes - used_bytes(other.scratch)) for other in others)
    if free - reserved < need:
        also = f", {_mib(reserved)} of it reserved by other runs" if reserved else ""
        raise ScratchFullError(
            f"{folder} has {_mib(free)} free{also}; this run needs {_mib(need)}",
            "free some space there, or set [libvirt] scratch_dir to a larger local file system",
        )
    return free - reserved


class ScratchWatch:
    """Tells when a run's scratch files come near the end of their space, or have lost what was written to them."""

    def __init__(self, folder: str, paths: Sequence[str], allowance: int) -> None:
        self._folder = folder
        self._paths = tuple(paths)
        self._most = int(allowance * USED_SHARE)
        self._floor = min(allowance - self._most, FLOOR_MOST)
        self._lost: LostWrites | None = None

    def open(self) -> None:
        """From here on losses are known: to be called when the job has begun."""
        self._lost = LostWrites(self._paths)

    def close(self) -> None:
        """The job is over. May be called again."""
        if self._lost:
            self._lost.close()

    def used(self) -> int:
        """Bytes on disk now."""
        return self._used(self._paths)

    def _used(self, paths: Sequence[str]) -> int:
        return used_bytes(paths)

    def _free(self) -> float:
        return free_bytes(self._folder)

    def first_threshold(self) -> int:
        """Bytes of one scratch file at which to be called first: one file alone may take them all."""
        return max(1, self._most // max(1, len(self._paths)))

    def next_threshold_of(self, path: str) -> int:
        """Where to be called again for a file: half way to the end, shared by all files."""
        left = max(0, self._most - self.used())
        return self._used((path,)) + max(1 << 20, left // (2 * max(1, len(self._paths))))

    def require_kept(self, *, folder: bool = True, then: str = "") -> None:
        """Raises HypervisorError where what was written is lost; `then` is what came of it. See LostWrites."""
        if self._lost and (trouble := self._lost.found(folder=folder)):
            raise HypervisorError(
                f"the storage of {self._folder} failed ({trouble}): the run's scratch files are lost{then}",
                "nothing was committed; 'dmesg' tells more: mend it, or set [libvirt] scratch_dir to another place",
            )

    def look(self) -> None:
        """Raises ScratchFullError, HypervisorError where the run must end now."""
        self.require_kept(folder=False)
        if self.used() > self._most or self._free() < self._floor:
            raise self.error()

    def error(self) -> ScratchFullError:
        """The error of a run that ends because of its scratch space."""
        free = self._free()
        told = "" if math.isinf(free) else f", {self._folder} has {_mib(int(free))} free"
        return ScratchFullError(
            f"scratch space ran short: the guest overwrote {_mib(self.used())} during the run{told}",
            "make room there, or back up when the guest writes less; the guest runs on",
        )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
