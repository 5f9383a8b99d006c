"""Restore points as JSON and for people."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmbackup.cli.groups import group_column, group_document, present
from vmbackup.cli.output import local_time, table
from vmbackup.config.units import format_size

if TYPE_CHECKING:
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList
    from vmbackup.repository.summary import DiskSummary, PointSummary


def document(points: Iterable["PointSummary"], among: Iterable["PointSummary"] | None = None) -> dict[str, Any]:
    """The JSON document of `backup`, `list` and `show`, with nothing failed. `among`: all that are there, if more."""
    listed = list(points)
    there = present(listed if among is None else among)
    return {"points": [point_document(point, there) for point in listed], "failed": []}


def summaries(found: "PointList") -> list["PointSummary"]:
    """The restore points that were read, newest first, each with its parent's id."""
    from vmbackup.repository.summary import summary

    known = {(point.lineage, point.session): point for point in found.points}
    each = ((p, known.get((p.lineage, p.parent)) if p.parent else None) for p in found.points)
    return [replace(summary(point, parent), id=found.name(point)) for point, parent in each]


def described(found: "PointList", point: "Point") -> "PointSummary":
    """One of the points that were read."""
    from vmbackup.repository.summary import summary

    parent = next((p for p in found.points if (p.lineage, p.session) == (point.lineage, point.parent)), None)
    return replace(summary(point, parent), id=found.name(point))


def point_document(point: "PointSummary", there: frozenset[tuple[str, str]]) -> dict[str, Any]:
    """A restore point in JSON. `there`: the points that are there, for what is told of its group."""
    return {
        "id": point.id,
        "domain": point.domain,
        "domain_uuid": point.domain_uuid,
        "time": point.time.isoformat(),
        "status": point.status,
        "consistency": point.consistency,
        "parent": point.parent,
        "disks": [_disk(disk) for disk in point.disks],
        "files": [
            {"path": file.path, "kind": file.kind, "size": file.size, "stored_bytes": file.stored_bytes}
            for file in point.files
        ],
        "duration_seconds": point.duration_seconds,
        "warnings": list(point.warnings),
        "host": point.host,
        "quiesce_note": point.quiesce_note,
        "freeze_seconds": point.freeze_seconds,
        "seal_seconds": point.seal_seconds,
        "copied_from": point.copied_from,
        "group": group_document(point.group, there),
    }


def _disk(disk: "DiskSummary") -> dict[str, Any]:
    return {
        "target": disk.target,
        "format": disk.format,
        "virtual_size": disk.virtual_size,
        "mode": disk.mode,
        "reason": disk.reason,
        "read_bytes": disk.read_bytes,
        "changed_bytes": disk.changed_bytes,
        "stored_bytes": disk.stored_bytes,
        "read_whole": disk.read_whole,
    }


def mode_of(point: "PointSummary") -> str:
    """`full`, `incremental`, `reread`, or `mixed` for a point whose disks differ."""
    modes = {disk.mode for disk in point.disks}
    return modes.pop() if len(modes) == 1 else "mixed" if modes else "-"


def stored(point: "PointSummary") -> int:
    """Bytes that the point added to the repository."""
    return sum(disk.stored_bytes for disk in point.disks) + sum(file.stored_bytes for file in point.files)


def points_table(points: Sequence["PointSummary"], among: Iterable["PointSummary"]) -> str:
    """A line a restore point; with status and group where these tell anything. `among`: all that are there."""
    titles, there = ["POINT", "DOMAIN", "TIME", "MODE", "STORED"], present(among)
    rows = [[p.id, p.domain, local_time(p.time, seconds=False), mode_of(p), format_size(stored(p))] for p in points]
    more = {
        "STATUS": ["" if point.status == "success" else point.status for point in points],
        "GROUP": [group_column(point.group, there) for point in points],
    }
    for title, column in more.items():
        if any(column):
            titles.append(title)
            rows = [[*row, cell] for row, cell in zip(rows, column, strict=True)]
    return table(titles, rows, right=("STORED",))


def disks_table(point: "PointSummary") -> str:
    """A line a disk of one restore point."""
    titles = ("DISK", "FORMAT", "SIZE", "MODE", "READ", "CHANGED", "STORED")
    rows = (
        (
            disk.target,
            disk.format,
            format_size(disk.virtual_size),
            disk.mode,
            format_size(disk.read_bytes),
            format_size(disk.changed_bytes),
            format_size(disk.stored_bytes),
        )
        for disk in point.disks
    )
    return table(titles, rows, right=("SIZE", "READ", "CHANGED", "STORED"))


def files_table(point: "PointSummary") -> str:
    """A line a file that the guest is started from; "" where there are none."""
    rows = [(file.path, file.kind, format_size(file.size), format_size(file.stored_bytes)) for file in point.files]
    return table(("FILE", "KIND", "SIZE", "STORED"), rows, right=("SIZE", "STORED")) if rows else ""
