"""Restore points copied to a repository of other keys."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.copy.pair import MIB, Pair, change, size, three_points
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine import point_disk
from vmbackup.engine.care.forget import Verdict
from vmbackup.engine.care.forget import forget as forget_all
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import AccessError, DamageError, NotFoundError, UsageError
from vmbackup.progress import Silent
from vmbackup.repository import Repository, enrolling
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.points import Point
from vmbackup.repository.session import Session
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(three_points(tmp_path))


def ids(pair: Pair) -> list[str]:
    """Of the points that there are to copy, oldest first."""
    return [point.id for point in reversed(pair.kit.points())]


def test_all_then_only_what_is_new(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oldest first, each with its parent, its number and its id; a second copy does nothing, a third what is new."""
    done = pair.copy()
    assert (done.skipped, done.failed, [p.id for p in pair.copied]) == (0, [], ids(pair))
    pair.check()
    originals = {point.id: point for point in pair.kit.points()}
    newest, middle, oldest = pair.found().points
    assert [p.seq for p in (newest, middle, oldest)] == [3, 2, 1]
    assert (newest.parent, middle.parent, oldest.parent) == (middle.session, oldest.session, None)
    for point in pair.found().points:
        original = originals[point.id]
        for name in ("domain", "time", "consistency", "versions", "warnings", "host", "duration_seconds"):
            assert point.public[name] == original.public[name]
        assert point.public["anchor"] is None
        assert point.copied_from == {
            "realm": pair.kit.repository.config.realm.hex(),
            "repository": pair.kit.repository.config.repository.hex(),
            "session": original.session.hex(),
            "lacking": [],
        }
    assert pair.copy().skipped == 3
    assert pair.copied == []
    change(pair.kit, 3, 50_000)
    read: list[int] = []
    original_read = point_disk.PointReader._read
    monkeypatch.setattr(
        point_disk.PointReader,
        "_read",
        lambda self, offset, buffer: (read.append(len(buffer)), original_read(self, offset, buffer))[1],
    )
    assert pair.copy().skipped == 3
    assert 50_000 <= sum(read) <= 60_000  # what changed, in whole chunks
    pair.check()


def test_what_two_maps_share_is_not_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of maps of many leaves only those on the way to a change."""
    monkeypatch.setattr("vmbackup.repository.maps.LEAF_SPAN", 65536)
    pair.kit.disk().resize(8 * MIB)
    pair.kit.disk().write(7 * MIB, random.Random(1).randbytes(MIB))
    pair.kit.backup(full=True)
    pair.copy()
    change(pair.kit, 5, 4096)
    pair.reopen()
    loaded: list[int] = []
    load = DiskMap.load
    monkeypatch.setattr(DiskMap, "load", lambda self, ref, first: (loaded.append(first), load(self, ref, first))[1])
    assert pair.copy().failed == []
    assert 0 < len(loaded) < 20
    pair.check()


def test_domains_by_name(pair: Pair) -> None:
    with pytest.raises(NotFoundError, match="nobody"):
        pair.copy("guest", "nobody")
    assert pair.found().points == []
    pair.copy(pair.kit.guest.uuid)
    pair.check()


@pytest.mark.parametrize("chunk_size", [65536, 4 << 20])
def test_other_chunk_sizes_and_disks_that_change(tmp_path: Path, chunk_size: int) -> None:
    """Between repositories of chunks of 4 KiB and of more, both ways; disks grow, shrink, come and go."""
    for here, there in ((4096, chunk_size), (chunk_size, 4096)):
        root = tmp_path / str(here)
        root.mkdir()
        pair = Pair(RamKit(root, {"vda": 3 * MIB + 700, "vdb": MIB}, here), chunk_size=there)
        chance = random.Random(chunk_size)
        for step in range(9):
            for disk in pair.kit.guest.disks.values():
                length = chance.choice([1, 5000, 70_000])
                disk.write(chance.randrange(len(disk.data) - length), chance.randbytes(length))
            if step == 3:
                pair.kit.disk().resize(4 * MIB + 300)
            if step == 5:
                pair.kit.disk().resize(2 * MIB + 10)
            if step == 6:
                del pair.kit.guest.disks["vdb"]
            pair.kit.backup()
            if step in (2, 3, 8):
                pair.copy()
                pair.check()


def test_what_was_forgotten_there_is_not_brought_again(pair: Pair) -> None:
    """Whether it is collected yet or not; a copy is made from the nearest one that the source still has."""
    pair.copy()
    first, second, third = ids(pair)
    by_id = {point.id: point for point in pair.found().points}
    forget(pair.there, by_id[first].lineage, by_id[first].session)
    assert pair.copy().skipped == 3
    prune(pair.there, PruneOptions())
    assert pair.copy().skipped == 3
    pair.check(second, third)
    newest = pair.kit.points()[0]
    forget(pair.kit.repository, newest.lineage, newest.session)
    fourth = change(pair.kit, 4)
    before = size(pair.store)
    assert pair.copy().failed == []
    assert 600_000 < size(pair.store) - before < 650_000
    pair.check(second, third, fourth)


def packs_of(pair: Pair, point: Point) -> list[Path]:
    """The data packs of a point's own session."""
    folder = pair.kit.root / "repository" / "data" / point.lineage.group / point.lineage.id.hex()
    return [path for path in folder.iterdir() if path.name.startswith(point.session.hex())]


