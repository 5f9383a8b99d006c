"""Begins a job on a guest that is off: a fresh bitmap in each image, then the images held and served for reading.

The bitmaps come first, so that they have all that is written from the point in time on, whoever writes it. Until the
restore point is durable nothing names them, and the intent tells the next run to take them away.
"""

import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import HypervisorError, JobConflictError, QuiesceError, VmbackupError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.disks import read_disks
from vmbackup.hypervisor.documents import read_documents
from vmbackup.hypervisor.domains import MIGRATED_AWAY, handle
from vmbackup.hypervisor.live import scratch
from vmbackup.hypervisor.live.readers import Connections, LiveDisk
from vmbackup.hypervisor.names import SOCKET_PATH_MAX, CheckpointName, file_tag, socket_name
from vmbackup.hypervisor.off.hold import OffHold
from vmbackup.hypervisor.off.hooks import OffHooks
from vmbackup.hypervisor.off.image import OffImage, off_images
from vmbackup.hypervisor.off.job import OffJob, OffParts, lost, prove
from vmbackup.hypervisor.off.writers import refuse_writers
from vmbackup.hypervisor.places import Places
from vmbackup.hypervisor.plan import DiskPlan, Plan, Request, make_plan, require_disks
from vmbackup.hypervisor.source import Anchor, Consistency, DomainInfo, QuiescePolicy
from vmbackup.hypervisor.tidy import checkpoints, cleanup
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.recovery import Leftover

_REDEFINE = 1
# virDomainShutoffReason -> how the guest went off.
_SHUT_DOWN = 1
_ENDED = {2: "destroyed", 3: "crashed", 4: "migrated away", 5: "saved with its memory", 6: "not started", 7: "reverted"}


class OffBeginner:
    """One begin, under the domain's lock."""

    def __init__(
        self,
        connection: Connection,
        store: IntentStore,
        places: Places,
        request: Request,
        session: str,
        policy: QuiescePolicy,
        hooks: OffHooks,
        readers: int,
    ) -> None:
        self._connection, self._store, self._places = connection, store, places
        self._request, self._session, self._policy, self._readers = request, session, policy, readers
        self._hooks = hooks

    def begin(self, info: DomainInfo, lock: DomainLock, recovered: Sequence[Leftover]) -> OffJob:
        """The job; it takes over the lock. Runs the hooks before, of which those after are the caller's to run.

        Raises HypervisorError and its kinds, with nothing left behind.
        """
        _require_ours(info)
        consistency, note = self._call("look at the domain", info, _consistency)
        if self._policy == "required" and consistency == "crash":
            raise QuiesceError(f"domain {info.name}: {note}", "start it, or use --quiesce auto")
        plan, images = self._connection.call("plan the backup", lambda raw: self._plan(raw, info), info.name)
        require_disks(plan)
        self._require_here(info, images)
        documents = self._call(
            "read the domain's XML", info, lambda domain: read_documents(domain, self._places.domain_folders)
        )
        scratch.prepare_folder(self._places.scratch_dir)
        tag = file_tag(self._session)
        sockets = {t: os.path.join(self._places.scratch_dir, socket_name(f"{tag}.{t}")) for t in images}
        if longest := max((path for path in sockets.values() if len(os.fsencode(path)) > SOCKET_PATH_MAX), default=""):
            raise HypervisorError(
                f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {longest}",
                "set [libvirt] scratch_dir to a shorter path",
            )
        intent = self._intent(info, plan, sockets)
        incremental = [disk.target for disk in plan.included if disk.mode == "incremental"]
        hold = OffHold(list(images.values()), sockets, dict.fromkeys(incremental, plan.parent or ""))
        connections: list[Connections] = []
        trouble = self._hooks.before()
        self._store.write(intent)
        try:
            made = self._call("make a checkpoint", info, lambda domain: _anchor(domain, intent, plan, images))
            hold.start()
            self._require_off(info)
            disks = []
            for disk in sorted(plan.included, key=_expected, reverse=True):
                connections.append(Connections(sockets[disk.target], lambda: prove(self._connection, info, hold)))
                disks.append(_source(connections[-1], disk, plan))
                disks[-1].prepare(self._readers)
        except BaseException as error:
            for each in connections:
                each.abort()
            hold.end()
            self._undo(info, intent)
            if isinstance(error, HypervisorError) and self._is_active(info):
                raise lost(self._connection, info, str(error)) from error
            raise
        return OffJob(
            OffParts(
                connection=self._connection, store=self._store, lock=lock, intent=intent, domain=info,
                time=datetime.now(UTC), consistency=consistency, quiesce_note=note + self._hooks.note, hold=hold,
                connections=connections, disks=disks, anchor=made[0], documents=documents.files,
                boot_files=documents.boot_files,
                notes=[*plan.notes, *documents.notes, *trouble, *made[1]], recovered=recovered,
            )
        )  # fmt: skip

    def _plan(self, raw: Any, info: DomainInfo) -> tuple[Plan, dict[str, OffImage]]:
        domain = handle(raw, info)
        plan = make_plan(raw, domain, info, self._request, apply=True)
        included = {disk.target for disk in plan.included}
        disks = [disk for disk in read_disks(raw, domain) if disk.target in included]
        return plan, off_images(raw, domain, disks)

    def _require_here(self, info: DomainInfo, images: Mapping[str, OffImage]) -> None:
        """Raises HypervisorError where a block device may be another guest's at this moment, here or elsewhere."""
        elsewhere = None if self._request.full else self._request.elsewhere
        for device in (device for image in images.values() for device in image.devices):
            refuse_writers(device)
            if elsewhere:
                raise HypervisorError(
                    f"domain {info.name} is off here, and its newest restore point was made on {elsewhere}:"
                    f" if it runs there, {device} must be left alone here",
                    f"back it up there; if it runs nowhere, 'vmbackup backup {info.name} --full' reads it whole here",
                )

    def _intent(self, info: DomainInfo, plan: Plan, sockets: Mapping[str, str]) -> Intent:
        tracked = [disk for disk in plan.included if disk.tracked]
        name = CheckpointName.make(self._request.repository_id, self._session, datetime.now(UTC))
        return Intent(
            session=self._session,
            repository_id=self._request.repository_id,
            uri=self._connection.uri,
            domain_uuid=info.uuid,
            domain_name=info.name,
            domain_id=0,
            pid=os.getpid(),
            checkpoint=str(name) if tracked else None,
            disks=tuple(sockets),
            paths={disk.target: disk.info.path for disk in tracked},
            socket=next(iter(sockets.values())),
            scratch=tuple(sockets.values()),
            scratch_bytes=0,
            was_running=False,
            frozen=False,
            phase="begun",
            superseded=plan.to_drop(self._places.keep),
        )

    def _require_off(self, info: DomainInfo) -> None:
        if self._is_active(info):
            raise HypervisorError("it was started")

    def _is_active(self, info: DomainInfo) -> bool:
        return bool(self._call("look at the domain", info, lambda domain: domain.isActive()))

    def _call(self, doing: str, info: DomainInfo, function: Any) -> Any:
        return self._connection.call(doing, lambda raw: function(handle(raw, info)), info.name)

    def _undo(self, info: DomainInfo, intent: Intent) -> None:
        """After a begin that failed, or was interrupted: what cannot be undone now, the next run does."""
        try:
            name = intent.checkpoint
            if name:
                self._call("undo the begin", info, lambda domain: checkpoints.remove(domain, name, intent.paths))
            cleanup.unlink_all(intent.scratch)
            self._store.remove(intent.session)
        except VmbackupError:
            return


