"""What a backup run would do, with nothing begun, pinned or frozen."""

from dataclasses import replace

from vmbackup.engine.backup.run import BackupOptions
from vmbackup.engine.backup.wholereads import scheduled
from vmbackup.engine.chain import SOURCE, anchor_of, committed_in, earlier_disks
from vmbackup.engine.identity import host_identity
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.plan import Plan
from vmbackup.repository import damage
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository, newest
from vmbackup.repository.stock import Lost


def plan(host: Host, repository: Repository, domain_name: str, options: BackupOptions) -> Plan:
    """The disks that `backup` would read now, how and why. Raises VmbackupError as `backup` does."""
    domain = host.domain(domain_name)
    found = repository.read_points(repository.lineage(SOURCE, domain.uuid))
    parent = newest(found.points)
    plan = host.plan(
        domain,
        repository.id,
        anchor_of(parent),
        full=options.full,
        earlier=earlier_disks(parent, host_identity()),
        reread=scheduled(found.points, parent, options.reread_every),
        committed=committed_in(repository, found.points, found.forgotten),
    )
    return replace(plan, notes=(*plan.notes, *_lost(repository, parent)))


def _lost(repository: Repository, parent: Point | None) -> list[str]:
    """What of the newest restore point is missing or damaged, and would be read again."""
    if parent is None:
        return []
    group = parent.lineage.group
    records = set(damage.read(repository.store, group).values())
    lost = Lost(repository.new_catalog(group), parent.table.values(), (), records, parent.lineage.id)
    return [f"{problem}: what the guest has of it would be read again" for problem in lost.told]