def test_a_damaged_point_is_named_and_the_others_are_copied(pair: Pair) -> None:
    """It is copied in its place once it is whole again, also where the wreck of the first try was collected."""
    oldest, middle, newest = reversed(pair.kit.points())
    pair.kit.disk().write(300_000, random.Random(9).randbytes(300_000))  # over what the middle one brought
    fourth = pair.kit.backup()
    (pack,) = packs_of(pair, middle)
    data = pack.read_bytes()
    pack.write_bytes(data[:1000] + bytes((data[1000] ^ 1,)) + data[1001:])
    done = pair.copy()
    assert [name for name, _ in done.failed] == [middle.id, newest.id]
    error = done.failed[0][1]
    assert isinstance(error, DamageError)
    assert error.object_key == pack.relative_to(pair.kit.root / "repository").as_posix()
    pair.check(oldest.id, fourth.id)
    prune(pair.there, PruneOptions())
    pack.write_bytes(data)
    assert pair.copy().failed == []
    pair.check()
    found = {point.id: point for point in pair.found().points}
    assert [found[p.id].seq for p in (oldest, middle, newest, fourth)] == [1, 2, 3, 4]
    assert found[middle.id].parent == found[oldest.id].session
    change(pair.kit, 5)
    pair.copy()
    pair.check()


