"""Begins a job: everything slow before the freeze, the intent on disk before the begin, thawed after it."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import HypervisorError, JobConflictError, VmbackupError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor import checkpoints, cleanup, scratch
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.documents import read_documents
from vmbackup.hypervisor.domains import describe, handle, require_running
from vmbackup.hypervisor.failures import broken_disk, translate
from vmbackup.hypervisor.intents import Intent, IntentStore
from vmbackup.hypervisor.job import JobParts, LiveJob
from vmbackup.hypervisor.jobxml import JobDisk, backup_xml, checkpoint_xml, scratch_devices
from vmbackup.hypervisor.locks import DomainLock
from vmbackup.hypervisor.names import SOCKET_PATH_MAX, CheckpointName, file_tag, scratch_name, socket_name
from vmbackup.hypervisor.plan import Plan, Request, broken_reason, make_plan
from vmbackup.hypervisor.quiesce import Freezer
from vmbackup.hypervisor.readers import Connections, LiveDisk
from vmbackup.hypervisor.recovery import Leftover
from vmbackup.hypervisor.source import Anchor, DomainInfo, QuiescePolicy
from vmbackup.hypervisor.watch import JobWatch

DOMAIN_FOLDERS = "/var/lib/libvirt/qemu"


@dataclass(frozen=True)
class Places:
    """Where a run puts things on this host, and how many of our checkpoints a domain keeps."""

    scratch_dir: str
    state_dir: str
    domain_folders: str = DOMAIN_FOLDERS
    keep: int = 1


def domain_folder(places: Places, info: DomainInfo) -> str:
    """The running domain's own folder, in which QEMU may make a socket. Raises HypervisorError."""
    found = glob.glob(os.path.join(glob.escape(places.domain_folders), f"domain-{info.id}-*"))
    if len(found) != 1:
        raise HypervisorError(
            f"the folder of domain {info.name} (domain-{info.id}-...) is not in {places.domain_folders}",
            "run vmbackup as root on the hypervisor itself; libvirt must be this host's",
        )
    return found[0]


