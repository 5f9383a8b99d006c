"""A running backup of a guest that is off: read, sealed, ended; given up when the guest is started."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from vmbackup.errors import HypervisorError, PointInTimeLostError, VmbackupError
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.live.readers import AGAIN, Connections, LiveDisk
from vmbackup.hypervisor.off.hold import OffHold
from vmbackup.hypervisor.source import Anchor, BootFile, Consistency, DomainInfo
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.recovery import Leftover
from vmbackup.hypervisor.tidy.settled import settle_checkpoints


@dataclass
class OffParts:
    """What a begun job is made of."""

    connection: Connection
    store: IntentStore
    lock: DomainLock
    intent: Intent
    domain: DomainInfo
    time: datetime
    consistency: Consistency
    quiesce_note: str
    hold: OffHold
    connections: Sequence[Connections]
    disks: Sequence[LiveDisk]
    anchor: Anchor | None
    documents: Mapping[str, bytes]
    boot_files: Sequence[BootFile]
    notes: list[str]
    recovered: Sequence[Leftover]


class OffJob:
    """A GuestJob of a domain that is off."""

    def __init__(self, parts: OffParts) -> None:
        self._connection, self._store, self._lock = parts.connection, parts.store, parts.lock
        self._intent, self._hold, self._connections = parts.intent, parts.hold, parts.connections
        self.domain, self.time, self.disks = parts.domain, parts.time, parts.disks
        self.consistency, self.quiesce_note = parts.consistency, parts.quiesce_note
        self.freeze_seconds: float | None = None
        self.anchor, self.documents, self.notes = parts.anchor, parts.documents, parts.notes
        self.boot_files = parts.boot_files
        self.recovered = parts.recovered
        self.seal_seconds = 0.0
        self.stood_still = True  # of itself
        self._sealed = self._finished = False

    def check(self) -> None:
        """See GuestJob."""
        self.prove()

    def prove(self) -> None:
        """Raises PointInTimeLostError unless the images are as they were at the job's beginning."""
        prove(self._connection, self.domain, self._hold)

    def seal(self) -> None:
        """See GuestJob. Raises HypervisorError while reads are outstanding."""
        if self._sealed:
            return
        started = time.monotonic()
        if outstanding := sum(each.outstanding for each in self._connections):
            raise HypervisorError(f"{outstanding} reads are outstanding: nothing can be sealed yet")
        self.prove()
        for each in self._connections:
            each.close()
        self._hold.end()
        self._sealed = True
        self.seal_seconds = time.monotonic() - started

    def finish(self, committed: bool) -> None:
        """See GuestJob. Never raises: what could not be cleaned up is in `notes`, and the next run does it."""
        if self._finished:
            return
        if committed and not self._sealed:
            raise ValueError("a job that is not sealed must not be committed")
        self._finished = True
        try:
            if self._clean(committed):
                self._store.remove(self._intent.session)
        except Exception as error:  # the run's own outcome must not be hidden by its cleaning up
            self.notes.append(f"cleaning up after the run failed: {error}")
        finally:
            self._lock.release()

    def _clean(self, committed: bool) -> bool:
        for each in self._connections:
            each.abort()
        self._hold.end()
        if committed:
            self._intent = self._store.update(self._intent, phase="committed")
        return settle_checkpoints(self._connection, self.domain, self._intent, committed=committed, notes=self.notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(committed=False)


def prove(connection: Connection, info: DomainInfo, hold: OffHold) -> None:
    """Raises PointInTimeLostError unless the images are as they were when the hold began."""
    trouble = hold.lost()
    if trouble is not None:
        raise lost(connection, info, trouble)


def lost(connection: Connection, info: DomainInfo, trouble: str) -> PointInTimeLostError:
    """Why the images are not what they were: the guest was started, or what is known."""
    try:
        running = connection.call("look at the domain", lambda raw: bool(handle(raw, info).isActive()), info.name)
    except VmbackupError:
        running = False
    what = f"domain {info.name} was started while its disks were read: it goes on"
    if not running:
        what = f"the disks of domain {info.name}, which is off, were not left alone while they were read: {trouble}"
    return PointInTimeLostError(what, AGAIN)
