"""Several guests at one instant: what their points say of each other, whatever becomes of one of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.independent_reader import Reader
from tests.ram import RamDisk, RamGuest
from tests.unit.engine.kit import SECRET, RamKit, sha
from vmbackup.engine.backup.group import Outcome, backup_group
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import HypervisorError, JobConflictError, PointInTimeLostError
from vmbackup.progress import Silent

MIB = 1 << 20
NAMES = ("db", "web1", "web2")


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Three guests with something on their disks."""
    kit = RamKit(tmp_path, {"vda": MIB})
    for n, name in enumerate(NAMES):
        disk = RamDisk(bytearray(MIB))
        disk.write(n * 65536, random.Random(n).randbytes(200_000))
        kit.host.add(RamGuest(name, {"vda": disk}))
    kit.host.now = lambda: datetime(2026, 11, 24, 3, tzinfo=UTC)
    return kit


def group(kit: RamKit, *names: str) -> list[Outcome]:
    host: Any = kit.host
    return backup_group(host, kit.repository, "crm", names or NAMES, kit.options, Silent())


def failing_for(wanted: str, error: BaseException) -> Callable[[str], None]:
    """A hook that raises it for one guest."""

    def hook(name: str) -> None:
        if name == wanted:
            raise error

    return hook


def failing_at(turn: int, error: BaseException) -> Callable[[], None]:
    """A hook that raises it when it is called for that time."""
    calls = []

    def hook() -> None:
        calls.append(1)
        if len(calls) == turn:
            raise error

    return hook


def test_points_are_tied(kit: RamKit) -> None:
    """All name the group, its members by their sessions, and one time; each restores as the guest was."""
    outcomes = group(kit)
    assert [outcome.name for outcome in outcomes] == list(NAMES)
    points = {point.domain: point for point in kit.points()}
    records = [point.public["group"] for point in points.values()]
    assert records[0] == records[1] == records[2]
    assert (records[0]["job"], records[0]["instant"], records[0]["failed"]) == ("crm", True, [])
    members = {member["name"]: (member["uuid"], member["session"]) for member in records[0]["members"]}
    assert members == {name: (point.uuid, point.session.hex()) for name, point in points.items()}
    assert {outcome.result().status for outcome in outcomes} == {"success"}
    assert len({point.time for point in points.values()}) == 1
    for name, point in points.items():
        assert kit.restored(point)["vda"] == bytes(kit.host._guests[name].disks["vda"].data)
    assert [job.finished for job in kit.host.jobs] == [True] * 3


def test_the_next_one_is_incremental(kit: RamKit) -> None:
    """A group of its own."""
    first = group(kit)[0].result()
    kit.host._guests["db"].disks["vda"].write(5 * 65536, b"more")
    second = [outcome.result() for outcome in group(kit)]
    assert {disk.mode for point in second for disk in point.disks} == {"incremental"}
    assert second[0].parent == first.id
    assert first.group
    assert second[0].group
    assert first.group["id"] != second[0].group["id"]


@pytest.mark.parametrize("where", ["on_reserve", "on_begin"])
def test_one_that_cannot_begin(kit: RamKit, where: str) -> None:
    """It is told; the others are made, and each says who is missing."""
    error = JobConflictError("another run works on domain web1", "try again")
    setattr(kit.host, where, failing_for("web1", error))
    outcomes = group(kit)
    assert outcomes[1].error is error
    with pytest.raises(JobConflictError):
        outcomes[1].result()
    for name, outcome in (("db", outcomes[0]), ("web2", outcomes[2])):
        point = outcome.result()
        assert point.domain == name
        assert point.status == "warning"
        assert point.warnings == ("the group is not whole: web1 failed: another run works on domain web1",)
        assert point.group
        assert [member["name"] for member in point.group["members"]] == ["db", "web2"]
        (failed,) = point.group["failed"]
        assert (failed["name"], failed["error"]) == ("web1", str(error))
    assert sorted(point.domain for point in kit.points()) == ["db", "web2"]


