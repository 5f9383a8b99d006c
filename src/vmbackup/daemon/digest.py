"""What is kept of the document that a run printed: points and what they cost, the rest in numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmbackup.daemon.lines import plain
from vmbackup.daemon.reasons import whole_read
from vmbackup.daemon.snapshot import Totals
from vmbackup.daemon.work import Kind, Outcome, Run, Status

_POINTS = 8  # a run makes one; a document with more is cut
_DISKS = 64
_TEXT = 300  # characters of a reason
_SIZES = ("read_bytes", "changed_bytes", "stored_bytes")
_NUMBERS = {Kind.PRUNE: ("pruned", "repacked", "left"), Kind.VERIFY: ("checked",)}


def details(kind: Kind, document: Mapping[str, Any]) -> dict[str, Any]:
    """What history keeps: of a backup the points with their disks, of other runs only numbers."""
    if kind is Kind.BACKUP:
        return {"points": [_point(point) for point in _listed(document, "points")[:_POINTS]]}
    found: dict[str, Any] = {name: _numbers(document.get(name)) for name in _NUMBERS.get(kind, ())}
    if kind is Kind.COPY:
        found["copied"] = len(_listed(document, "copied"))
    if kind is Kind.VERIFY:
        found["damaged"] = len(_listed(document, "damaged"))
    return found


def stages(run: Run) -> dict[str, float]:
    """Seconds: `total` of the process, `freeze` and `seal` of the restore point that it made."""
    found = {"total": max(0.0, (run.finished or run.started) - run.started)}
    for point in _points_of(run)[:1]:
        for stage in ("freeze", "seal"):
            if (seconds := _number(point.get(f"{stage}_seconds"))) is not None:
                found[stage] = float(seconds)
    return found


@dataclass
class Counts:
    """Totals that grow; `since` is when the guest was first seen, in seconds since the epoch."""

    runs: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    full_reads: dict[str, int] = field(default_factory=dict)
    since: float = 0.0

    def count(self, run: Run) -> None:
        """One more backup has ended."""
        status = run.outcome.status if run.outcome else Status.FAILED
        self.runs[status] = self.runs.get(status, 0) + 1
        for disk in (disk for point in _points_of(run) for disk in _listed(point, "disks")):
            self._disk(disk)

    def frozen(self) -> Totals:
        """As they are now."""
        return Totals(
            dict(self.runs),
            dict(self.skipped),
            self.read_bytes,
            self.changed_bytes,
            self.stored_bytes,
            dict(self.full_reads),
        )

    def _disk(self, disk: Mapping[str, Any]) -> None:
        self.read_bytes += _size(disk, "read_bytes")
        self.changed_bytes += _size(disk, "changed_bytes")
        self.stored_bytes += _size(disk, "stored_bytes")
        if (why := whole_read(disk)) is not None:
            self.full_reads[why] = self.full_reads.get(why, 0) + 1


def _points_of(run: Run) -> list[Mapping[str, Any]]:
    outcome = run.outcome or Outcome(Status.FAILED)
    return _listed(outcome.document, "points")[:_POINTS] if run.request.work.kind is Kind.BACKUP else []


def _point(point: Mapping[str, Any]) -> dict[str, Any]:
    disks = _listed(point, "disks")[:_DISKS]
    kept: dict[str, Any] = {name: sum(_size(disk, name) for disk in disks) for name in _SIZES}
    for name in ("id", "time", "status", "consistency"):
        kept[name] = _text(point.get(name))
    for name in ("duration_seconds", "freeze_seconds", "seal_seconds"):
        kept[name] = _number(point.get(name))
    return kept | {"disks": list(map(_disk, disks))}


def _disk(disk: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _text(disk.get(name)) for name in ("target", "mode", "reason")}


def _numbers(value: object) -> dict[str, float]:
    return dict(_numbered(value)) if isinstance(value, Mapping) else {}


def _numbered(value: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, inner in list(value.items())[:_DISKS]:
        if (number := _number(inner)) is not None:
            yield name, number


def _listed(document: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = document.get(name)
    return [inner for inner in value if isinstance(inner, Mapping)] if isinstance(value, list) else []


def _size(disk: Mapping[str, Any], name: str) -> int:
    return max(0, int(_number(disk.get(name)) or 0))


def _number(value: object) -> float | None:
    """A number that is one, and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1 << 62:
        return None
    return value


def _text(value: object) -> str | None:
    return plain(value)[:_TEXT] if isinstance(value, str) else None
