"""A guest that is off: its disks for a restore in place, held against everything of ours that works on it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.disks import StoppedDisk, read_stopped
from vmbackup.hypervisor.domains import describe, handle
from vmbackup.hypervisor.host import Host
from vmbackup.hypervisor.images import image_info
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy.half_done import HalfDone
from vmbackup.hypervisor.tidy.locks import DomainLock

_SOUND = ("auto",)
_START_PAUSED, _START_AUTODESTROY = 1, 2


@dataclass(frozen=True)
class StoppedGuest:
    """A guest that is off, its lock held. `disks` are those that have a file or device, by target."""

    domain: DomainInfo
    disks: dict[str, StoppedDisk]
    half_done: HalfDone
    _host: Host
    _lock: DomainLock

    def others_with(self, path: str) -> list[str]:
        """The names of other guests that have that file or device as a disk, or below one."""
        users = [user for user in self._host.disk_users(Path(path)) if user.uuid != self.domain.uuid]
        return sorted({f"{user.domain} (as its backing file)" if user.below else user.domain for user in users})

    def mark(self, targets: Iterable[str], point: str, kept: str | None) -> None:
        """These disks are about to change: until `whole`, no backup believes their bitmaps."""
        self._host.half_done.mark(self.domain.uuid, self.domain.name, targets, point, kept)

    def whole(self, targets: Iterable[str]) -> None:
        """These disks are what they were to become."""
        self._host.half_done.clear(self.domain.uuid, targets)

    def bitmaps_fit(self, targets: Iterable[str]) -> bool:
        """Whether all bitmaps of ours in these disks' images are sound: those that QEMU closed in order."""
        for disk in map(self.disks.__getitem__, targets):
            bitmaps = image_info(disk.path, disk.format).bitmaps if disk.format == "qcow2" else {}
            if any(CheckpointName.parse(name) and flags != _SOUND for name, flags in bitmaps.items()):
                return False
        return True

    def drop_checkpoints(self) -> None:
        """Takes all our checkpoints and bitmaps off the guest: the next backup reads it whole.

        Nobody may have the images open. Raises HypervisorError.
        """
        report = self._host.purge(self.domain, lock=self._lock)
        if report.trouble:
            raise HypervisorError(
                f"checkpoints that no longer fit could not be taken off {self.domain.name}: {report.trouble[0]}",
                f"'vmbackup purge {self.domain.name}' tries again",
            )


@contextmanager
def stopped_guest(host: Host, domain: DomainInfo) -> Iterator[StoppedGuest]:
    """Holds a guest that is off. Raises HypervisorError where it is not, or has saved memory; JobConflictError."""
    host.require_here("restoring in place", "restore to a folder with --output")
    lock = host.reserve(domain)
    try:
        info, disks = host.connection.call("look at the domain", lambda raw: _look(raw, domain), domain.name)
        yield StoppedGuest(info, {disk.target: disk for disk in disks}, host.half_done.of(info.uuid), host, lock)
    finally:
        lock.release()


def _look(raw: Any, domain: DomainInfo) -> tuple[DomainInfo, list[StoppedDisk]]:
    found = handle(raw, domain)
    info = describe(found)
    if info.active:
        raise HypervisorError(
            f"domain {info.name} is {info.state}: only the disks of a stopped guest are restored in place",
            f"shut it down ('virsh shutdown {info.name}'), or restore to a folder with --output",
        )
    if found.hasManagedSaveImage(0):
        raise HypervisorError(
            f"domain {info.name} has saved memory, which belongs to its disks as they are now",
            f"start and shut it down, or throw the memory away: virsh managedsave-remove {info.name}",
        )
    return info, read_stopped(raw, found)


@contextmanager
def started_paused(host: Host, domain: DomainInfo) -> Iterator[None]:
    """A stopped guest with QEMU at work and its processors standing still, so that its disks can be backed up.

    It is ended again, by libvirt itself if we die. Raises HypervisorError where it cannot be started.
    """
    flags = _START_PAUSED | _START_AUTODESTROY
    host.connection.call(
        "start the guest, paused", lambda raw: handle(raw, domain).createWithFlags(flags), domain.name, again=False
    )
    try:
        yield
    finally:
        host.connection.call("end the paused guest", lambda raw: handle(raw, domain).destroy(), domain.name)
