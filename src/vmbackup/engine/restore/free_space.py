"""Whether what a restore will write finds space: summed up for each file system."""

import contextlib
import os
from pathlib import Path

from vmbackup.errors import TargetError


class SpaceNeeded:
    """Bytes that are to be written, by the file system that they go to."""

    def __init__(self) -> None:
        self._needed: dict[int, tuple[Path, int]] = {}  # by device: a path there, bytes

    def add(self, path: Path, n_bytes: int, there: Path | None = None) -> None:
        """So many for a file at `path`, less what `there`, a part of it that is there already, takes."""
        with contextlib.suppress(OSError):
            n_bytes -= (there or path).stat().st_blocks * 512
        place = next(each for each in (path, *path.parents) if each.exists())
        device = place.stat().st_dev
        first, before = self._needed.get(device, (place, 0))
        self._needed[device] = first, before + max(0, n_bytes)

    def check(self) -> None:
        """Raises TargetError where it is more than is free."""
        for place, needed in self._needed.values():
            status = os.statvfs(place)
            free = status.f_bavail * status.f_frsize
            if needed > free:
                raise TargetError(
                    f"the restore needs about {needed} bytes at {place}, and {free} are free there",
                    "make space, or restore to another folder with --output",
                )
