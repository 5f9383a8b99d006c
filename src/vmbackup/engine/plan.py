"""What a backup run would do, with nothing begun, pinned or frozen."""

from vmbackup.engine.backup import BackupOptions
from vmbackup.engine.chain import SOURCE, anchor_of, committed_in, earlier_disks
from vmbackup.engine.identity import host_identity
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.plan import Plan
from vmbackup.repository.repository import Repository, newest


def plan(host: Host, repository: Repository, domain_name: str, options: BackupOptions) -> Plan:
    """The disks that `backup` would read now, how and why. Raises VmbackupError as `backup` does."""
    domain = host.domain(domain_name)
    found = repository.read_points(repository.lineage(SOURCE, domain.uuid))
    parent = newest(found.points)
    return host.plan(
        domain,
        repository.id,
        anchor_of(parent),
        full=options.full,
        earlier=earlier_disks(parent, host_identity()),
        committed=committed_in(repository, found.points, found.forgotten),
    )
