"""A running backup job of a live domain: read, watched, sealed, ended."""

import contextlib
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from vmbackup.errors import HypervisorError, NotFoundError, PointInTimeLostError, VmbackupError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import PAUSED_BY_ITSELF, handle
from vmbackup.hypervisor.failures import translated
from vmbackup.hypervisor.live.quiesce import Quiesced, let_go_after_death
from vmbackup.hypervisor.live.readers import AGAIN, Connections, LiveDisk
from vmbackup.hypervisor.live.watch import JobWatch
from vmbackup.hypervisor.source import Anchor, BootFile, Consistency, DomainInfo
from vmbackup.hypervisor.tidy import cleanup
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.recovery import Leftover
from vmbackup.hypervisor.tidy.settled import settle_checkpoints

# Seconds between the two proofs of the seal. After an abort QEMU drops its copy-before-write filter first; the job,
# libvirt's record of it and the export follow (0.3 s idle, 0.7 s with 2 cores under 7 busy processes, 3 s once).
# Meanwhile a proof is held up or fails: none that began after a read of live data passed in 35 tries, idle or busy.
# The wait is for what libvirt's answers cannot tell: an end that QEMU came to by itself.
PROOF_WAIT = 1.0
# Seconds after NBD's good-byes, before the abort: QEMU before 7.2.14 could crash with clients attached.
_DISCONNECT_WAIT = 0.1
_BACKUP_BLOCK_JOB = 5  # VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP


@dataclass
class JobParts:
    """What a begun job is made of; `begin` hands it over."""

    connection: Connection
    store: IntentStore
    lock: DomainLock
    watch: JobWatch
    intent: Intent
    domain: DomainInfo
    time: datetime
    quiesced: Quiesced
    connections: Connections
    disks: Sequence[LiveDisk]
    anchor: Anchor | None
    documents: Mapping[str, bytes]
    boot_files: Sequence[BootFile]
    notes: list[str]
    recovered: Sequence[Leftover]
    stood_still: bool = False


