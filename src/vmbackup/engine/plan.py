"""What a backup run would do, with nothing begun, pinned or frozen."""

from vmbackup.engine.backup import SOURCE, BackupOptions, _anchor
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Plan
from vmbackup.repository.repository import Repository, newest


def plan(host: Host, repository: Repository, domain_name: str, options: BackupOptions) -> Plan:
    """The disks that `backup` would read now, how and why. Raises VmbackupError as `backup` does."""
    domain = host.domain(domain_name)
    found = repository.read_points(repository.lineage(SOURCE, domain.uuid)).points
    parent = newest(found)
    sessions = {point.id.rsplit("-", 1)[1] for point in found}

    def committed(name: CheckpointName) -> bool | None:
        return name.session in sessions if name.repository_id == repository.id else None

    return host.plan(
        domain,
        repository.id,
        _anchor(parent),
        full=options.full,
        earlier={disk.target: disk.virtual_size for disk in parent.disks} if parent else {},
        committed=committed,
    )
