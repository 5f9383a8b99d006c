"""Prepares the begin of a job: everything slow before the freeze, and the intent on disk before the begin."""

import glob
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Required, TypedDict

from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.documents import read_documents
from vmbackup.hypervisor.domains import describe, handle, require_running
from vmbackup.hypervisor.live import scratch
from vmbackup.hypervisor.live.beginning import Beginning, Prepared
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.live.quiesce import Freezer
from vmbackup.hypervisor.names import SOCKET_PATH_MAX, CheckpointName, file_tag, scratch_name, socket_name
from vmbackup.hypervisor.places import Places, is_session
from vmbackup.hypervisor.plan import Committed, Plan, Request, make_plan, require_disks
from vmbackup.hypervisor.remote.scratch import RemoteScratch, remote_budget
from vmbackup.hypervisor.source import Anchor, DiskInfo, DomainInfo, FreezeOptions, QuiescePolicy
from vmbackup.hypervisor.tidy import cleanup
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.recovery import Leftover


class Wanted(TypedDict, total=False):
    """What `Host.begin` is told of a run."""

    lock: DomainLock | None
    repository_id: Required[str]
    session: Required[str]
    parent: Required[Anchor | None]
    full: bool
    quiesce: QuiescePolicy
    freezing: FreezeOptions
    earlier: Mapping[str, DiskInfo] | None
    reread: Mapping[str, str] | None
    committed: Committed | None
    readers: int
    elsewhere: str | None


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
        freezing: FreezeOptions,
        readers: int,
    ) -> None:
        self._connection, self._store, self._places = connection, store, places
        self._request, self._session, self._policy, self._readers = request, session, policy, readers
        self._freezing = freezing

    def begin(self, info: DomainInfo, lock: DomainLock, recovered: Sequence[Leftover]) -> LiveJob:
        """The job; it takes over the lock. Raises HypervisorError and its kinds, with nothing left behind."""
        return self.prepare(info, lock, recovered).run()

    def prepare(self, info: DomainInfo, lock: DomainLock, recovered: Sequence[Leftover]) -> Beginning:
        """Everything slow before the freeze; the intent is on disk from here on. Raises as `begin` does."""
        info = self._connection.call("look at the domain", lambda raw: describe(handle(raw, info)), info.name)
        require_running(info)
        self._refuse_conflict(info, recovered)
        plan = self._connection.call(
            "plan the backup",
            lambda raw: make_plan(raw, handle(raw, info), info, self._request, apply=True),
            info.name,
        )
        require_disks(plan)
        return self._prepared(info, plan, lock, recovered)

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

    def _prepared(self, info: DomainInfo, plan: Plan, lock: DomainLock, recovered: Sequence[Leftover]) -> Beginning:
        folder, reach = self._places.scratch_dir, self._places.reach
        tls = reach.tls() if reach else None
        others = [other for other in self._store.all() if other.session != self._session]
        need = scratch.needed_bytes(disk.info.virtual_size for disk in plan.included)
        if reach:
            allowance = remote_budget(self._connection, folder, need, others)
        else:
            scratch.prepare_folder(folder)
            allowance = scratch.budget(folder, need, others)
        freezer = Freezer(self._connection, info, self._policy, self._freezing)
        intent = self._intent(info, plan, need, [other.socket for other in others], frozen=freezer.eligible())
        documents = self._connection.call(
            "read the domain's XML", lambda raw: read_documents(handle(raw, info), self._places.domain_folders)
        )
        self._store.write(intent)
        watch = (
            RemoteScratch(self._connection, info, folder, intent.scratch, allowance)
            if reach
            else scratch.ScratchWatch(folder, intent.scratch, allowance)
        )
        parts = Prepared(info, plan, intent, lock, freezer, documents, recovered, watch, self._readers, reach, tls)
        return Beginning(self._connection, self._store, parts)

    def _socket(self, info: DomainInfo, tag: str, taken: Sequence[str]) -> str:
        if self._places.reach:
            return self._places.reach.place(tag, taken)
        folders = [domain_folder(self._places, info)]
        if is_session(self._connection.uri):  # QEMU is the user's own, and may bind where he may; a home can be deep
            folders.append(self._places.scratch_dir)
        sockets = [os.path.join(folder, socket_name(tag)) for folder in folders]
        short = [socket for socket in sockets if len(os.fsencode(socket)) <= SOCKET_PATH_MAX]
        if not short:
            raise HypervisorError(
                f"the socket's path is longer than {SOCKET_PATH_MAX} bytes: {sockets[-1]}",
                "set [libvirt] scratch_dir to a shorter path" if len(folders) > 1 else "",
            )
        return short[0]

    def _intent(self, info: DomainInfo, plan: Plan, need: int, taken: Sequence[str], *, frozen: bool) -> Intent:
        tag = file_tag(self._session)
        socket = self._socket(info, tag, taken)
        tracked = [disk for disk in plan.included if disk.tracked]
        name = CheckpointName.make(self._request.repository_id, self._session, datetime.now(UTC))
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
            superseded=plan.to_drop(self._places.keep),
        )
