"""Restoring: the disks of a point in time, as new images put in place when they are whole, or onto what is there."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vmbackup.engine.images.existing_image import DiskUsers, nobody
from vmbackup.engine.images.image_options import Format, ImageWishes, Preallocation, image_options, was_encrypted
from vmbackup.engine.images.new_files import NewFiles, is_in_the_way, there_already
from vmbackup.engine.images.new_image import new_target
from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.engine.restore.boot_files import BootFiles, RestoredBootFile, lost
from vmbackup.engine.restore.chosen_disks import choose_disks
from vmbackup.engine.restore.disk_job import DiskJob
from vmbackup.engine.restore.documents import new_documents, write_documents
from vmbackup.engine.restore.onto import Onto, choose_target, restore_onto
from vmbackup.engine.restore.output_folder import refuse_unfit
from vmbackup.engine.restore.savepoints import SYNC_SECONDS, Savepoints
from vmbackup.errors import UsageError
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository


@dataclass(frozen=True)
class RestoreOptions:
    """`disks`: targets, None for all; `output`: a folder for new images, made if it is not there.

    `format` None: qcow2 for new images. `preallocation`, `passphrases`, `plain`: as ImageWishes has them.
    `to`: disks that go onto what is there, by target; `users` tells which guests have a path as their disk; notes of
    what is being written there lie in `state_dir`. `sync_seconds`: what a kill costs at most.
    """

    output: Path | None
    format: Format | None = None
    disks: tuple[str, ...] | None = None
    workers: int | None = None
    preallocation: Preallocation | None = None
    passphrases: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    plain: bool = False
    to: Mapping[str, Path] = field(default_factory=dict)
    users: DiskUsers = nobody
    state_dir: Path = Path("/var/lib/vmbackup")
    sync_seconds: float = SYNC_SECONDS

    def onto(self, to: Mapping[str, Path], users: DiskUsers, state_dir: Path) -> "RestoreOptions":
        """The same, with disks that go onto what is there."""
        return replace(self, to=to, users=users, state_dir=state_dir)

    def new_path(self, disk: DiskRecord) -> Path:
        """What a disk's new image is called."""
        return (self.output or Path()) / f"{disk.target}.{self.format or 'qcow2'}"

    @property
    def wishes(self) -> ImageWishes:
        """What images are to be like."""
        return ImageWishes(self.format, self.preallocation, self.passphrases, plain=self.plain)


@dataclass(frozen=True)
class RestoredFile:
    """An image; `virtual_size`, `written_bytes` (on its file system) and `fetched_bytes` (plain ones) in bytes."""

    target: str
    path: Path
    format: str
    virtual_size: int
    written_bytes: int
    fetched_bytes: int = 0


@dataclass(frozen=True)
class RestoreSummary:
    """What a restore made."""

    point: str
    files: tuple[RestoredFile, ...]
    duration_seconds: float
    warnings: tuple[str, ...] = ()
    boot_files: tuple[RestoredBootFile, ...] = ()


def restore(repository: Repository, point: Point, options: RestoreOptions, progress: Progress) -> RestoreSummary:
    """Writes `<target>.qcow2` or `.raw` for each disk, `domain.xml` and `boot-files/*` into a folder, with mode 0600.

    All files get their names once all are whole and synced. After an error or a kill, an image of which much was
    written stays as `NAME.partial`: the same restore goes on with it. What goes onto an image that is there is written
    last. Raises TargetError, DamageError naming point and disk, NotFoundError (no such disk), UsageError, AccessError.
    """
    started = time.monotonic()
    repository.check_may_read()
    targets = choose_targets(point, options)
    workers = options.workers or default_workers()

    def job(disk: DiskRecord) -> DiskJob:
        return DiskJob(repository, point, disk, workers, progress)

    made: list[RestoredFile] = []
    boot_files: list[RestoredBootFile] = []
    notes: list[str] = []
    if targets.new and options.output is not None:
        made, boot_files = _restore_into(options.output, [job(disk) for disk in targets.new], options)
        notes = lost(point.files, boot_files)
    made += [_restore_onto(job(one.disk), one, options) for one in targets.onto]
    warnings = (*_warnings(targets), *notes)
    return RestoreSummary(point.id, tuple(made), time.monotonic() - started, warnings, tuple(boot_files))


@dataclass(frozen=True)
class Targets:
    """Where the disks go: into new images of a folder, and onto what is there."""

    new: tuple[DiskRecord, ...]
    onto: tuple[Onto, ...]


