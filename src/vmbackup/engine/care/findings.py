"""Damage, as it is found and told."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmbackup.errors import DamageError

# Said of a lost table of moves, whose name is that of a restore point's object.
TABLE = "it is a table of moves, no restore point; do not forget it, 'vmbackup repair' makes it again"


@dataclass(frozen=True)
class Damage:
    """An object, what is wrong with it, and the restore points (ids) and disks (targets) that suffer."""

    object: str
    problem: str
    points: tuple[str, ...]
    disks: tuple[str, ...]

    @property
    def is_table(self) -> bool:
        """Whether it is a lost table of moves."""
        return self.problem.endswith(TABLE)

    def to_json(self) -> dict[str, Any]:
        """As `verify --json` tells it."""
        return {
            "object": self.object,
            "problem": self.problem,
            "points": list(self.points),
            "disks": list(self.disks),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Damage":
        """Out of `to_json`. Raises KeyError, TypeError."""
        return cls(str(data["object"]), str(data["problem"]), tuple(data["points"]), tuple(data["disks"]))


class Findings:
    """Damage by object; what is found again adds the points and disks that suffer."""

    def __init__(self) -> None:
        self._problems: dict[str, str] = {}
        self._points: dict[str, dict[str, None]] = defaultdict(dict)
        self._disks: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, key: str, problem: str, points: Iterable[str] = (), disks: Iterable[str] = ()) -> None:
        """An object and what is wrong with it."""
        self._problems.setdefault(key, problem.removeprefix(key).strip() or problem)
        self._points[key].update(dict.fromkeys(points))
        self._disks[key].update(dict.fromkeys(disks))

    def error(self, error: DamageError, points: Iterable[str] = (), disks: Iterable[str] = ()) -> None:
        """The same of an error."""
        self.add(error.object_key or "?", error.message, points, disks)

    def all(self) -> tuple[Damage, ...]:
        """Sorted by object."""
        return tuple(
            Damage(key, problem, tuple(self._points[key]), tuple(self._disks[key]))
            for key, problem in sorted(self._problems.items())
        )
