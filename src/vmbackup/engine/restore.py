"""Restoring: the disks of a point in time, written as new images and put in place when they are whole."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmbackup.engine.chosen_disks import choose_disks
from vmbackup.engine.disk_copy import DiskCopy
from vmbackup.engine.documents import new_documents, write_documents
from vmbackup.engine.new_files import NewFiles, there_already
from vmbackup.engine.pipeline import default_workers
from vmbackup.engine.qcow2_target import Qcow2Target
from vmbackup.engine.raw_target import RawTarget
from vmbackup.engine.targets import Target
from vmbackup.errors import DamageError, UsageError
from vmbackup.progress import Progress
from vmbackup.repository.points import DiskRecord, Point
from vmbackup.repository.repository import Repository

Format = Literal["qcow2", "raw"]


@dataclass(frozen=True)
class RestoreOptions:
    """`disks`: targets, None for all; `output`: a folder, made if it is not there."""

    output: Path
    format: Format = "qcow2"
    disks: tuple[str, ...] | None = None
    workers: int | None = None


@dataclass(frozen=True)
class RestoredFile:
    """An image; `virtual_size` and `written_bytes` (on its file system) in bytes."""

    target: str
    path: Path
    format: str
    virtual_size: int
    written_bytes: int


@dataclass(frozen=True)
class RestoreSummary:
    """What a restore made."""

    point: str
    files: tuple[RestoredFile, ...]
    duration_seconds: float
    warnings: tuple[str, ...] = ()


def restore(repository: Repository, point: Point, options: RestoreOptions, progress: Progress) -> RestoreSummary:
    """Writes `<target>.qcow2` or `.raw` for each disk and `domain.xml` into a folder, all with mode 0600.

    All files get their names once all are whole and synced; after an error none is left. Raises TargetError,
    DamageError naming point and disk, NotFoundError (no such disk), AccessError.
    """
    started = time.monotonic()
    repository.check_may_read()
    disks = choose_disks(point, options.disks)
    _refuse_existing(options.output, disks, options.format)
    documents = new_documents(options.output, repository.documents(point))
    with NewFiles(options.output) as files:
        made = [_restore_disk(repository, point, disk, options, files, progress) for disk in disks]
        write_documents(files, documents)
        files.publish()
    return RestoreSummary(point.id, tuple(made), time.monotonic() - started)


def _refuse_existing(folder: Path, disks: list[DiskRecord], format_: str) -> None:
    if any(os.sep in d.target or d.target in (".", "..") for d in disks):
        raise UsageError("a disk's name cannot be a file name")
    for disk in disks:
        path = folder / f"{disk.target}.{format_}"
        if path.exists():
            raise there_already(path)


def _restore_disk(
    repository: Repository, point: Point, disk: DiskRecord, options: RestoreOptions, files: NewFiles, progress: Progress
) -> RestoredFile:
    name = f"{disk.target}.{options.format}"
    workers = options.workers or default_workers()
    with files.create(name) as path:
        target: Target
        if options.format == "raw":
            target = RawTarget(path, disk.virtual_size)
        else:
            target = Qcow2Target(path, disk.virtual_size, disk.attributes, workers)
        try:
            DiskCopy(repository, point, disk, workers).write(target, progress)
            written = target.finish()
        except DamageError as error:
            raise DamageError(
                f"restore point {point.id}, disk {disk.target} cannot be restored: {error.message}",
                object_key=error.object_key,
            ) from error
        finally:
            target.abandon()
    return RestoredFile(disk.target, options.output / name, options.format, disk.virtual_size, written)
