"""A stopped guest's disks brought back to a restore point where they lie: compared first, then only what differs.

Nothing is changed before all disks are compared and the packs that are needed are known to be there. From the first
change to the last the disks are marked as half done: the same command, run again, finishes what a crash cut off.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.engine.restore.boot_files import BootFiles
from vmbackup.engine.restore.chosen_disks import choose_disks
from vmbackup.engine.restore.in_place_disk import InPlaceDisk
from vmbackup.errors import HypervisorError, NotFoundError, TargetError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.domains import DomainNotFound
from vmbackup.hypervisor.off.stopped import StoppedGuest, started_paused, stopped_guest
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy.half_done import HalfDone
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository


@dataclass(frozen=True)
class InPlaceOptions:
    """`disks`: targets, None for all of the point.

    `keep_state`: a restore point of the disks as they are is made first. `quick`: where an image's bitmap is sound only
    what it calls changed is compared. `dry_run`: compare, and change nothing. `passphrases`: of encrypted images, by
    target; "" that of all others.
    """

    disks: tuple[str, ...] | None = None
    keep_state: bool = False
    quick: bool = False
    dry_run: bool = False
    workers: int | None = None
    passphrases: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class InPlaceFile:
    """A disk that now is as it was; in bytes: what of it was read to compare, and what was (or would be) written.

    `why_not_quick`: why all of it was compared although only what changed was to be.
    """

    target: str
    path: Path
    format: str
    virtual_size: int
    compared_bytes: int
    written_bytes: int
    why_not_quick: str | None = None


@dataclass(frozen=True)
class InPlaceSummary:
    """What was done. `kept`: the restore point of the disks as they were before."""

    point: str
    files: tuple[InPlaceFile, ...]
    kept: str | None
    duration_seconds: float
    warnings: tuple[str, ...] = ()


def restore_in_place(
    host: Host, repository: Repository, point: Point, options: InPlaceOptions, progress: Progress
) -> InPlaceSummary:
    """Makes the disks of a stopped guest as `point` has them. Running it again is safe at any time.

    Raises HypervisorError (it runs, or has saved memory), TargetError (in use, too small, no space), NotFoundError (no
    such guest or disk), DamageError, AccessError.
    """
    started = time.monotonic()
    repository.check_may_read()
    disks = choose_disks(point, options.disks)
    choose_disks(point, tuple(target for target in options.passphrases if target))
    domain = _domain_of(host, point)
    mark = host.half_done.of(domain.uuid)
    if mark.unreadable:
        raise HypervisorError(
            f"an earlier restore in place of {domain.name} was interrupted, and its record cannot be read",
            f"'vmbackup purge {domain.name}' takes it away, and makes the next backup read all disks whole",
        )
    notes = [_other_half(mark, disks, domain)] if mark.disks else []
    kept = mark.kept
    if options.keep_state and not options.dry_run:
        if any(mark.point_of(disk.target) for disk in disks):
            notes.append(_not_kept(kept))
        else:
            kept = _keep(host, repository, domain, progress)
    with stopped_guest(host, domain) as guest:
        work = _Work(repository, guest, point, options, progress, kept)
        files = work.run(disks)
    notes.append(BootFiles(repository, point).untouched())
    warnings = tuple(note for note in (*notes, *work.notes) if note)
    return InPlaceSummary(point.id, files, kept, time.monotonic() - started, warnings)


def _domain_of(host: Host, point: Point) -> DomainInfo:
    try:
        return host.domain(point.uuid)
    except DomainNotFound as error:
        raise NotFoundError(
            f"the guest of restore point {point.id}, '{point.domain}' ({point.uuid}), is not defined on this host",
            "restore it to a folder with --output, or to images of your choice with --to",
        ) from error


def _other_half(mark: HalfDone, disks: Sequence[DiskRecord], domain: DomainInfo) -> str:
    """What an earlier restore has left half done and this one does not touch."""
    others = ", ".join(sorted(mark.disks.keys() - {disk.target for disk in disks}))
    if not others:
        return ""
    return f"disks of {domain.name} that an earlier restore in place left half done stay so: {others}"


def _not_kept(kept: str | None) -> str:
    if kept:
        return f"the state before is kept as restore point {kept}, by the run that was interrupted"
    return "the state before could not be kept: a restore in place that was interrupted has changed it already"


def _keep(host: Host, repository: Repository, domain: DomainInfo, progress: Progress) -> str:
    """A restore point of the stopped guest; gives its id."""
    repository.check_may_write()
    with stopped_guest(host, domain):
        pass  # says what is in the way before anything is started
    with started_paused(host, domain):
        return backup(host, repository, domain.uuid, BackupOptions(quiesce="never"), progress).id


class _Work:
    """One run under the guest's lock."""

    def __init__(
        self,
        repository: Repository,
        guest: StoppedGuest,
        point: Point,
        options: InPlaceOptions,
        progress: Progress,
        kept: str | None,
    ) -> None:
        self._repository, self._guest, self._point = repository, guest, point
        self._options, self._progress, self._kept = options, progress, kept
        self._workers = options.workers or default_workers()
        self._points = repository.read_points(point.lineage).points if options.quick else []
        self._marked: set[str] = set()
        self.notes: list[str] = []

    def run(self, disks: Sequence[DiskRecord]) -> tuple[InPlaceFile, ...]:
        """All disks: held, compared, marked, written, let go."""
        try:
            return self._run(disks)
        except BaseException:
            if self._marked:
                targets = ", ".join(sorted(self._marked))
                self._progress.note(f"half restored: {targets}. Do not start the guest: run the command again to go on")
            raise

    def _run(self, disks: Sequence[DiskRecord]) -> tuple[InPlaceFile, ...]:
        with ExitStack() as stack:
            work = [self._open(disk) for disk in disks]
            for one in work:
                stack.callback(one.abandon)
                one.claim()
                one.hold(read_only=self._options.dry_run)
            if not self._options.dry_run:
                self._resize(work)
            for one in work:
                one.compare(self._points, self._options.quick, self._progress)
                self.notes += one.notes
            for one in work:
                if one.differs:
                    one.check_ready()
            if not self._options.dry_run:
                self._change(work)
        return tuple(_file(one) for one in work)

    def _open(self, disk: DiskRecord) -> InPlaceDisk:
        found = self._guest.disks.get(disk.target)
        if found is None:
            raise NotFoundError(
                f"domain {self._guest.domain.name} has no disk '{disk.target}' any more",
                f"restore it to a folder: --output DIR --disk {disk.target}; or name the other disks with --disk",
            )
        if not found.path:
            raise HypervisorError(
                f"disk {disk.target} of {self._guest.domain.name} is no file or device of this host",
                "restore it to a folder with --output",
            )
        if others := self._guest.others_with(found.path):
            raise TargetError(
                f"{found.path} is a disk of another guest too: {', '.join(others)}",
                "take it from that guest first (virsh detach-disk --config), or restore to a folder with --output",
            )
        half_done = self._guest.half_done.point_of(disk.target) is not None
        words = self._options.passphrases
        passphrase = words.get(disk.target, words.get("")) if found.encrypted else None
        return InPlaceDisk(
            self._repository, self._point, disk, found, self._workers, half_done=half_done, passphrase=passphrase
        )

    def _resize(self, work: Sequence[InPlaceDisk]) -> None:
        """Images of another size; the bitmaps go first, for they would forget what is cut off."""
        others = [one for one in work if one.resize_needed()]
        if not others:
            return
        self._mark(others)
        for one in others:
            one.let_go()
        held = [one for one in work if one not in others]
        for one in held:
            one.let_go()
        self._guest.drop_checkpoints()
        for one in others:
            one.resize()
        for one in work:
            one.hold()

    def _change(self, work: Sequence[InPlaceDisk]) -> None:
        differing = [one for one in work if one.differs]
        if differing:
            self._mark(differing)
        for one in differing:
            one.write(self._progress)
        for one in work:
            one.finish()
        if any(one.unfit for one in work) or not self._guest.bitmaps_fit(one.target for one in work):
            self._guest.drop_checkpoints()
        self._guest.whole(one.target for one in work)

    def _mark(self, work: Sequence[InPlaceDisk]) -> None:
        targets = {one.target for one in work}
        self._guest.mark(targets, self._point.id, self._kept)
        self._marked |= targets


def _file(one: InPlaceDisk) -> InPlaceFile:
    return InPlaceFile(
        one.target, one.path, one.format, one.record.virtual_size,
        one.compared_bytes, one.written_bytes, one.why_not_quick,
    )  # fmt: skip


__all__ = ["InPlaceFile", "InPlaceOptions", "InPlaceSummary", "restore_in_place"]
