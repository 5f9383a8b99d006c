"""Takes everything of ours off a domain, so that nothing stands in the way of snapshots or undefine."""

from dataclasses import dataclass
from typing import Any

from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import handle
from vmbackup.hypervisor.names import PREFIX, CheckpointName
from vmbackup.hypervisor.remote.remote import is_remote
from vmbackup.hypervisor.shown import hide
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy import bitmaps, checkpoints, cleanup
from vmbackup.hypervisor.tidy.intents import IntentStore


@dataclass(frozen=True)
class PurgeReport:
    """What was taken off. `trouble` are sentences on what could not be."""

    checkpoints: tuple[str, ...]
    bitmaps: tuple[str, ...]
    job_ended: bool
    trouble: tuple[str, ...]


def purge_domain(
    connection: Connection, store: IntentStore, info: DomainInfo, repository_id: str | None
) -> PurgeReport:
    """Under the domain's lock, after recovery. Foreign checkpoints and bitmaps are left alone."""
    report = connection.call("purge the domain", lambda raw: _Purge(handle(raw, info), repository_id).run(), info.name)
    if not report.trouble:
        for intent in store.of_domain(info.uuid):
            if repository_id in (None, intent.repository_id):
                store.remove(intent.session)
    return report


class _Purge:
    def __init__(self, domain: Any, repository_id: str | None) -> None:
        self._domain, self._repository_id = domain, repository_id
        self._trouble: list[str] = []
        self._disks = dict.fromkeys(bitmaps.qcow2_disks(domain), "")

    def run(self) -> PurgeReport:
        """Job, then checkpoints, then bitmaps that libvirt knows nothing of."""
        ended = self._end_stale_job()
        names = [str(name) for name in checkpoints.own_checkpoints(self._domain, self._repository_id)]
        removed = [name for name in names if self._remove(name)]
        orphans = [name for name in self._orphans(names) if self._remove(name)]
        if self._repository_id is None:
            self._try("what its XML shows of backups", lambda: hide(self._domain))
        return PurgeReport(tuple(removed), tuple(orphans), ended, tuple(self._trouble))

    def _end_stale_job(self) -> bool:
        """A backup job on a socket of ours: its run is dead, for we hold the domain's lock."""
        socket = cleanup.active_job_socket(self._domain) or ""
        if not socket.rpartition("/")[2].startswith(PREFIX):
            return False
        return cleanup.abort_job(self._domain, socket)

    def _orphans(self, known: list[str]) -> list[str]:
        """Bitmaps of ours in the images that have no metadata. A running QEMU does not show those born in it."""
        if is_remote(self._domain.connect()):
            return []
        found, trouble = bitmaps.names_in(self._domain)
        self._trouble += trouble
        ours = [name for name in map(CheckpointName.parse, sorted(found - set(known))) if name]
        return [str(name) for name in ours if self._repository_id in (None, name.repository_id)]

    def _remove(self, name: str) -> bool:
        return self._try(name, lambda: checkpoints.remove(self._domain, name, self._disks))

    def _try(self, name: str, function: Any) -> bool:
        try:
            return bool(function())
        except Exception as error:  # one that cannot go must not keep the others
            self._trouble.append(f"{name} could not be removed: {error}")
            return False