def _require_ours(info: DomainInfo) -> None:
    """Raises HypervisorError for a guest that has moved: its images are at work on another host."""
    if info.state == MIGRATED_AWAY:
        raise HypervisorError(
            f"domain {info.name} was migrated away: its images are another host's now",
            f"it is backed up where it runs; 'virsh undefine {info.name} --checkpoints-metadata' forgets it here",
        )


def _consistency(domain: Any) -> tuple[Consistency, str]:
    """What a guest that is off had brought into order before."""
    reason = int(domain.state()[1])
    if reason == _SHUT_DOWN:
        return "filesystem", "the guest was off, shut down in order"
    how = f"it was {_ENDED[reason]}" if reason in _ENDED else "libvirt does not know how it ended"
    return "crash", f"the guest was off: {how}"


def _anchor(domain: Any, intent: Intent, plan: Plan, images: Mapping[str, OffImage]) -> tuple[Anchor | None, list[str]]:
    """A new checkpoint: a bitmap in each image that can have one, then libvirt's record of them.

    And a sentence on each image that takes none although it could, as on a file system that became read-only.
    """
    name = intent.checkpoint
    if name is None:
        return None, []
    tracked: dict[str, int] = {}
    notes = []
    if domain.isActive():
        raise HypervisorError("it was started")  # else a start could find an image in use by us
    for disk in (disk for disk in plan.included if disk.tracked):
        try:
            images[disk.target].add_bitmap(name)
            tracked[disk.target] = disk.info.virtual_size
        except JobConflictError:
            raise
        except HypervisorError as error:
            notes.append(f"disk {disk.target} got no new bitmap, and the next backup reads it whole: {error.message}")
    if not tracked:
        return None, notes
    xml = checkpoints.redefine_xml(name, str(int(time.time())), tracked)
    domain.checkpointCreateXML(xml, _REDEFINE)
    return Anchor("libvirt", name, xml, tracked), notes


def _expected(disk: DiskPlan) -> int:
    return 0 if disk.mode == "incremental" else disk.info.virtual_size


def _source(connections: Connections, disk: DiskPlan, plan: Plan) -> LiveDisk:
    return LiveDisk(
        connections, disk.info, disk.mode or "full", disk.reason, disk.earlier_size, bitmap=plan.parent or ""
    )
