"""A range of restore points as one backing chain a disk: a base, and an overlay for each later point."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmbackup.engine.images.image_options import ImageWishes, image_options
from vmbackup.engine.images.new_files import NewFiles, is_in_the_way, there_already
from vmbackup.engine.images.new_image import new_target
from vmbackup.engine.images.overlay_target import OverlayTarget
from vmbackup.engine.images.targets import Target
from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.engine.restore.boot_files import BootFiles, RestoredBootFile, lost
from vmbackup.engine.restore.changed_runs import changed_runs
from vmbackup.engine.restore.chosen_disks import choose_disks
from vmbackup.engine.restore.cost import Foreseen, disk_cost
from vmbackup.engine.restore.disk_copy import DiskCopy
from vmbackup.engine.restore.disk_job import damage_named
from vmbackup.engine.restore.documents import new_documents, write_documents
from vmbackup.engine.restore.free_space import SpaceNeeded
from vmbackup.engine.restore.output_folder import refuse_unfit
from vmbackup.errors import TargetError, UsageError
from vmbackup.progress import Progress
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository

# libvirt (as of 11) looks no deeper into a chain than this before it takes it for a loop.
MOST_LEVELS = 200


@dataclass(frozen=True)
class ChainOptions:
    """`disks`: targets, None for all of the newest point; `output`: a folder, made if it is not there."""

    output: Path
    disks: tuple[str, ...] | None = None
    workers: int | None = None


@dataclass(frozen=True)
class ChainFile:
    """One level: what `point` has, read through `backing`, a name in the same folder (None for the base)."""

    target: str
    point: str
    path: Path
    backing: str | None
    virtual_size: int
    written_bytes: int
    format: str = "qcow2"


@dataclass(frozen=True)
class ChainSummary:
    """What was made: the levels of each disk, its base first."""

    point: str
    files: tuple[ChainFile, ...]
    duration_seconds: float
    warnings: tuple[str, ...] = ()
    boot_files: tuple[RestoredBootFile, ...] = ()


@dataclass(frozen=True)
class _Level:
    """A file to be made."""

    point: Point
    disk: DiskRecord
    name: str
    below: "_Level | None"


def chain_points(points: Sequence[Point], last: Point, first: Point | None) -> list[Point]:
    """The restore points of `last`'s guest from `first` (None: its oldest) up to `last`, oldest first.

    Raises UsageError where `first` is another guest's, or newer.
    """
    history = sorted((p for p in points if p.lineage == last.lineage), key=_order)
    if first is None:
        return [point for point in history if _order(point) <= _order(last)]
    if first.lineage != last.lineage:
        raise UsageError(
            f"restore point {first.id} is of another guest ({first.domain})", "a chain is the history of one"
        )
    if _order(first) > _order(last):
        raise UsageError(f"restore point {first.id} is newer than {last.id}", "name the older one with --chain-from")
    return [point for point in history if _order(first) <= _order(point) <= _order(last)]


def _order(point: Point) -> tuple[int, float, bytes]:
    """In the history, not by the clock: a host's may have been set back."""
    return point.seq, point.time.timestamp(), point.session


def restore_chain(
    repository: Repository, points: Sequence[Point], options: ChainOptions, progress: Progress
) -> ChainSummary:
    """Writes a chain for each disk of the last of `points`, and that point's documents and boot files, into a folder.

    All files get their names once all are whole and synced; after an error none is left. Raises TargetError,
    UsageError (too long a chain), DamageError naming point and disk, NotFoundError (no such disk), AccessError.
    """
    started = time.monotonic()
    last = points[-1]
    chains = _chains(repository, points, options)
    documents = new_documents(options.output, repository.documents(last))
    boot_files = BootFiles(repository, last)
    lacking = boot_files.lacking_in(options.output)
    workers = options.workers or default_workers()
    maker = _Maker(repository, options, progress)
    with NewFiles(options.output) as files:
        for chain in chains:  # the newest stands for all of a disk's
            files.reserve(chain[-1].name, {"chain": chain[-1].point.key})
        for level in (level for chain in chains for level in chain):
            (options.output / level.name).unlink(missing_ok=True)  # named by a restore that was killed as it did
        beside = tuple(boot_files.restore(files, options.output, lacking, workers, progress))
        made = [maker.make(level, files) for chain in chains for level in chain]
        write_documents(files, documents)
        files.publish()
    warnings = tuple(lost(last.files, beside))
    return ChainSummary(last.id, tuple(made), time.monotonic() - started, warnings, beside)


