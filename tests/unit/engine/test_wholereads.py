"""Each disk is read whole as often as a job asks for, whatever was forgotten and however a clock jumped."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.ram import RamDisk
from tests.unit.engine.kit import RamKit
from vmbackup.engine.backup import wholereads
from vmbackup.engine.backup.wholereads import is_due, last_whole_read, scheduled
from vmbackup.repository import points as points_module
from vmbackup.repository.points import Point
from vmbackup.repository.summary import PointSummary
from vmbackup.repository.tombstones import forget

DAY, HOUR, WEEK = timedelta(days=1), timedelta(hours=1), timedelta(days=7)
START = datetime(2026, 11, 1, 2, tzinfo=UTC)
SIZE = 16 * 4096


class Days(RamKit):
    """A guest that is backed up once a day under `reread_every`."""

    now = START

    def day(self, **options: Any) -> PointSummary:
        point = self.backup(**{"reread_every": WEEK, **options})
        self.now += DAY
        return point

    def forget_all_but_the_newest(self) -> None:
        for point in self.points()[1:]:
            forget(self.repository, point.lineage, point.session)
            del self.kept[point.id]


@pytest.fixture
def days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Days:
    made = Days(tmp_path, {"vda": SIZE})
    made.host.now = lambda: made.now
    monkeypatch.setattr(wholereads, "_now", made.host.now)
    return made


def modes(points: list[PointSummary], target: str = "vda") -> list[str]:
    found = [disk for point in points for disk in point.disks if disk.target == target]
    return [f"{disk.mode} {disk.reason}" if disk.mode == "reread" else disk.mode for disk in found]


WEEK_OF = ["incremental"] * 6


def test_once_a_week(days: Days) -> None:
    points = [days.day() for _ in range(16)]
    again = ["reread scheduled", *WEEK_OF]
    assert modes(points) == ["full", *WEEK_OF, *again, *again][:16]
    assert points[13].disks[0].read_whole == (START + 7 * DAY).isoformat(timespec="milliseconds")
    days.check_all()


def test_what_was_forgotten_is_remembered(days: Days) -> None:
    """Each day all older points are forgotten: the newest one knows."""
    points = []
    for _ in range(9):
        points.append(days.day())
        days.forget_all_but_the_newest()
    assert modes(points) == ["full", *WEEK_OF, "reread scheduled", "incremental"]


def test_a_whole_reading_for_another_reason_counts(days: Days) -> None:
    points = [days.day() for _ in range(4)]
    days.disk().tracked = False
    points += [days.day() for _ in range(4)]
    points.append(days.day(full=True))
    points += [days.day() for _ in range(7)]
    other = "reread no bitmap"
    assert modes(points) == ["full", *WEEK_OF[:3], other, *WEEK_OF[:3], "full", *WEEK_OF, "reread scheduled"]


def test_each_disk_has_its_own_interval(days: Days) -> None:
    points = [days.day() for _ in range(3)]
    days.guest.disks["vdb"] = RamDisk(bytearray(b"b" * SIZE))
    points += [days.day() for _ in range(9)]
    assert modes(points) == ["full", *WEEK_OF, "reread scheduled", *WEEK_OF][:12]
    assert modes(points, "vdb") == ["full", *WEEK_OF, "reread scheduled", "incremental"]


def test_without_an_interval_all_is_incremental(days: Days) -> None:
    points = [days.day(reread_every=None) for _ in range(9)]
    assert modes(points) == ["full", *["incremental"] * 8]
    assert points[-1].disks[0].read_whole == START.isoformat(timespec="milliseconds")


def _without_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points are written as they were before there was such a field."""
    to_json = points_module.DiskRecord.to_json

    def old(record: points_module.DiskRecord) -> dict[str, Any]:
        data = to_json(record)
        del data["read_whole"]
        return data

    monkeypatch.setattr(points_module.DiskRecord, "to_json", old)


def test_points_of_before(days: Days) -> None:
    """They lack the field: their listed parents tell; where those are gone nobody knows, and all is read."""
    with pytest.MonkeyPatch.context() as patch:
        _without_the_field(patch)
        points = [days.day() for _ in range(4)]
    newest = days.points()[0]
    assert newest.disks[0].read_whole is None
    assert last_whole_read(days.points(), newest, "vda") == START
    points.append(days.day())
    assert points[-1].disks[0].read_whole == START.isoformat(timespec="milliseconds")
    with pytest.MonkeyPatch.context() as patch:
        _without_the_field(patch)
        points.append(days.day())
    days.forget_all_but_the_newest()
    assert last_whole_read(days.points(), days.points()[0], "vda") is None
    points += [days.day(reread_every=None), days.day(), days.day()]
    assert points[-3].disks[0].read_whole is None
    assert modes(points) == ["full", *["incremental"] * 6, "reread scheduled", "incremental"]


@pytest.mark.parametrize("told", ["", "yesterday", "2026-11-01T02:00:00", "9999-99-99"])
def test_a_time_that_is_none_counts_nothing(days: Days, told: str) -> None:
    days.day()
    days.day()
    newest, oldest = days.points()
    newest.__dict__["disks"] = [replace(newest.disks[0], read_whole=told)]
    assert last_whole_read([newest, oldest], newest, "vda") == START
    assert last_whole_read([newest], newest, "vda") is None


def test_a_ring_of_parents_ends(days: Days) -> None:
    """As a hostile writer may have made it."""
    days.day()
    days.day()
    newest = days.points()[0]
    ring: list[Point] = []
    for other in (b"b" * 16, newest.session):
        public = {**newest.public, "parent": {"session": other.hex(), "digest": "00" * 32}}
        ring.append(replace(newest, session=newest.session if not ring else b"b" * 16, public=public))
        ring[-1].__dict__["disks"] = [replace(newest.disks[0], read_whole=None)]
    assert last_whole_read(ring, ring[0], "vda") is None


# Last whole reading, newest point and now, in days; an interval of a week.
CASES = [
    ((0, 6, 7), True, "on its day"),
    ((0, 6, 7 - 1 / 24), True, "a run that comes an hour early: the next one would be 23 hours late"),
    ((0, 5, 6), False, "the day before"),
    ((0, 0, 30), True, "long off"),
    ((0, 6.9, 7.01), True, "after a manual run"),
    ((0, 6.5, 6.6), False, "hours before, in hourly runs"),
    ((40, 40, 0), True, "the clock went back a month"),
    ((0.01, 0.01, 0), False, "two hosts' clocks differ by minutes"),
    ((0, 99, 3), False, "the newest point is of a clock that was ahead"),
]


@pytest.mark.parametrize(("times", "due", "why"), CASES, ids=[case[2] for case in CASES])
def test_due(times: tuple[float, float, float], due: bool, why: str) -> None:
    last, newest, now = (START + DAY * time for time in times)
    assert is_due(last, newest, now, WEEK) is due, why


def test_a_clock_that_was_ahead_costs_a_reading_and_no_interval(days: Days) -> None:
    days.day()
    days.now += 3650 * DAY
    ahead = days.day()
    days.now = START + 2 * DAY
    points = [days.day() for _ in range(9)]
    assert modes([ahead]) == ["reread scheduled"]
    assert modes(points)[0] == "reread scheduled"
    assert modes(points)[1:8] == [*WEEK_OF, "reread scheduled"]


def test_nothing_is_scheduled_for_a_new_guest() -> None:
    assert scheduled([], None, WEEK) == {}
