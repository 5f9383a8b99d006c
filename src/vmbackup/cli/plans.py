"""What a backup would do, as JSON and for people."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vmbackup.cli.output import clean, table
from vmbackup.config.units import format_size

if TYPE_CHECKING:
    from vmbackup.hypervisor.plan import DiskPlan, Plan


def document(plans: Iterable["Plan"]) -> dict[str, Any]:
    """The JSON document of `backup --dry-run`."""
    return {"points": [], "plans": [_plan(plan) for plan in plans], "failed": []}


def _plan(plan: "Plan") -> dict[str, Any]:
    return {
        "domain": plan.domain.name,
        "domain_uuid": plan.domain.uuid,
        "disks": [
            {
                "target": disk.target,
                "format": disk.info.format,
                "virtual_size": disk.info.virtual_size,
                "mode": disk.mode,
                "reason": disk.reason,
                "dirty_bytes": disk.dirty_bytes,
            }
            for disk in plan.disks
        ],
        "notes": list(plan.notes),
    }


def text(plan: "Plan") -> str:
    """The plan of one domain: a line a disk, and why it is read whole or left out."""
    titles = ("DISK", "FORMAT", "SIZE", "MODE", "WOULD READ")
    lines = [f"{clean(plan.domain.name)}:", table(titles, map(_row, plan.disks), right=("SIZE", "WOULD READ"))]
    lines += [f"  {disk.target}: {clean(disk.reason)}" for disk in plan.disks if disk.reason]
    lines += [f"  {clean(note)}" for note in plan.notes]
    return "\n".join(lines)


def _row(disk: "DiskPlan") -> tuple[str, ...]:
    reads = "nothing"
    if disk.mode == "incremental":
        reads = "what changed" if disk.dirty_bytes is None else f"up to {format_size(disk.dirty_bytes)}"
    elif disk.mode is not None:
        reads = "all data"
    size = format_size(disk.info.virtual_size)
    return (disk.target, disk.info.format, size, disk.mode or "left out", reads)
