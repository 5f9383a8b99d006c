"""Puts right what dead runs left on a domain: killed at any instant, by a signal or with the whole host."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmbackup.errors import NotFoundError, VmbackupError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import ASLEEP
from vmbackup.hypervisor.live.quiesce import let_go_after_death
from vmbackup.hypervisor.live.scratch import free_bytes
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Committed
from vmbackup.hypervisor.tidy import checkpoints, cleanup
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore


@dataclass(frozen=True)
class Leftover:
    """A dead run that was put right.

    `session` is its id; `committed` whether its restore point is durable (None:
    another repository has to tell, and its checkpoint waits for that); `done` what was cleaned up, as sentences;
    `trouble` what could not be, and will be tried again.
    """

    session: str
    repository_id: str
    domain: str
    checkpoint: str | None
    committed: bool | None
    done: tuple[str, ...]
    trouble: tuple[str, ...]


def recover_domain(
    connection: Connection, store: IntentStore, intents: Sequence[Intent], committed: Committed
) -> list[Leftover]:
    """Puts right the dead runs of one domain; its lock is held by the caller, so every intent is a dead run's."""
    return [_Recovery(connection, store, intent).run(committed) for intent in intents]


def thaw_domain(connection: Connection, store: IntentStore, intents: Sequence[Intent]) -> list[Leftover]:
    """Thaws the guest where dead runs may have left it frozen, and does nothing else; as `recover_domain`."""
    return [_Recovery(connection, store, intent).thaw() for intent in intents if intent.frozen or intent.paused]


class _Recovery:
    """One dead run. Each step stands for itself: one that fails leaves the others to be done."""

    def __init__(self, connection: Connection, store: IntentStore, intent: Intent) -> None:
        self._connection, self._store, self._intent = connection, store, intent
        self._done: list[str] = []
        self._trouble: list[str] = []

    def run(self, committed: Committed) -> Leftover:
        """Thaw, end the job, remove files, decide on the checkpoint."""
        intent = self._intent
        self._step("thaw the guest", self._thaw)
        if not self._step("end the backup job", self._end_job):
            return self._leftover(None)  # the files are in use, the checkpoint may be: all that later
        gone = cleanup.unlink_all(files := (intent.socket, *intent.scratch))
        if gone:
            self._done.append(f"removed {len(gone)} files of scratch and socket")
        if left := cleanup.left_of(files):
            self._trouble.append(left)
        verdict = self._verdict(committed)
        if verdict is True:
            for name in intent.superseded:
                self._step(f"delete checkpoint {name}", lambda domain, name=name: self._remove(domain, name))
        elif verdict is False and intent.checkpoint:
            self._step("delete the uncommitted checkpoint", lambda domain: self._remove(domain, intent.checkpoint))
        if verdict is not None and not self._trouble:
            self._store.remove(intent.session)
        return self._leftover(verdict)

    def thaw(self) -> Leftover:
        """Only that: what is slow comes when all guests are thawed."""
        self._step("thaw the guest", self._thaw)
        return self._leftover(None)

    def _leftover(self, verdict: bool | None) -> Leftover:
        intent = self._intent
        return Leftover(
            session=intent.session,
            repository_id=intent.repository_id,
            domain=intent.domain_name,
            checkpoint=intent.checkpoint,
            committed=verdict,
            done=tuple(self._done),
            trouble=tuple(self._trouble),
        )

    def _verdict(self, committed: Committed) -> bool | None:
        if self._intent.phase == "committed":
            return True
        name = CheckpointName.parse(self._intent.checkpoint or "")
        # A run with no checkpoint (raw disks only) left nothing that depends on its commit.
        return committed(name) if name else False

    def _thaw(self, domain: Any) -> None:
        intent = self._intent
        if not (intent.frozen or intent.paused):
            return
        same = domain.ID() == intent.domain_id
        if same and not let_go_after_death(domain, frozen=intent.frozen, paused=intent.paused):
            self._trouble.append(_still_frozen(domain, intent))
            return
        self._intent = self._store.update(intent, frozen=False, paused=False)
        self._done.append("thawed the guest" if intent.frozen else "let the guest go on, which was paused")

    def _end_job(self, domain: Any) -> None:
        if self._intent.phase == "beginning":
            cleanup.wait_for_begin(domain, self._intent.socket, self._intent.disks)
        # Measured before the end of the job frees it: a guest that stands still for our scratch goes on.
        scratch_full = self._intent.was_running and self._scratch_is_full()
        if cleanup.abort_job(domain, self._intent.socket):
            self._done.append("ended its backup job")
            if scratch_full and cleanup.resume_if_paused_by_error(domain):
                self._done.append("resumed the guest, which the full scratch had paused")

    def _scratch_is_full(self) -> bool:
        folders = {path.rpartition("/")[0] for path in self._intent.scratch}
        try:
            # QEMU's qcow2 grows by clusters of 64 KiB: less than one is full, some leeway for others' writes.
            return any(free_bytes(folder) < 1 << 20 for folder in folders)
        except VmbackupError:
            return False

    def _remove(self, domain: Any, name: str | None) -> None:
        if name and checkpoints.remove(domain, name, self._intent.paths):
            self._done.append(f"deleted checkpoint {name}")

    def _step(self, doing: str, function: Any) -> bool:
        def run(raw: Any) -> None:
            function(raw.lookupByUUIDString(self._intent.domain_uuid))

        try:
            self._connection.call(doing, run, self._intent.domain_name)
        except NotFoundError:
            return True  # the domain is gone, and with it everything of it that this step is about
        except VmbackupError as error:
            self._trouble.append(f"could not {doing}: {error}")
            return False
        return True


def _still_frozen(domain: Any, intent: Intent) -> str:
    if domain.state()[0] not in ASLEEP:
        return "the guest may be frozen and its agent does not answer"
    name = shlex.quote(intent.domain_name)
    return f"the guest may be frozen, and cannot be thawed before it goes on ('virsh resume {name}')"
