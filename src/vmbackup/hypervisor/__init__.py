"""All that knows libvirt and QEMU: `Host` is the front door; libvirt itself is imported when it opens."""

from vmbackup.hypervisor.check import Check
from vmbackup.hypervisor.host import Host
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Committed, DiskPlan, Plan
from vmbackup.hypervisor.purge import PurgeReport
from vmbackup.hypervisor.recovery import Leftover
from vmbackup.hypervisor.source import (
    Anchor,
    DiskInfo,
    DiskReader,
    DiskSource,
    DomainInfo,
    GuestJob,
)

__all__ = [
    "Anchor",
    "Check",
    "CheckpointName",
    "Committed",
    "DiskInfo",
    "DiskPlan",
    "DiskReader",
    "DiskSource",
    "DomainInfo",
    "GuestJob",
    "Host",
    "Leftover",
    "Plan",
    "PurgeReport",
]
