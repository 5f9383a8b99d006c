"""The begin of one guest's job, in the steps that several guests take together: stand still, begin, go on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.documents import GuestDocuments
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.failures import broken_disk, port_taken, translate
from vmbackup.hypervisor.live.job import JobParts, LiveJob
from vmbackup.hypervisor.live.jobxml import JobDisk, backup_xml, checkpoint_xml, scratch_devices
from vmbackup.hypervisor.live.quiesce import Freezer
from vmbackup.hypervisor.live.readers import Connections, LiveDisk
from vmbackup.hypervisor.live.scratch import ScratchWatch
from vmbackup.hypervisor.live.watch import JobWatch
from vmbackup.hypervisor.plan import Plan, broken_reason
from vmbackup.hypervisor.remote.remote import Reach, tag_of
from vmbackup.hypervisor.source import Anchor, DomainInfo
from vmbackup.hypervisor.tidy import checkpoints, cleanup
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.recovery import Leftover
from vmbackup.nbd.tls import ClientTls

# Ports of a hypervisor that are tried before a run fails; the guest is frozen meanwhile, and a try takes 50 ms.
_PORTS_TRIED = 8


@dataclass(frozen=True)
class Prepared:
    """What a begin needs; all that is slow is done."""

    info: DomainInfo
    plan: Plan
    intent: Intent
    lock: DomainLock
    freezer: Freezer
    documents: GuestDocuments
    recovered: Sequence[Leftover]
    scratch: ScratchWatch
    readers: int
    reach: Reach | None = None  # of another machine's guest, with
    tls: ClientTls | None = None


class Beginning:
    """One begin: `prepare`, `ready`, `stand_still`, `begin`, `go_on`, then `job`; or `undo` after whichever failed.

    `go_on` must be called once `prepare` was, whatever happened. Each raises HypervisorError and its kinds.
    """

    def __init__(self, connection: Connection, store: IntentStore, parts: Prepared) -> None:
        self._connection, self._store, self._parts = connection, store, parts
        self._intent, self._plan, self._freezer = parts.intent, parts.plan, parts.freezer
        self._job: LiveJob | None = None
        self._connections = self._connect_to(parts.intent.socket)
        self._watch = JobWatch(connection, parts.info, lambda: self._job.give_up() if self._job else None)
        self.time = datetime.now(UTC)

    def _connect_to(self, socket: str) -> Connections:
        return Connections(socket, lambda: self._job.prove() if self._job else None, self._parts.tls)

    @property
    def info(self) -> DomainInfo:
        """The guest."""
        return self._parts.info

    def run(self) -> LiveJob:
        """All of it, for one guest alone."""
        try:
            try:
                self.prepare()
                self._freezer.ready()
                self.stand_still()
                self.begin(datetime.now(UTC))
            finally:
                self.go_on()
            return self.job()
        except BaseException:
            self.undo()
            raise

    def prepare(self) -> None:
        """The operator's hooks before."""
        self._freezer.prepare()

    def ready(self) -> None:
        """The last before all of a group stand still: what would hold the others up."""
        self._freezer.ready(pausing=True)

    def stand_still(self) -> None:
        """Frozen, as far as that goes."""
        self._freezer.freeze()

    def pause(self) -> None:
        """Stops the guest until `go_on`, where the freeze did not make it stand still."""
        self._freezer.pause(self._note_pause)

    def _note_pause(self) -> None:
        self._intent = self._store.update(self._intent, paused=True)

    def begin(self, time: datetime) -> None:
        """Fixes the point in time, which is told as `time`."""
        self.time = time
        self._plan = self._begin(self.info, self._plan)

    def go_on(self) -> None:
        """Resumed, thawed, and the hooks after."""
        try:
            self._freezer.release()
        finally:
            self._freezer.finish()

    def release(self) -> None:
        """Only resumed and thawed: the hooks after can wait until all guests of a group go on."""
        self._freezer.release()

    def job(self) -> LiveJob:
        """The job, which takes over the lock."""
        self._freezer.verdict()
        failed = self._freezer.thaw_failed
        self._intent = intent = self._store.update(
            self._intent, phase="begun", frozen=self._intent.frozen and failed, paused=self._intent.paused and failed
        )
        parts, info = self._parts, self.info
        xml, anchor = self._connection.call(
            "look at the backup job", lambda raw: _begun(handle(raw, info), intent, self._plan), info.name
        )
        self._job = job = LiveJob(
            JobParts(
                connection=self._connection, store=self._store, lock=parts.lock, watch=self._watch, intent=intent,
                domain=info, time=self.time, quiesced=self._freezer.outcome, connections=self._connections,
                disks=_sources(self._connections, self._plan), anchor=anchor, documents=parts.documents.files,
                boot_files=parts.documents.boot_files,
                notes=[*self._plan.notes, *parts.documents.notes, *self._freezer.warnings], recovered=parts.recovered,
                stood_still=self._freezer.stood_still,
            )
        )  # fmt: skip
        for disk in job.disks:
            disk.prepare(parts.readers)
        paths = dict(zip(intent.disks, intent.scratch, strict=True))
        devices = {device: paths[target] for target, device in scratch_devices(xml).items()}
        others = [disk.info.path for disk in self._plan.disks if disk.info.path and not disk.included]
        self._watch.start(parts.scratch, devices, others)
        return job

    def undo(self) -> None:
        """After a begin that failed, or was interrupted: job, checkpoint (a failing begin can leave it), files."""
        self._connections.abort()
        self._watch.expect_end()
        self._watch.stop()
        intent = self._intent

        def undo(raw: Any) -> None:
            domain = handle(raw, self.info)
            cleanup.abort_job(domain, intent.socket)
            if intent.checkpoint and checkpoints.lookup(domain, intent.checkpoint):
                checkpoints.remove(domain, intent.checkpoint, intent.paths)

        try:
            self._connection.call("undo the begin", undo, self.info.name)
            cleanup.unlink_all(files := (intent.socket, *intent.scratch))
            if cleanup.left_of(files):
                self._store.update(intent, scratch_bytes=0)
            elif not self._freezer.thaw_failed:
                self._store.remove(intent.session)
        except VmbackupError:
            return  # the intent stays, and the next run puts it right

    def give_up(self) -> None:
        """`undo`, and other runs may work on the guest."""
        try:
            self.undo()
        finally:
            self._parts.lock.release()

    def _begin(self, info: DomainInfo, plan: Plan) -> Plan:
        """backupBegin, again where a port is taken, or a bitmap broken: that disk is then read whole."""
        tried: list[str] = []
        while True:
            xml, checkpoint = _job_xml(plan, self._intent)
            raw = self._connection.live()
            try:
                self._freezer.domain_on(raw).backupBegin(xml, checkpoint, 0)
                return plan
            except lv.binding().libvirtError as error:
                if self._parts.reach and port_taken(error) and len(tried) < _PORTS_TRIED:
                    tried.append(self._intent.socket)
                    self._take_place(self._parts.reach.place(tag_of(tried[0]), tried))
                    continue
                target = broken_disk(error)
                hit = [d for d in plan.included if d.target == target and d.mode == "incremental"]
                if not hit:
                    raise translate(error, "begin the backup", info.name) from error
                reason = broken_reason(plan.parent or "")
                plan = _reread(plan, hit[0].target, reason)


    def _take_place(self, place: str) -> None:
        self._intent = self._store.update(self._intent, socket=place)
        self._connections = self._connect_to(place)