class Beginner:
    """One begin, under the domain's lock."""

    def __init__(
        self,
        connection: Connection,
        store: IntentStore,
        places: Places,
        request: Request,
        session: str,
        policy: QuiescePolicy,
        readers: int,
    ) -> None:
        self._connection, self._store, self._places = connection, store, places
        self._request, self._session, self._policy, self._readers = request, session, policy, readers

    def begin(self, info: DomainInfo, lock: DomainLock, recovered: Sequence[Leftover]) -> LiveJob:
        """The job; it takes over the lock. Raises HypervisorError and its kinds, with nothing left behind."""
        info = self._connection.call("look at the domain", lambda raw: describe(handle(raw, info)), info.name)
        require_running(info)
        self._refuse_conflict(info, recovered)
        plan = self._connection.call(
            "plan the backup",
            lambda raw: make_plan(raw, handle(raw, info), info, self._request, apply=True),
            info.name,
        )
        if not plan.included:
            why = [f"disk {disk.target} is left out: {disk.reason}" for disk in plan.disks]
            raise HypervisorError(
                f"domain {info.name} has no disk that can be backed up", "; ".join(why) or "it has no disks"
            )
        return self._start(info, plan, lock, recovered)

    def _refuse_conflict(self, info: DomainInfo, recovered: Sequence[Leftover]) -> None:
        """Looks before the freeze: a conflicting job would block the begin for 30 s."""
        if self._connection.call("look for jobs", lambda raw: cleanup.job_type(handle(raw, info)), info.name) == 0:
            return
        socket = self._connection.call(
            "look for jobs", lambda raw: cleanup.active_job_socket(handle(raw, info)), info.name
        )
        what = f"a backup job (socket {socket})" if socket else "another job"
        hint = (
            f"try again when it has ended; 'virsh domjobinfo {info.name}' shows it, and"
            f" 'vmbackup purge {info.name}' ends one that vmbackup has left"
        )
        trouble = "; ".join(each for left in recovered for each in left.trouble)
        if trouble:
            hint = f"a run that died left work behind, and it could not be done: {trouble}"
        raise JobConflictError(f"{what} runs on domain {info.name}", hint)

    def _start(self, info: DomainInfo, plan: Plan, lock: DomainLock, recovered: Sequence[Leftover]) -> LiveJob:
        scratch.prepare_folder(self._places.scratch_dir)
        others = [other for other in self._store.all() if other.session != self._session]
        need = scratch.needed_bytes(disk.info.virtual_size for disk in plan.included)
        allowance = scratch.budget(self._places.scratch_dir, need, others)
        freezer = Freezer(self._connection, info, self._policy)
        intent = self._intent(info, plan, need, frozen=freezer.eligible())
        documents = self._connection.call(
            "read the domain's XML", lambda raw: read_documents(handle(raw, info), self._places.domain_folders)
        )
        self._store.write(intent)
        job: LiveJob | None = None
        connections = Connections(intent.socket, lambda: job.prove() if job else None)
        watch = JobWatch(self._connection, info, lambda: job.give_up() if job else None)
        try:
            with freezer:
                time = datetime.now(UTC)
                plan = self._begin(info, plan, intent)
            intent = self._store.update(intent, phase="begun", frozen=intent.frozen and freezer.thaw_failed)
            xml, anchor = self._connection.call(
                "look at the backup job", lambda raw: _begun(handle(raw, info), intent, plan), info.name
            )
            job = LiveJob(
                JobParts(
                    connection=self._connection, store=self._store, lock=lock, watch=watch, intent=intent,
                    domain=info, time=time, quiesced=freezer.outcome, connections=connections,
                    disks=_sources(connections, plan), anchor=anchor, documents=documents.files,
                    notes=[*plan.notes, *documents.notes], recovered=recovered,
                )
            )  # fmt: skip
            for disk in job.disks:
                disk.prepare(self._readers)
            paths = dict(zip(intent.disks, intent.scratch, strict=True))
            devices = {device: paths[target] for target, device in scratch_devices(xml).items()}
            watch.start(scratch.ScratchWatch(self._places.scratch_dir, intent.scratch, allowance), devices)
            return job
        except BaseException:
            connections.abort()
            self._undo(info, intent, watch, freezer)
            raise

    def _intent(self, info: DomainInfo, plan: Plan, need: int, *, frozen: bool) -> Intent:
        tag = file_tag(self._session)
        socket = os.path.join(domain_folder(self._places, info), socket_name(tag))
        if len(os.fsencode(socket)) > SOCKET_PATH_MAX:
            raise HypervisorError(f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {socket}")
        tracked = [disk for disk in plan.included if disk.tracked]
        name = CheckpointName.make(self._request.repository_id, self._session, datetime.now(UTC))
        # The new checkpoint is one of those to keep.
        kept = max(0, self._places.keep - 1)
        return Intent(
            session=self._session,
            repository_id=self._request.repository_id,
            uri=self._connection.uri,
            domain_uuid=info.uuid,
            domain_name=info.name,
            domain_id=info.id or 0,
            pid=os.getpid(),
            checkpoint=str(name) if tracked else None,
            disks=tuple(disk.target for disk in plan.included),
            paths={disk.target: disk.info.path for disk in tracked},
            socket=socket,
            scratch=tuple(
                os.path.join(self._places.scratch_dir, scratch_name(tag, disk.target)) for disk in plan.included
            ),
            scratch_bytes=need,
            was_running=info.state == "running",
            frozen=frozen,
            superseded=plan.superseded[: len(plan.superseded) - kept] if kept else plan.superseded,
        )

    def _begin(self, info: DomainInfo, plan: Plan, intent: Intent) -> Plan:
        """backupBegin; a disk whose bitmap turns out to be broken is read whole, in a second attempt."""
        while True:
            xml, checkpoint = _job_xml(plan, intent)
            raw = self._connection.live()
            try:
                handle(raw, info).backupBegin(xml, checkpoint, 0)
                return plan
            except lv.binding().libvirtError as error:
                target = broken_disk(error)
                hit = [d for d in plan.included if d.target == target and d.mode == "incremental"]
                if not hit:
                    raise translate(error, "begin the backup", info.name) from error
                reason = broken_reason(plan.parent or "")
                plan = _reread(plan, hit[0].target, reason)

    def _undo(self, info: DomainInfo, intent: Intent, watch: JobWatch, freezer: Freezer) -> None:
        """After a begin that failed, or was interrupted: job, checkpoint (a failing begin can leave it), files."""
        watch.expect_end()
        watch.stop()

        def undo(raw: Any) -> None:
            domain = handle(raw, info)
            cleanup.abort_job(domain, intent.socket)
            if intent.checkpoint and checkpoints.lookup(domain, intent.checkpoint):
                checkpoints.remove(domain, intent.checkpoint, intent.paths)

        try:
            self._connection.call("undo the begin", undo, info.name)
            cleanup.unlink_all((intent.socket, *intent.scratch))
            if not freezer.thaw_failed:
                self._store.remove(intent.session)
        except VmbackupError:
            return  # the intent stays, and the next run puts it right


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