def choose_targets(point: Point, options: RestoreOptions) -> Targets:
    """Where each disk goes, all found fit; writes nothing. Raises TargetError, NotFoundError, UsageError."""
    named = choose_disks(point, tuple(options.to))
    choose_disks(point, tuple(target for target in options.passphrases if target))
    wanted = options.disks if options.output is not None else options.disks or tuple(options.to)
    new = tuple(disk for disk in choose_disks(point, wanted) if disk.target not in options.to)
    if new and options.output is None:
        target = new[0].target
        raise UsageError(f"nothing says where disk {target} goes", f"add --output DIR, or --to {target}=PATH")
    if new and options.output is not None:
        refuse_unfit(options.output, point)
    for disk in new:
        image_options(disk, options.wishes)
        _refuse_existing(disk, options.new_path(disk))
    wishes = options.wishes
    onto = tuple(choose_target(point, disk, options.to[disk.target], wishes, options.users) for disk in named)
    if len({one.image.identity for one in onto}) < len(onto):
        raise UsageError("two disks cannot go onto one image", "name another --to for one of them")
    found = Targets(new, onto)
    _refuse_idle_passphrase(point, found, options)
    return found


def _refuse_idle_passphrase(point: Point, found: Targets, options: RestoreOptions) -> None:
    """One for all that were encrypted, where none was: whoever named it takes the images for secret ones."""
    if "" not in options.passphrases or options.plain or any(one.image.encrypted for one in found.onto):
        return
    disks = (*found.new, *(one.disk for one in found.onto))
    if not any(was_encrypted(disk) for disk in disks):
        target = disks[0].target if disks else "vda"
        raise UsageError(
            f"no disk of restore point {point.id} that is restored was encrypted, and the passphrase encrypts nothing",
            f"leave --luks-passphrase-file out, or encrypt a disk's image: --luks-passphrase-file {target}=FILE",
        )


def _refuse_existing(disk: DiskRecord, path: Path) -> None:
    if os.sep in disk.target or disk.target in (".", ".."):
        raise UsageError("a disk's name cannot be a file name")
    if is_in_the_way(path.parent, path.name):
        raise there_already(path)


def _restore_into(
    folder: Path, jobs: list[DiskJob], options: RestoreOptions
) -> tuple[list[RestoredFile], list[RestoredBootFile]]:
    """New images, and the documents and boot files of their point, published together."""
    first = jobs[0]
    documents = new_documents(folder, first.repository.documents(first.point))
    boot_files = BootFiles(first.repository, first.point)
    lacking = boot_files.lacking_in(folder)
    with NewFiles(folder) as files:
        try:
            beside = list(boot_files.restore(files, folder, lacking, first.workers, first.progress))
            made = [_restore_new(job, options, files) for job in jobs]
            write_documents(files, documents)
            files.publish()
        except BaseException:
            for path in files.kept:
                first.progress.note(f"{path} stays: the same command goes on with it; to give up, delete it")
            raise
    return made, beside


def _restore_new(job: DiskJob, options: RestoreOptions, files: NewFiles) -> RestoredFile:
    disk, image = job.disk, image_options(job.disk, options.wishes)
    name = f"{disk.target}.{image.format}"
    with files.begin(name, {**job.description(), **image.told()}) as making:
        if making.again:
            job.progress.note(f"going on with {making.path}: what is right there is not read again")
        target = new_target(making.path, disk.virtual_size, image, job.workers, resume=making.again)
        savepoints = Savepoints(options.sync_seconds, making.keep)
        filled = job.fill_new(target, savepoints, resume=making.again, zeros=not image.reads_as_zeros)
    return RestoredFile(disk.target, making.path.with_suffix(""), image.format, disk.virtual_size, *filled)


def _restore_onto(job: DiskJob, one: Onto, options: RestoreOptions) -> RestoredFile:
    filled = restore_onto(job, one, options.state_dir, options.sync_seconds)
    return RestoredFile(job.disk.target, one.image.path, one.image.format, job.disk.virtual_size, *filled)


def _warnings(targets: Targets) -> tuple[str, ...]:
    """What is not as it was."""
    larger = [one for one in targets.onto if one.image.size > one.disk.virtual_size]
    disks = (*targets.new, *(one.disk for one in targets.onto))
    return (
        *(
            f"{one.image.path} is larger than disk {one.disk.target}: the guest finds zeros behind its end"
            for one in larger
        ),
        *(
            f"disk {d.target} had its data in a raw file of its own; its new image holds them"
            for d in disks
            if "data_file" in d.attributes
        ),
    )