def chain_cost(repository: Repository, points: Sequence[Point], options: ChainOptions) -> list[Foreseen]:
    """What a chain would read, level by level; writes nothing. Raises what `restore_chain` would raise beforehand.

    Also DamageError where a pack that it would read is not there, and TargetError where space would not suffice.
    """
    chains = _chains(repository, points, options)
    new_documents(options.output, repository.documents(points[-1]))
    levels = [level for chain in chains for level in chain]
    foreseen, space = [], SpaceNeeded()
    for level in levels:
        cost = disk_cost(repository, level.point, level.disk, _changed(repository, level))
        path, backing = options.output / level.name, level.below.name if level.below else None
        foreseen.append(Foreseen(level.point, level.disk, path, cost, backing))
        space.add(path, cost.data_bytes)
    for each in (beside := BootFiles(repository, points[-1]).foreseen(options.output)):
        space.add(each.path, each.cost.data_bytes)
    space.check()
    return [*foreseen, *beside]


def _chains(repository: Repository, points: Sequence[Point], options: ChainOptions) -> list[list[_Level]]:
    """The files to be made, a chain for each disk; all that can be known to be in the way is refused."""
    repository.check_may_read()
    last = points[-1]
    chains = [_levels(points, disk) for disk in choose_disks(last, options.disks)]
    refuse_unfit(options.output, last)
    for level in (level for chain in chains for level in chain):
        if is_in_the_way(options.output, level.name):
            raise there_already(options.output / level.name)
    return chains


def _changed(repository: Repository, level: _Level) -> Iterator[Extent] | None:
    """What of a level the one below it has not; None for the base, which has all."""
    if level.below is None:
        return None
    group = level.point.lineage.group
    old, new = (DiskMap(repository.catalog(group), at.point, at.disk) for at in (level.below, level))
    return changed_runs(old, new, Secrets(repository, group))


def _levels(points: Sequence[Point], disk: DiskRecord) -> list[_Level]:
    """The files of a disk, base first; a point that lacks the disk has no level."""
    if os.sep in disk.target or disk.target in (".", ".."):
        raise UsageError("a disk's name cannot be a file name")
    having = [(point, found) for point in points for found in point.disks if found.target == disk.target]
    if len(having) > MOST_LEVELS:
        hint = f"begin at a later restore point with --chain-from, such as {having[-MOST_LEVELS][0].id}"
        raise UsageError(f"a chain of {len(having)} images is more than libvirt takes ({MOST_LEVELS})", hint)
    if any("encryption" in found.attributes for _, found in having):
        raise TargetError(
            f"disk {disk.target} was encrypted, and the images of a chain are not",
            "restore it without --chain, or leave it out: name the other disks with --disk",
        )
    levels: list[_Level] = []
    for point, found in having:
        top = point.session == points[-1].session
        name = f"{disk.target}.qcow2" if top else f"{disk.target}-{_name(point, points)}.qcow2"
        levels.append(_Level(point, found, name, levels[-1] if levels else None))
    return levels


def _name(point: Point, points: Sequence[Point]) -> str:
    """Its id, longer where two of the chain have the same."""
    return point.id if sum(other.id == point.id for other in points) == 1 else point.long_id


class _Maker:
    """Makes level after level; each is written without looking into those below it."""

    def __init__(self, repository: Repository, options: ChainOptions, progress: Progress) -> None:
        self._repository, self._progress = repository, progress
        self._output, self._workers = options.output, options.workers or default_workers()

    def make(self, level: _Level, files: NewFiles) -> ChainFile:
        """One file, whole and synced, under its temporary name."""
        with files.create(level.name) as path:
            target = self._new_image(level, path)
            try:
                with damage_named(level.point, level.disk):
                    self._fill(level, target)
                written = target.finish()
            finally:
                target.abandon()
        backing = level.below.name if level.below else None
        size = level.disk.virtual_size
        return ChainFile(level.disk.target, level.point.id, self._output / level.name, backing, size, written)

    def _new_image(self, level: _Level, path: Path) -> Target:
        disk = level.disk
        if level.below is None:
            return new_target(path, disk.virtual_size, image_options(disk, ImageWishes()), self._workers)
        return OverlayTarget(
            path, disk.virtual_size, disk.attributes, self._workers,
            backing=level.below.name, chunk_size=disk.chunk_size,
        )  # fmt: skip

    def _fill(self, level: _Level, target: Target) -> None:
        copy = DiskCopy(self._repository, level.point, level.disk, self._workers)
        copy.write(target, self._progress, _changed(self._repository, level))
