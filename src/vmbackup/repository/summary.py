"""What people and scripts are told of a restore point."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vmbackup.repository.layout import short_id
from vmbackup.repository.points import Point


@dataclass(frozen=True)
class DiskSummary:
    """A disk of a restore point; sizes in bytes. `read_whole`: the time of the point that last read it whole."""

    target: str
    format: str
    virtual_size: int
    mode: str
    reason: str | None
    read_bytes: int
    changed_bytes: int
    stored_bytes: int
    read_whole: str | None = None


@dataclass(frozen=True)
class FileSummary:
    """A file of its host that the guest is started from; `stored_bytes`: what this point added of it."""

    path: str
    kind: str
    size: int
    stored_bytes: int


@dataclass(frozen=True)
class PointSummary:
    """A restore point. `parent` is an id, or None; `written_bytes` (of all objects) is known right after the run.

    `copied_from`: the repository, in 8 hex digits, of the point that it is a copy of. `group`: what the point says of
    the guests that were backed up at the same instant.
    """

    id: str
    domain: str
    domain_uuid: str
    time: datetime
    status: str
    consistency: str
    quiesce_note: str | None
    freeze_seconds: float | None
    parent: str | None
    seq: int
    host: str
    disks: tuple[DiskSummary, ...]
    duration_seconds: float
    warnings: tuple[str, ...]
    seal_seconds: float
    written_bytes: int | None = None
    copied_from: str | None = None
    group: Mapping[str, Any] | None = None
    files: tuple[FileSummary, ...] = ()


def summary(point: Point, parent: Point | None, *, written_bytes: int | None = None) -> PointSummary:
    """Of a point that was read; `parent` where it is at hand."""
    public = point.public
    parent_id = parent.id if parent else short_id(point.parent) if point.parent else None
    fields = DiskSummary.__dataclass_fields__
    return PointSummary(
        point.id,
        point.domain,
        point.uuid,
        point.time,
        "warning" if public.get("warnings") else "success",
        public.get("consistency", ""),
        public.get("quiesce_note"),
        public.get("freeze_seconds"),
        parent_id,
        point.seq,
        public.get("host", ""),
        tuple(DiskSummary(*(getattr(d, name) for name in fields)) for d in point.disks),
        public.get("duration_seconds", 0.0),
        tuple(public.get("warnings", ())),
        public.get("seal_seconds", 0.0),
        written_bytes,
        point.copied_from["repository"][:8] if point.copied_from else None,
        public.get("group"),
        tuple(FileSummary(file.path, file.kind, file.size, file.stored_bytes) for file in point.files),
    )