def _job_xml(plan: Plan, intent: Intent) -> tuple[str, str | None]:
    disks = [
        JobDisk(disk.target, disk.mode or "full", path)
        for disk, path in zip(plan.included, intent.scratch, strict=True)
    ]
    left_out = [disk.target for disk in plan.disks if not disk.included]
    tracked = [disk.target for disk in plan.included if disk.tracked]
    untracked = [disk.target for disk in plan.disks if disk.target not in tracked]
    checkpoint = checkpoint_xml(intent.checkpoint, tracked, untracked) if intent.checkpoint else None
    return backup_xml(intent.socket, disks, left_out, plan.parent), checkpoint


def _reread(plan: Plan, target: str, reason: str) -> Plan:
    disks = tuple(
        replace(disk, mode="reread", reason=reason, dirty_bytes=None) if disk.target == target else disk
        for disk in plan.disks
    )
    return replace(plan, disks=disks)


def _begun(domain: Any, intent: Intent, plan: Plan) -> tuple[str, Anchor | None]:
    """The job's XML, and the anchor of the new checkpoint."""
    xml = domain.backupGetXMLDesc(0)
    if intent.checkpoint is None:
        return xml, None
    made = domain.checkpointLookupByName(intent.checkpoint)
    sizes = {disk.target: disk.info.virtual_size for disk in plan.included if disk.tracked}
    return xml, Anchor("libvirt", intent.checkpoint, checkpoints.minimal_xml(made), sizes)


def _sources(connections: Connections, plan: Plan) -> list[LiveDisk]:
    """The longest read first, so that the last one to end is short."""

    def expected(disk: Any) -> int:
        return int(disk.info.virtual_size if disk.dirty_bytes is None else disk.dirty_bytes)

    ordered = sorted(plan.included, key=expected, reverse=True)
    return [LiveDisk(connections, disk.info, disk.mode or "full", disk.reason, disk.earlier_size) for disk in ordered]
