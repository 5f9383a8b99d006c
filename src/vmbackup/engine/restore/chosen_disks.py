"""Which disks of a restore point are meant."""

from vmbackup.errors import NotFoundError
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord


def choose_disks(point: Point, wanted: tuple[str, ...] | None) -> list[DiskRecord]:
    """The disks of these targets, None for all. Raises NotFoundError."""
    disks = {d.target: d for d in point.disks}
    if wanted is None:
        return list(disks.values())
    for target in wanted:
        if target not in disks:
            raise NotFoundError(f"restore point {point.id} has no disk '{target}'", f"it has {', '.join(disks)}")
    return [disks[target] for target in dict.fromkeys(wanted)]
