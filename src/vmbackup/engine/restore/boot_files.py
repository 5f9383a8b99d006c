"""The files that the guest of a restore point is started from: found on this host, or written where they are wanted."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from vmbackup.engine.chunk_ids import ChunkIds
from vmbackup.engine.images.new_files import PASSABLE, NewFiles, there_already
from vmbackup.engine.images.raw_target import RawTarget
from vmbackup.engine.images.target_errors import told
from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.engine.point_disk import PointDisk
from vmbackup.engine.restore.cost import Foreseen, disk_cost
from vmbackup.engine.restore.disk_copy import DiskCopy
from vmbackup.engine.restore.disk_job import damage_named
from vmbackup.errors import DamageError
from vmbackup.progress import Progress
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.records import FileRecord
from vmbackup.repository.repository import Repository

FOLDER = "boot-files"
_MOST_NAME = 150  # characters: more are added to tell them apart, and while they are made
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True)
class RestoredBootFile:
    """A file and where it was written to; `path`: where it was, `size` in bytes."""

    path: str
    kind: str
    restored: Path
    size: int


class BootFiles:
    """Those of one restore point. `names`: what they are called in a folder, by path, each a name of its own."""

    def __init__(self, repository: Repository, point: Point) -> None:
        self._repository, self._point = repository, point
        self.records: Sequence[FileRecord] = point.files
        self.names = _names(self.records)

    def is_here(self, record: FileRecord, path: Path) -> bool:
        """Whether a file of this host has this content, by its size and the ids of its chunks. Raises DamageError."""
        try:
            if not stat.S_ISREG(path.stat().st_mode) or path.stat().st_size != record.size:
                return False
            with path.open("rb") as file:
                return self._is_content(record, file)
        except OSError:
            return False

    def _is_content(self, record: FileRecord, file: BinaryIO) -> bool:
        disk_map = self._map(record)
        ids = ChunkIds(disk_map)
        return all(_is_run(extent, ids, file, record.chunk_size) for extent in extents(record.root, disk_map.load))

    def check(self, record: FileRecord) -> None:
        """Whether all of it can be read. Raises DamageError."""
        secrets = Secrets(self._repository, self._point.lineage.group)
        reader = PointDisk(self._map(record), None, secrets).open_reader()
        for offset in range(0, record.size, _PIECE):
            reader.submit(offset, memoryview(bytearray(min(_PIECE, record.size - offset))))
            reader.wait()

    def write(self, record: FileRecord, path: Path, workers: int, progress: Progress) -> None:
        """Writes it to a new file, whole and synced, for its owner only. Raises DamageError, TargetError."""
        target = RawTarget(path, record.size)
        try:
            with damage_named(self._point, record):
                DiskCopy(self._repository, self._point, record, workers).write(target, progress)
            target.finish()
        finally:
            target.abandon()

    def lay_out(self, folder: Path, progress: Progress, *, every: bool = False) -> dict[str, Path]:
        """Writes those that this host has not as they were (or `every` one) to a folder, which is made for them.

        Gives where each lies, by path. Raises DamageError, TargetError.
        """
        found = {}
        for record in self.records:
            if every or not self.is_here(record, Path(record.path)):
                with told(folder):
                    folder.mkdir(exist_ok=True)
                    folder.chmod(PASSABLE)
                found[record.path] = folder / self.names[record.path]
                self.write(record, found[record.path], default_workers(), progress)
        return found

    def places(self, folder: Path | None) -> tuple[dict[str, Path], list[str]]:
        """Where in `folder` those will lie that a guest does not find on this host, as they were, where they were.

        One that cannot be read is left out, with a sentence.
        """
        found: dict[str, Path] = {}
        notes: list[str] = []
        for record in self.records:
            path = Path(record.path)
            try:
                if self.is_here(record, path):
                    continue
                if folder is not None:
                    self.check(record)
                    found[record.path] = folder / self.names[record.path]
                elif path.exists():
                    notes.append(f"the {record.label} of this host is another file than the restore point's")
            except DamageError as error:
                notes.append(f"the restore point's {record.label} is of no use: {error.message}")
        return found, notes

    def untouched(self) -> str:
        """A sentence on those that this host has not, or not as they were; "" where there are none."""
        paths = []
        for record in self.records:
            with contextlib.suppress(DamageError):
                if not self.is_here(record, Path(record.path)):
                    paths.append(record.path)
        return (
            f"the guest is started from files that are gone or not as in the restore point, and were not touched: "
            f"{', '.join(paths)} ('vmbackup restore {self._point.id} --output DIR' writes them)"
            if paths
            else ""
        )

    def lacking_in(self, folder: Path) -> list[FileRecord]:
        """Those that are not in a folder of restored disks yet. Raises TargetError where others have their names."""
        lacking = []
        for record in self.records:
            path = self.place(folder, record)
            if not os.path.lexists(path):
                lacking.append(record)
            elif path.is_symlink() or not self.is_here(record, path):
                raise there_already(path)
        return lacking

    def foreseen(self, folder: Path) -> list[Foreseen]:
        """What those that are not in a folder yet would cost, damaged ones left out. Raises as `lacking_in`."""
        found = []
        for record in self.lacking_in(folder):
            with contextlib.suppress(DamageError):
                cost = disk_cost(self._repository, self._point, record)
                found.append(Foreseen(self._point, record, self.place(folder, record), cost))
        return found

    def place(self, folder: Path, record: FileRecord) -> Path:
        """Where it lies beside restored disks."""
        return folder / FOLDER / self.names[record.path]

    def restore(
        self, files: NewFiles, folder: Path, lacking: Sequence[FileRecord], workers: int, progress: Progress
    ) -> Iterator[RestoredBootFile]:
        """Writes those that are lacking among files in the making; tells of all that are, or will be, there.

        One that is damaged is told of and left out: the disks are worth a restore without it. Raises TargetError.
        """
        for record in self.records:
            name = f"{FOLDER}/{self.names[record.path]}"
            try:
                if record in lacking:
                    with files.create(name) as path:
                        self.write(record, path, workers, progress)
            except DamageError as error:
                files.drop(name)
                progress.note(error.message)
                continue
            yield RestoredBootFile(record.path, record.kind, self.place(folder, record), record.size)

    def _map(self, record: FileRecord) -> DiskMap:
        return DiskMap(self._repository.catalog(self._point.lineage.group), self._point, record)


def lost(records: Sequence[FileRecord], restored: Sequence[RestoredBootFile]) -> list[str]:
    """A sentence on each that was to be restored and is damaged."""
    there = {file.path for file in restored}
    return [f"{each.label} is damaged in the restore point: left out" for each in records if each.path not in there]


def _is_run(extent: Extent, ids: ChunkIds, file: BinaryIO, size: int) -> bool:
    """Whether the file goes on as a run of the map says."""
    if extent.session == ZERO:
        return not any(any(file.read(size)) for _ in range(extent.chunks))
    return all(
        blake3(file.read(size).ljust(size, b"\0"), key=ids.key(run.key_number)).digest() == chunk_id
        for run in ids.of(extent)
        for chunk_id in run.ids
    )


def _names(records: Sequence[FileRecord]) -> dict[str, str]:
    """By path: the name that it had, without what a name may not have, and a number where two had one."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for record in records:
        plain = re.sub(r"[^A-Za-z0-9._+-]", "_", os.path.basename(record.path)).lstrip(".")[-_MOST_NAME:] or record.kind
        plain = f"{plain}_" if plain.endswith((".partial", ".partial.json")) else plain
        numbered = (plain if number == 1 else f"{number}-{plain}" for number in range(1, len(records) + 1))
        found[record.path] = next(name for name in numbered if name not in taken)
        taken.add(found[record.path])
    return found
