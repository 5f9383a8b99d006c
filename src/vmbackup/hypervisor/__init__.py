"""All that knows libvirt and QEMU: `Host` is the front door; libvirt itself is imported when it opens."""

from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.host import Host
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Committed, DiskPlan, Plan
from vmbackup.hypervisor.source import (
    Anchor,
    DiskInfo,
    DiskReader,
    DiskSource,
    DomainInfo,
    GuestJob,
)
from vmbackup.hypervisor.tidy.purge import PurgeReport
from vmbackup.hypervisor.tidy.recovery import Leftover

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
