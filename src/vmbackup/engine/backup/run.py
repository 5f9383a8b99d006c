"""A backup run of one guest, in the order of docs/repository-format.md, section 10."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Self

from vmbackup import __version__
from vmbackup.engine.backup.boot_files import BootFiles
from vmbackup.engine.backup.shown import show
from vmbackup.engine.backup.spotcheck import missed_change
from vmbackup.engine.backup.wholereads import last_whole_read, scheduled
from vmbackup.engine.care.heal import heal_older
from vmbackup.engine.chain import SOURCE, anchor_of, committed_in, earlier_disks, maker_of, record_of, typed_documents
from vmbackup.engine.identity import host_identity
from vmbackup.engine.pipeline.lost import lost_parts
from vmbackup.engine.pipeline.pace import Limit, Pacer
from vmbackup.engine.pipeline.packing import VerifyUploads
from vmbackup.engine.pipeline.pipeline import DiskResult, Pipeline, default_workers, drop_disk
from vmbackup.engine.pipeline.worker import Worker
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.begin import Wanted
from vmbackup.hypervisor.source import DiskSource, DomainInfo, FreezeOptions, GuestJob, QuiescePolicy
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.progress import Progress
from vmbackup.repository.nodes import Ref
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord, FileRecord, files_to_json
from vmbackup.repository.repository import Repository
from vmbackup.repository.run import PARTIAL_BYTES, Run
from vmbackup.repository.summary import PointSummary, summary


@dataclass(frozen=True)
class Membership:
    """What a point says of the group that it was made with: the record that all of them have, and what is wrong."""

    record: Mapping[str, Any]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class BackupOptions:
    """How a run is made.

    `full`: read everything, ignore checkpoints; `workers`: None for one a core; `partial_bytes`: stored bytes after
    which a long run keeps a partial; `limit`: how fast disks are read, None for as fast as they are; `reread_every`:
    each disk is read whole at least that often; `shown_as`: the name of the repository with which the guest's own XML
    then shows the restore point, None where it is not to.
    """

    full: bool = False
    quiesce: QuiescePolicy = "auto"
    freezing: FreezeOptions = field(default_factory=FreezeOptions)
    verify_uploads: VerifyUploads = "sample"
    workers: int | None = None
    partial_bytes: int = PARTIAL_BYTES
    limit: Limit | None = None
    reread_every: timedelta | None = None
    shown_as: str | None = None


def backup(
    host: Host, repository: Repository, domain_name: str, options: BackupOptions, progress: Progress
) -> PointSummary:
    """Makes a restore point of a guest, on or off. Raises VmbackupError: the previous point is as good as before."""
    repository.check_may_write()
    domain = host.domain(domain_name)
    try:
        return GuestBackup(host, repository, domain, options, progress).run()
    except DamageError as error:
        if error.object_key is None:
            raise
        progress.note(f"{error.message}; the guest is read whole again, and nothing is built on it")
        return GuestBackup(host, repository, domain, options, progress, distrust=error).run()


class GuestBackup:
    """One guest's run, in the steps that the guests of a group take together: open, transfer, commit, finished."""

    def __init__(
        self,
        host: Host,
        repository: Repository,
        domain: DomainInfo,
        options: BackupOptions,
        progress: Progress,
        distrust: DamageError | None = None,
    ) -> None:
        self._host, self._repository, self._domain = host, repository, domain
        self._options, self._progress, self._distrust = options, progress, distrust
        self._workers = options.workers or default_workers()
        self._started = time.monotonic()
        self._run: Run
        self._lock: DomainLock
        self._results: Sequence[DiskResult] = ()
        self._files: Sequence[FileRecord] = ()

    def run(self) -> PointSummary:
        """All of it, for one guest alone."""
        self.open(self._host.reserve(self._domain))
        try:
            with self._host.begin(self._domain, **self.wanted()) as job:
                self.transfer(job)
                point = self.commit(job)
                job.finish(committed=True)
        except BaseException:
            self.abandon()
            raise
        return self.finished(point)

    def open(self, lock: DomainLock) -> None:
        """Pins the session. The lock is freed where that fails, else it goes to the host with `wanted`."""
        try:
            lineage = self._repository.lineage(SOURCE, self._domain.uuid)
            self._run = run = Run.open(self._repository, lineage, host_identity())
            run.partial_bytes = self._options.partial_bytes
        except BaseException:
            lock.release()
            raise
        self._lock = lock

    def wanted(self) -> Wanted:
        """What the host's begin is told. The session must be abandoned where this or anything after it fails."""
        run = self._run
        try:
            run.look_elsewhere()
            return {
                "lock": self._lock,
                "repository_id": self._repository.id,
                "session": run.session.id.hex(),
                "parent": anchor_of(run.parent),
                "full": self._options.full,
                "quiesce": self._options.quiesce,
                "freezing": self._options.freezing,
                "earlier": earlier_disks(run.parent, run.host),
                "reread": self._rereads(run),
                "committed": committed_in(self._repository, run.points, run.forgotten),
                "readers": self._workers,
                "elsewhere": maker_of(run.parent, run.host),
            }
        except BaseException:
            self._lock.release()
            raise

    @property
    def session(self) -> bytes:
        """The id of the run, and of its point to be."""
        return self._run.session.id

    def abandon(self) -> None:
        """It failed: what it stored is for the next run to find."""
        try:
            self._run.abandon()
        except (VmbackupError, OSError) as error:
            self._progress.note(f"what the failed run stored is looked after by the next one ({error})")

    def finished(self, point: Point) -> PointSummary:
        """After the commit: heals older points with what was read again, and sums up."""
        run = self._run
        show(self._host, self._repository, self._domain, point, self._options.shown_as, self._progress)
        if lost := run.lost.damaged if self._distrust else run.reread:
            heal_older(self._repository, run.lineage, lost, self._progress)
        return summary(point, run.parent, written_bytes=run.stored_bytes)

    def _rereads(self, run: Run) -> dict[str, str]:
        """Disks of the newest restore point that must not be incremental, and why."""
        disks = run.parent.disks if run.parent else []
        if self._distrust:
            reason = f"the newest restore point cannot be built on: {self._distrust.message}"
            return {disk.target: reason for disk in disks}
        if any(disk.chunk_size != self._repository.config.chunk_size for disk in disks):
            return {disk.target: "the repository's chunk size was changed" for disk in disks}
        return scheduled(run.points, run.parent, self._options.reread_every)

    def transfer(self, job: GuestJob) -> None:
        """Reads all disks, and seals: the job is over then, and all is stored but the point."""
        run = self._run
        old = {d.name: d for d in run.parent.disks} if run.parent and not self._distrust else {}
        if self._distrust:
            run.uses.clear()
        files = self._boot_files(run)
        with files.opened(job.boot_files) as file_bytes:
            self._progress.start(job.domain.name, file_bytes + sum(d.size for d in job.disks))
            try:
                self._transfer(run, job, files, old)
            finally:
                self._progress.finish(job.domain.name)
        self._files = files.saved

    def _transfer(self, run: Run, job: GuestJob, files: BootFiles, old: Mapping[str, DiskRecord]) -> None:
        pacer = Pacer(self._options.limit) if self._options.limit else None
        with self._pipeline(run, job, pacer) as pipeline, pacer or nullcontext():
            files.read(pipeline)  # first: what is proved at the end is that of the disks
            self._results = [self._read(pipeline, run, d, old.get(d.info.target)) for d in job.disks]
            for name in old.keys() - {d.info.target for d in job.disks}:
                drop_disk(run, old[name])
            with _Sealing(job):
                pipeline.finish()
                run.flush_meta()

    def _boot_files(self, run: Run) -> BootFiles:
        parent = None if self._distrust else run.parent
        trust = not self._options.full and parent is not None and parent.public.get("host") == run.host
        return BootFiles(run, self._repository.config.chunk_size, parent.files if parent else (), trust=trust)

    def _pipeline(self, run: Run, job: GuestJob, pacer: Pacer | None) -> Pipeline:
        def between(covered: int) -> None:
            self._progress.advance(job.domain.name, covered)
            job.check()
            run.keep_partial()

        return Pipeline(
            run,
            self._repository.config.chunk_size,
            workers=self._workers,
            verify=self._options.verify_uploads,
            between=between,
            worker=partial(Worker, pacer=pacer),
        )

    def _read(self, pipeline: Pipeline, run: Run, source: DiskSource, old: DiskRecord | None) -> DiskResult:
        chunk_size = self._repository.config.chunk_size
        if old is not None and old.chunk_size != chunk_size:
            drop_disk(run, old)
            old = None
        if old is None:
            if source.mode == "incremental" and run.parent:
                key = run.parent.key
                raise DamageError(f"{key} has no map of disk {source.info.target}", object_key=key)
            return pipeline.read_disk(source, None, None)
        lost = lost_parts(run, old)
        if source.mode == "incremental":
            self._spot_check(run, source, old)
        base: Ref | None = old.root
        if old.virtual_size > source.size:  # shrunk: its map cannot be kept, its chunks are found by place
            drop_disk(run, old)
            base = None
        return pipeline.read_disk(source, base, old.root, lost)

    def _spot_check(self, run: Run, source: DiskSource, old: DiskRecord) -> None:
        others = [disk for disk in (run.parent.disks if run.parent else []) if disk.name != old.name]
        offset = missed_change(run, source, old, others)
        if offset is not None:
            reason = f"its bitmap missed a change (at byte {offset}, which it calls unchanged)"
            source.distrust(reason)
            run.warnings.append(
                f"disk {old.target} was read whole: {reason}. Restore points since its last whole reading may hold old "
                "data: find out what wrote to the image without QEMU's bitmap"
            )

    def commit(self, job: GuestJob, group: Membership | None = None) -> Point:
        """The restore point; of a guest of a group with what that is."""
        run = self._run
        disks = [self._record(run, job, *read) for read in zip(job.disks, self._results, strict=True)]
        disks.sort(key=lambda d: (len(d.target), d.target))
        public: dict[str, Any] = {
            "domain": {"name": job.domain.name, "uuid": job.domain.uuid},
            "source": SOURCE,
            "time": job.time.isoformat(timespec="milliseconds"),
            "consistency": job.consistency,
            "freeze_seconds": job.freeze_seconds,
            "quiesce_note": job.quiesce_note,
            "anchor": asdict(job.anchor) if job.anchor else None,
            "disks": [d.to_json() for d in disks],
            "files": files_to_json(run.session.id, self._files) if self._files else None,
            "duration_seconds": round(time.monotonic() - self._started, 3),
            "seal_seconds": round(job.seal_seconds, 3),
            "versions": {"vmbackup": __version__, **self._host.versions()},
            "warnings": [*self._warnings(run, job), *(group.warnings if group else ())],
        }
        if group:
            public["group"] = group.record
        return run.commit(public, typed_documents(job.documents))

    def _record(self, run: Run, job: GuestJob, source: DiskSource, result: DiskResult) -> DiskRecord:
        info, incremental = source.info, source.mode == "incremental"
        read_whole = last_whole_read(run.points, run.parent, info.target) if incremental else job.time
        return DiskRecord(
            name=info.target,
            target=info.target,
            format=info.format,
            virtual_size=source.size,
            chunk_size=self._repository.config.chunk_size,
            root=result.root,
            mode=source.mode,
            reason=source.reason,
            read_bytes=result.counts.read,
            changed_bytes=result.counts.changed,
            stored_bytes=result.counts.stored,
            attributes=record_of(info),
            read_whole=read_whole.isoformat(timespec="milliseconds") if read_whole else None,
        )

    def _warnings(self, run: Run, job: GuestJob) -> list[str]:
        distrust = [f"{self._distrust.message}: the guest was read whole"] if self._distrust else []
        return [*distrust, *run.warnings, *job.notes]


class _Sealing:
    """The seal's wait, in a thread of its own while the last packs go to the store; ended when the block is left."""

    def __init__(self, job: GuestJob) -> None:
        self._job = job
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="seal", daemon=True)

    def _work(self) -> None:
        try:
            self._job.seal()
        except BaseException as error:  # raised again at the block's end
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises what the seal raised, unless the block failed itself."""
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error