class LiveJob:
    """A GuestJob of a running domain. `recovered` tells what dead runs had left and was put right before."""

    def __init__(self, parts: JobParts) -> None:
        self._connection, self._store, self._lock = parts.connection, parts.store, parts.lock
        self._watch, self._intent, self._connections = parts.watch, parts.intent, parts.connections
        self.domain, self.time, self.disks = parts.domain, parts.time, parts.disks
        self.consistency: Consistency = parts.quiesced.consistency
        self.freeze_seconds, self.quiesce_note = parts.quiesced.seconds, parts.quiesced.note
        self.anchor, self.documents, self.notes = parts.anchor, parts.documents, parts.notes
        self.boot_files = parts.boot_files
        self.recovered, self.stood_still = parts.recovered, parts.stood_still
        self.seal_seconds = 0.0
        self._sealed = self._finished = self._ended = False
        self._ending = threading.RLock()

    def check(self) -> None:
        """See GuestJob."""
        self._watch.look()

    def seal(self) -> None:
        """See GuestJob. Raises HypervisorError while reads are outstanding."""
        if self._sealed:
            return
        started = time.monotonic()
        if self._connections.outstanding:
            raise HypervisorError(f"{self._connections.outstanding} reads are outstanding: nothing can be sealed yet")
        self.prove()
        time.sleep(PROOF_WAIT)
        self.prove()
        self._watch.expect_end()
        self._connections.close()
        time.sleep(_DISCONNECT_WAIT)
        self._end()
        self._tell_of_a_crash()
        self._sealed = True
        self.seal_seconds = time.monotonic() - started

    def prove(self) -> None:
        """Raises PointInTimeLostError unless the job is alive now, HypervisorError where its scratch lost something.

        Alive: the same QEMU, our socket, a block job for each disk, and none of them told to end.
        """
        self._watch.raise_if_lost()

        def facts(raw: Any) -> str | None:
            domain = handle(raw, self.domain)
            if domain.ID() != self.domain.id:
                return "the domain was stopped or restarted"
            if cleanup.active_job_socket(domain) != self._intent.socket:
                return "the backup job is gone"
            for disk in self.disks:
                if domain.blockJobInfo(disk.info.target, 0).get("type") != _BACKUP_BLOCK_JOB:
                    return f"the backup job of disk {disk.info.target} is gone"
            if cleanup.running_bytes(domain) < sum(disk.size for disk in self.disks):
                return "the backup job was told to end"
            return None

        try:
            trouble = self._connection.call("look at the backup job", facts, self.domain.name)
        except VmbackupError as error:
            trouble = str(error)
        self._watch.raise_if_lost()
        self._watch.require_scratch()
        if trouble:
            raise PointInTimeLostError(
                f"the point in time of {self.domain.name} cannot be proved: {trouble}",
                AGAIN,
            )

    def _tell_of_a_crash(self) -> None:
        """While a backup runs libvirt cannot do as on_crash says, and leaves the guest as QEMU stopped it (9.0)."""

        def stopped(raw: Any) -> bool:
            return tuple(handle(raw, self.domain).state()) == PAUSED_BY_ITSELF

        with contextlib.suppress(VmbackupError):
            if self._intent.was_running and self._connection.call("look at the guest", stopped, self.domain.name):
                name = shlex.quote(self.domain.name)
                self.notes.append(
                    "QEMU stopped the guest during the run, as when its system crashes, and libvirt leaves it paused:"
                    f" 'virsh reset {name} && virsh resume {name}' restarts it"
                )

    def give_up(self) -> None:
        """Ends the job from the watch's thread, before a full scratch stops the guest, or to let it go on."""
        self._connections.abort()
        self._try("end the backup job", self._end)

    def finish(self, committed: bool) -> None:
        """See GuestJob. Never raises: what could not be cleaned up is in `notes`, and the next run does it."""
        if self._finished:
            return
        if committed and not self._sealed:
            raise ValueError("a job that is not sealed must not be committed")
        self._finished = True
        try:
            clean = self._finish_committed() if committed else self._finish_failed()
            clean = self._thaw_late() and clean
            clean = self._no_files_left() and clean
            if clean:
                self._store.remove(self._intent.session)
        except Exception as error:  # the run's own outcome must not be hidden by its cleaning up
            self.notes.append(f"cleaning up after the run failed: {error}")
        finally:
            self._watch.stop()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(committed=False)

    def _finish_committed(self) -> bool:
        self._intent = self._store.update(self._intent, phase="committed")
        return self._settle(committed=True)

    def _finish_failed(self) -> bool:
        self._watch.expect_end()
        if self._connections.outstanding:
            self._connections.abort()
        else:
            self._connections.close()
        clean = self._try("end the backup job", self._end)
        return self._settle(committed=False) and clean

    def _end(self) -> None:
        """Ends our job if it runs, lets the guest go on if our scratch stopped it, removes our files."""
        with self._ending:
            if self._ended:
                return
            self._connection.call("end the backup job", self._end_on, self.domain.name)
            self._watch.let_scratch_go()
            cleanup.unlink_all(self._files)
            self._ended = True

    @property
    def _files(self) -> tuple[str, ...]:
        return self._intent.socket, *self._intent.scratch

    def _no_files_left(self) -> bool:
        """Such as on a file system that an error made read-only: they wait for the next run, and reserve no space."""
        left = cleanup.left_of(self._files)
        if left:
            self._intent = self._store.update(self._intent, scratch_bytes=0)
            self.notes.append(f"{left} (the next run tries again)")
        return left is None

    def _end_on(self, raw: Any) -> None:
        domain = handle(raw, self.domain)
        self._watch.expect_end()
        cleanup.abort_job(domain, self._intent.socket)
        if self._watch.scratch_failed:
            cleanup.resume_if_paused_by_error(domain)

    def _settle(self, *, committed: bool) -> bool:
        return settle_checkpoints(self._connection, self.domain, self._intent, committed=committed, notes=self.notes)

    def _thaw_late(self) -> bool:
        """A guest whose thaw failed gets one more; then it is left to the watchdog and the next run."""
        frozen, paused = self._intent.frozen, self._intent.paused
        if not (frozen or paused):
            return True

        def let_go(raw: Any) -> bool:
            return let_go_after_death(handle(raw, self.domain), frozen=frozen, paused=paused)

        return bool(self._connection.call("thaw the guest", let_go))

    def _try(self, doing: str, function: Any) -> bool:
        try:
            with translated(doing, self.domain.name):
                function()
        except NotFoundError:
            return True
        except VmbackupError as error:
            self.notes.append(f"could not {doing}: {error} (the next run tries again)")
            return False
        return True
