"""How a guest's restore points and libvirt's checkpoints belong together."""

from collections.abc import Sequence

from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.plan import Committed
from vmbackup.hypervisor.source import Anchor
from vmbackup.repository.layout import short_id
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository

SOURCE = "libvirt"


def anchor_of(parent: Point | None) -> Anchor | None:
    """The checkpoint that an incremental from `parent` starts at; None where it left none."""
    anchor = parent.public["anchor"] if parent else None
    return Anchor(**anchor) if anchor and anchor["kind"] == SOURCE else None


def earlier_sizes(parent: Point | None) -> dict[str, int]:
    """Bytes of the disks of `parent`, by target."""
    return {disk.target: disk.virtual_size for disk in parent.disks} if parent else {}


def committed_in(repository: Repository, points: Sequence[Point]) -> Committed:
    """Tells of a checkpoint whether its restore point is among `points`; None for another repository's."""
    sessions = {short_id(point.session) for point in points}

    def committed(name: CheckpointName) -> bool | None:
        return name.session in sessions if name.repository_id == repository.id else None

    return committed
