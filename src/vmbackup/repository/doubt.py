"""Restore points whose place in history is doubtful: told, kept, listed (docs/repository-format.md, section 9)."""

from dataclasses import dataclass
from datetime import datetime

from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList, Repository


@dataclass(frozen=True)
class Doubtful:
    """A restore point that may be forged. `id` names it alone; `problem` is one sentence."""

    id: str
    domain: str
    time: datetime
    writer: str
    problem: str

    @property
    def hint(self) -> str:
        """What an operator may do."""
        return (
            "restore both and compare them with the hosts' own logs before you forget one; "
            f"if its key was stolen: vmbackup key revoke-writer {self.writer}"
        )


def doubtful(repository: Repository, found: PointList) -> list[Doubtful]:
    """Those that claim the origin of another one, and those that claim to be older than their writer's key."""
    told = []
    for members in found.doubtful:
        for point in members:
            others = ", ".join(found.name(other) for other in members if other is not point)
            told.append(_of(repository, found, point, f"claims to be the same run of its guest as {others}"))
    told += (_of(repository, found, p, "claims to be older than the key that signed it") for p in found.backdated)
    return sorted(told, key=lambda one: (one.time, one.id), reverse=True)


def _of(repository: Repository, found: PointList, point: Point, problem: str) -> Doubtful:
    writer = repository.writers().get(point.writer)
    name = writer.name if writer else point.writer.hex()
    return Doubtful(found.name(point), point.domain, point.time, name, f"signed by '{name}', {problem}")