def test_the_wreck_of_a_failed_copy_keeps_nothing_away(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it stored before it met damage becomes a partial; once that is collected, it is no forgotten copy."""
    middle = pair.kit.points()[1]
    read = point_disk.PointReader._read

    def damaged(self: Any, offset: int, buffer: memoryview) -> None:
        if self._map.point.id == middle.id:
            time.sleep(0.01)  # for the thread that stores packs
            if offset >= 500_000:
                raise DamageError("damaged")
        read(self, offset, buffer)

    pair.kit.disk().write(300_000, random.Random(9).randbytes(300_000))
    pair.kit.backup()
    with monkeypatch.context() as patch:
        patch.setattr(point_disk.PointReader, "_read", damaged)
        patch.setattr("vmbackup.engine.pipeline.worker.READ_BYTES", 16384)
        patch.setattr("vmbackup.engine.pipeline.packing.PackBuilder", lambda: PackBuilder(65536))
        assert [name for name, _ in pair.copy().failed] == [middle.id]
    assert [p.origin for p in pair.found().partials] == [middle.origin]
    prune(pair.there, PruneOptions())
    prune(pair.there, PruneOptions())
    assert middle.origin in {session[:10] for session in pair.found().forgotten}
    assert pair.copy().failed == []
    pair.check()


def test_an_unreadable_point_is_told(pair: Pair) -> None:
    middle = pair.kit.points()[1]
    path = pair.kit.root / "repository" / middle.key
    path.write_bytes(path.read_bytes()[:-1])
    done = pair.copy()
    assert [name for name, _ in done.failed] == [middle.id.rpartition("-")[2]]
    assert len(pair.copied) == 2


def test_a_point_that_is_forgotten_meanwhile_is_no_failure(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune of the source takes its packs away while they are read."""
    middle = pair.kit.points()[1]
    original = point_disk.PointReader._read
    here = pair.kit.repository

    def read(self: Any, offset: int, buffer: memoryview) -> None:
        if self._map.point.id == middle.id and middle.session not in here.read_points().forgotten:
            for pack in packs_of(pair, middle):
                pack.unlink()
            forget(here, middle.lineage, middle.session)
        original(self, offset, buffer)

    monkeypatch.setattr(point_disk.PointReader, "_read", read)
    done = pair.copy()
    assert [name for name, _ in done.failed] == [pair.kit.points()[0].id]  # the newest needs them too
    assert done.skipped == 1


def test_damage_in_the_other_repository_is_not_built_on(pair: Pair) -> None:
    pair.copy()
    change(pair.kit, 4)
    meta = pair.kit.root / "there" / "meta"
    for path in meta.rglob("*-0"):
        path.write_bytes(path.read_bytes()[:50] + bytes(20) + path.read_bytes()[70:])
    assert pair.copy().failed == []
    newest = pair.found().points[0]
    assert pair.restored(newest) == pair.kit.kept[newest.id]


def test_two_copies_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one host: the second waits. Of two hosts that both commit: the point is listed once, and forgotten whole."""
    pair.copy()
    change(pair.kit, 6)
    originals: list[Copier] = []

    def other() -> None:
        copier = pair.copier()
        originals.append(copier)
        for history in copier.histories():
            copier.copy(history, lambda _p: None)

    threads = [threading.Thread(target=other) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pair.found().twins == []
    pair.check()

    change(pair.kit, 7)
    commit = Session.commit
    twice = False

    def both(self: Session, *args: Any) -> Point:
        nonlocal twice
        if not twice:
            twice = True  # another host commits just before this one
            other_host = Repository.open(pair.store, SECRET, Trust(None))
            options = CopyOptions(pair.kit.root / "locks of another host")
            copier = Copier(pair.kit.repository, other_host, options, Silent())
            monkeypatch.setattr("vmbackup.engine.replica.point_copy.host_identity", lambda: "another host")
            for history in copier.histories():
                copier.copy(history, lambda _p: None)
        return commit(self, *args)

    monkeypatch.setattr(Session, "commit", both)
    monkeypatch.setattr("vmbackup.repository.run.Run._give_way", lambda *_: None)
    pair.copy()
    found = pair.found()
    (twin,) = found.twins
    assert twin.id == found.points[0].id
    pair.check()
    prune(pair.there, PruneOptions())
    pair.check()
    assert pair.restored(twin) == pair.kit.kept[twin.id]
    forget_all(pair.there, [Verdict(found.points[0], ())], found)
    assert twin.id not in {p.id for p in pair.found().points}
    assert pair.copy().skipped == 5


def test_one_repository_twice(pair: Pair) -> None:
    same = Repository.open(pair.kit.store, SECRET, Trust(None))
    with pytest.raises(UsageError, match="one repository"):
        Copier(pair.kit.repository, same, CopyOptions(pair.kit.root / "locks"), Silent())


def test_a_key_that_may_not_read_copies_into_no_other_keys(pair: Pair) -> None:
    """The host of a writer may write there, though, and then its copies stand in its own group."""
    keys = enrolling.new_writer(pair.kit.repository, "hv1", "default", "backup")
    enrolling.enrol(pair.kit.repository, keys)
    writer = Repository.open(pair.kit.store, keys, Trust(None))
    options = CopyOptions(pair.kit.root / "locks")
    with pytest.raises(AccessError, match="may not read"):
        Copier(writer, pair.there, options, Silent())
    keys = enrolling.new_writer(pair.there, "hv1", "hosts", "backup")
    enrolling.enrol(pair.there, keys)
    copier = Copier(pair.kit.repository, Repository.open(pair.store, keys, Trust(None)), options, Silent())
    for history in copier.histories():
        assert copier.copy(history, lambda _p: None).failed == []
    assert {p.lineage.group for p in pair.found().points} == {"hosts"}
    pair.check()


def test_a_copy_can_be_backed_up_to_and_copied_on(pair: Pair, tmp_path: Path) -> None:
    """A backup into the other repository builds on the copies, reads whole once, and stores what is new only."""
    pair.copy()
    here = pair.kit.repository
    before = size(pair.store)
    pair.kit.repository = pair.there
    pair.kit.disk().write(100, b"new" * 100)
    point = pair.kit.backup()
    assert (point.disks[0].mode, point.seq) == ("reread", 4)
    assert size(pair.store) - before < 50_000
    assert pair.kit.backup().disks[0].mode == "incremental"
    pair.kit.repository = here
    third = RamKit(tmp_path / "third", {"vda": 4096})
    onward = Copier(pair.there, third.repository, CopyOptions(tmp_path / "locks"), Silent())
    made: list[Any] = []
    for history in onward.histories():
        onward.copy(history, made.append)
    assert len(made) == 5
    for found in third.repository.read_points().points:
        assert third.restored(found) == pair.kit.kept[found.id]
    told = [p.copied_from["repository"] for p in third.points() if p.copied_from]
    assert told == [pair.there.config.repository.hex()] * 5