def test_one_that_fails_while_it_is_read(kit: RamKit) -> None:
    """Nothing is committed before all are read: so the points of those that were read first say so too."""
    kit.host.on_seal = failing_at(3, PointInTimeLostError("the job of the last one is gone", "again"))
    outcomes = group(kit)
    (lost,) = [outcome for outcome in outcomes if outcome.error]
    made = [outcome.result() for outcome in outcomes if not outcome.error]
    assert len(made) == 2
    assert {point.warnings for point in made} == {
        (f"the group is not whole: {lost.name} failed: the job of the last one is gone",)
    }
    assert sorted(str(job.finished) for job in kit.host.jobs) == ["False", "True", "True"]
    assert sorted(p.domain for p in kit.points()) == sorted(set(NAMES) - {lost.name})


def test_all_fail(kit: RamKit) -> None:
    kit.host.on_seal = failing_seals
    assert all(outcome.error for outcome in group(kit))
    assert kit.points() == []


def failing_seals() -> None:
    raise HypervisorError("no")


def test_an_interrupt_commits_nothing(kit: RamKit) -> None:
    """Every job is given up, and every session ended."""
    kit.host.on_seal = failing_at(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        group(kit)
    assert [job.finished for job in kit.host.jobs] == [False] * 3
    assert kit.points() == []
    assert list((kit.root / "repository/sessions").rglob("*-*")) == []


def test_one_that_did_not_stand_still(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the points are good each by itself, and say that they are not at one instant."""
    begin = kit.host.begin_together

    def begun(jobs: Any) -> Any:
        jobs[0].stood_still = False
        return begin(jobs)

    monkeypatch.setattr(kit.host, "begin_together", begun)
    points = [outcome.result() for outcome in group(kit)]
    assert all(point.group and not point.group["instant"] for point in points)
    assert all(point.warnings[0].endswith("did not stand still") for point in points)


def test_a_guest_is_of_a_group_once(kit: RamKit) -> None:
    outcomes = group(kit, "db", "web1", "db")
    assert outcomes[0] is outcomes[2]
    assert len(kit.points()) == 2


def test_damage_lets_the_whole_group_begin_again(kit: RamKit) -> None:
    """A guest's newest point cannot be built on: it is read whole, at one instant with the others all the same."""
    group(kit)
    damaged = next(point for point in kit.points() if point.domain == "web1")
    for path in (kit.root / "repository/meta").rglob(f"{damaged.session.hex()}*"):
        path.unlink()
    kit.reopen()
    kit.host._guests["web1"].disks["vda"].write(0, b"changed")
    points = [outcome.result() for outcome in group(kit)]
    assert len({point.time for point in points}) == 1
    assert points[1].disks[0].mode == "reread"
    assert {point.disks[0].mode for point in (points[0], points[2])} == {"incremental"}
    assert len({point.group["id"] for point in points if point.group}) == 1


def test_copies_keep_it_and_others_read_it(kit: RamKit, tmp_path: Path) -> None:
    """The record goes with the copies; a reader that knows nothing of it reads the points."""
    group(kit)
    other = RamKit(tmp_path / "other", {"vda": MIB})
    copier = Copier(kit.repository, other.repository, CopyOptions(tmp_path / "locks", workers=2), Silent())
    for history in copier.histories():
        assert copier.copy(history, lambda _point: None).failed == []
    originals = {point.domain: point.public["group"] for point in kit.points()}
    assert {point.domain: point.public["group"] for point in other.points()} == originals
    reader = Reader(kit.root / "repository", SECRET.value.decode())
    for number, (name, point) in enumerate(reader.points().items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        reader.restore(point, folder)
        mine = next(p for p in kit.points() if p.id == name)
        assert sha((folder / "vda.raw").read_bytes()) == sha(kit.restored(mine)["vda"])
