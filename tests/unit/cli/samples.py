"""Restore points as the repository tells them, for tests of what is made of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import POINT, Point
from vmbackup.repository.summary import DiskSummary, PointSummary

START = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
UUID = "f707ff3b-b71b-4e4e-8f78-acacb883c7e3"


def disk(
    target: str = "vda", mode: str = "incremental", reason: str | None = None, stored: int = 3 << 20
) -> DiskSummary:
    return DiskSummary(target, "qcow2", 10 << 30, mode, reason, 12 << 20, 11 << 20, stored)


def summary(domain: str = "web1", *disks: DiskSummary, warnings: tuple[str, ...] = ()) -> PointSummary:
    return PointSummary(
        id="20261124T020000Z-1a2b3c4d",
        domain=domain,
        domain_uuid=UUID,
        time=START,
        status="warning" if warnings else "success",
        consistency="filesystem",
        quiesce_note=None,
        freeze_seconds=0.05,
        parent=None,
        seq=1,
        host="hv1/00000000",
        disks=disks or (disk(),),
        duration_seconds=4.25,
        warnings=warnings,
        seal_seconds=1.0,
    )


def session(hours: int, tag: str) -> bytes:
    """A session begun `hours` after START whose first random digits are `tag`."""
    milliseconds = int((START + timedelta(hours=hours)).timestamp() * 1000)
    return milliseconds.to_bytes(6, "big") + bytes.fromhex(tag) + bytes(6)


def point(
    hours: int,
    tag: str,
    *,
    domain: str = "web1",
    uuid: str = UUID,
    seq: int | None = None,
    parent: bytes | None = None,
    lineage: int = 1,
) -> Point:
    """A point taken `hours` after START; `seq` grows with the hours unless told."""
    name = session(hours, tag)
    place = Lineage("default", bytes([lineage]) * 16)
    public: dict[str, Any] = {
        "domain": {"name": domain, "uuid": uuid},
        "time": (START + timedelta(hours=hours)).isoformat(),
        "seq": hours + 1 if seq is None else seq,
        "parent": {"session": parent.hex()} if parent else None,
        "disks": [],
        "warnings": [],
        "consistency": "crash",
        "quiesce_note": None,
        "freeze_seconds": 0.35,
        "host": "hv1/00000000",
        "seal_seconds": 1.0,
        "duration_seconds": 1.0,
    }
    return Point(place.point(name), POINT, place, name, bytes(8), bytes(32), public, b"", b"", b"", b"")
