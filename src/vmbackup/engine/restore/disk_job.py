"""A disk's bytes brought into its target, whole and synced, or an error that names disk and restore point."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmbackup.engine.images.targets import Target
from vmbackup.engine.restore.disk_copy import DiskCopy
from vmbackup.engine.restore.savepoints import Savepoints
from vmbackup.errors import DamageError
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord, MapRecord
from vmbackup.repository.repository import Repository


class Filled(NamedTuple):
    """`written`: bytes that the image takes, 0 of a device; `fetched`: plain bytes that came from the repository."""

    written: int
    fetched: int


@dataclass(frozen=True)
class DiskJob:
    """A disk of a restore point, and the work to bring it somewhere."""

    repository: Repository
    point: Point
    disk: DiskRecord
    workers: int
    progress: Progress

    def description(self) -> dict[str, str]:
        """What tells a restore of just this disk of this point from others."""
        point = self.point
        named = f"{point.id} of {point.domain}"
        return {"point": point.key, "digest": point.digest.hex(), "disk": self.disk.name, "named": named}

    def fill_new(self, target: Target, savepoints: Savepoints, *, resume: bool, zeros: bool = False) -> Filled:
        """Fills an image that reads as zeros where nothing was written, unless they must be written too (`zeros`).

        Raises DamageError, TargetError.
        """
        copy = self._copy
        with self._ended(target):
            copy.write(target, self.progress, copy.runs() if zeros else None, resume=resume, savepoints=savepoints)
            return Filled(target.finish(), copy.fetched_bytes)

    def fill_existing(self, target: Target, end: int, savepoints: Savepoints, *, resume: bool) -> Filled:
        """Fills an image of `end` bytes that held something else, zeros where the disk has them and behind its end.

        Raises DamageError, TargetError.
        """
        copy, disk = self._copy, self.disk
        with self._ended(target):
            copy.write(target, self.progress, copy.runs(), resume=resume, savepoints=savepoints, end=end)
            covered = disk.root.chunks * disk.chunk_size
            if covered < end:
                _zero(target, covered, end)
            return Filled(target.finish(), copy.fetched_bytes)

    @property
    def _copy(self) -> DiskCopy:
        return DiskCopy(self.repository, self.point, self.disk, self.workers)

    @contextlib.contextmanager
    def _ended(self, target: Target) -> Iterator[None]:
        try:
            with damage_named(self.point, self.disk):
                yield
        finally:
            target.abandon()


@contextlib.contextmanager
def damage_named(point: Point, record: MapRecord) -> Iterator[None]:
    """A DamageError of this block says what cannot be restored."""
    try:
        yield
    except DamageError as error:
        raise DamageError(
            f"restore point {point.id}, {record.label} cannot be restored: {error.message}",
            object_key=error.object_key,
        ) from error


def _zero(target: Target, start: int, end: int) -> None:
    writer = target.open_writer()
    try:
        writer.zero(start, end - start)
        writer.close()
    finally:
        writer.abandon()
