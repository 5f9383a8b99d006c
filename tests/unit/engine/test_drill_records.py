"""What a drill saw is told to each host of the group, and goes with what it belongs to; what is forged hurts nobody."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.engine.test_writers import enrolled
from vmbackup.errors import AccessError, DamageError, RepositoryError
from vmbackup.repository import Repository, drills, frames, tombstones
from vmbackup.repository.cache import Cache
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.drills import Drill, Seen
from vmbackup.repository.points import Point
from vmbackup.repository.replica import make_replica
from vmbackup.repository.trust import Trust

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Kit(RamKit):
    """A guest with a restore point for each hour; `memory` is its store."""

    def __init__(self, root: Path) -> None:
        store: Any = MemoryStore()
        self.memory: MemoryStore = store
        super().__init__(root, {"vda": 64 << 10}, store=store)
        for _ in range(3):
            self.change()

    def change(self) -> Point:
        self.disk().write(0, random.Random(len(self.kept)).randbytes(8192))
        made = self.backup()
        return next(point for point in self.points() if point.id == made.id)

    def drill(self, point: Point, hour: int, *, success: bool = True) -> Drill:
        return drills.record(self.repository, point, seen(hour, success=success))

    def records(self) -> list[str]:
        return sorted(key for key in self.memory.objects if key.startswith("drills/"))

    def prune(self) -> None:
        prune(self.repository, PruneOptions(wait=0))


def seen(hour: int, *, success: bool = True) -> Seen:
    checks = (("service ssh", True), ("file /etc/hostname", success))
    problem = None if success else "there is no file /etc/hostname"
    return Seen(NOON + timedelta(hours=hour), success, 23.5, 31.0, "hv1", checks, problem)


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit(tmp_path)


def test_every_host_of_the_group_sees_it(kit: Kit) -> None:
    """A reader that opens the repository anew, and one with a writer's key; neither name nor host are to be seen."""
    point = kit.points()[0]
    kit.drill(point, 1)
    kit.drill(kit.points()[1], 2, success=False)
    host = Repository.open(kit.store, enrolled(kit, "host1"), Trust(None))
    kit.reopen()
    for repository in (kit.repository, host):
        found = drills.every(repository)
        assert [drill.seen for drill in found] == [seen(2, success=False), seen(1)]
        assert found[1].place == (point.lineage, point.session)
        assert drills.of_history(repository, point.lineage) == found
    assert not any(b"hv1" in kit.memory.objects[key][0] for key in kit.records())


def test_only_who_reads_records_one(kit: Kit) -> None:
    host = Repository.open(kit.store, enrolled(kit, "host1"), Trust(None))
    with pytest.raises(AccessError, match="may not read"):
        drills.record(host, kit.points()[0], seen(1))
    assert kit.records() == []


def test_of_a_point_the_newest_and_the_newest_success_stay(kit: Kit) -> None:
    """However many there were: failures of every night, while success was long ago, and the other way round."""
    point, other = kit.points()[:2]
    kit.drill(other, 0)
    good = kit.drill(point, 1)
    for hour in range(2, 8):
        bad = kit.drill(point, hour, success=False)
    assert {d.key for d in drills.every(kit.repository) if d.session == point.session} == {good.key, bad.key}
    newest = kit.drill(point, 9)
    assert {d.key for d in drills.every(kit.repository) if d.session == point.session} == {newest.key}
    assert len(kit.records()) == 2


def test_a_store_that_refuses_deletes_keeps_them_for_the_next_prune(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmbackup.storage_backends import DeleteRefused

    def refuse(key: str) -> None:
        raise DeleteRefused(key, None)

    point = kit.points()[0]
    with monkeypatch.context() as patch:
        patch.setattr(kit.memory, "delete", refuse)
        for hour in range(3):
            kit.drill(point, hour)
    assert len(kit.records()) == 3
    kit.prune()
    assert [drill.seen for drill in drills.every(kit.repository)] == [seen(2)]


def test_it_goes_with_its_history_and_not_before(kit: Kit) -> None:
    """The last drill is known though its point was forgotten; with the guest's last point nothing stays."""
    old, middle, new = reversed(kit.points())
    kit.drill(old, 1)
    kit.drill(middle, 2)
    kit.drill(middle, 3, success=False)
    for point in (old, middle):
        tombstones.forget(kit.repository, point.lineage, point.session)
    kit.prune()
    assert [drill.seen for drill in drills.every(kit.repository)] == [seen(3, success=False), seen(2)]
    kit.prune()
    assert len(kit.records()) == 2
    tombstones.forget(kit.repository, new.lineage, new.session)
    kit.prune()
    assert kit.records() == []


def test_a_record_of_a_point_that_is_made_during_a_prune_stays(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prune read the points before, so it must have listed the records before that."""
    bury = tombstones.bury

    def meanwhile(*arguments: Any) -> Any:
        kit.drill(kit.change(), 0)
        return bury(*arguments)

    kit.drill(kit.points()[0], 1)
    monkeypatch.setattr(tombstones, "bury", meanwhile)
    kit.prune()
    assert [drill.seen for drill in drills.every(kit.repository)] == [seen(1), seen(0)]


def test_what_a_host_remembers_is_authenticated_anew(kit: Kit, tmp_path: Path) -> None:
    """From the cache nothing is asked of the store, and one that was changed in it is read again."""
    kit.drill(kit.points()[0], 1)
    kit.repository.cache = Cache(tmp_path / "cache.sqlite")
    drills.every(kit.repository)
    reads: list[str] = []
    get = kit.memory.get

    def counted(key: str, *rest: Any) -> bytes:
        reads.append(key)
        return get(key, *rest)

    kit.memory.get = counted  # type: ignore[method-assign]
    assert len(drills.every(kit.repository)) == 1
    assert reads == []
    kit.repository.cache.change(("UPDATE points SET body = zeroblob(size) WHERE key LIKE 'drills/%' AND ? = 1", [(1,)]))
    assert len(drills.every(kit.repository)) == 1
    assert reads == kit.records()
    kit.repository.cache.close()


class Forger:
    """Puts what is no record of this repository below drills/."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.point, self.other = kit.points()[:2]
        self.genuine = kit.drill(self.point, 1)
        self.data = kit.memory.objects[self.genuine.key][0]

    def put(self, data: bytes, key: str | None = None) -> None:
        self.kit.store.put(key or f"{self.genuine.key[:-32]}{random.randbytes(16).hex()}", data)

    def flipped(self) -> None:
        """A bit anywhere, under its own name."""
        for at in range(0, len(self.data), 7):
            data = bytearray(self.data)
            data[at] ^= 1
            with pytest.raises((DamageError, RepositoryError, AccessError)):
                drills._decode(self.kit.repository, bytes(data), self.genuine.key)
        self.put(b"")
        self.put(self.data[:40])
        self.put(b"x" * (drills.MOST_BYTES + 1))

    def moved(self) -> None:
        """To a point that was never drilled, and under another id."""
        self.put(self.data, self.genuine.key.replace(self.point.session.hex(), self.other.session.hex()))
        self.put(self.data)

    def signed_by_a_host(self) -> None:
        """A stolen backup host signs and seals what it likes."""
        thief = Repository.open(self.kit.store, enrolled(self.kit, "host1"), Trust(None))
        self.put(*self._made(thief, seen(99)))

    def of_a_replica(self) -> None:
        """A reader's drill there says nothing here."""
        store: Any = MemoryStore()
        self.put(*self._made(make_replica(self.kit.repository, store, SECRET, Trust(None), "copy"), seen(99)))

    def senseless(self) -> None:
        """Signed by a reader, and of another shape; or with no time that can be."""
        for bad in ({"time": "noon"}, {"time": "2026-11-28T12:00:00"}, {"success": "yes"}, {"checks": [1]}):
            with pytest.MonkeyPatch.context() as patch:
                document = {**drills._document(seen(99)), **bad}
                patch.setattr(drills, "_document", lambda _, made=document: made)
                self.put(*self._made(self.kit.repository, seen(99)))

    def _made(self, repository: Repository, told: Seen) -> tuple[bytes, str]:
        drill = random.randbytes(16)
        data = drills._encode(repository, self.point.lineage, self.point.session, drill, told)
        return data, f"{self.point.lineage.prefix('drills', self.point.session)}{drill.hex()}"


@pytest.mark.parametrize("attack", ["flipped", "moved", "signed_by_a_host", "of_a_replica", "senseless"])
def test_what_does_not_count_is_passed_over_and_goes_with_the_next_prune(kit: Kit, attack: str) -> None:
    forger = Forger(kit)
    getattr(forger, attack)()
    assert len(kit.records()) > 1
    kit.reopen()
    assert [drill.key for drill in drills.every(kit.repository)] == [forger.genuine.key]
    assert kit.verify().damaged == ()
    kit.drill(forger.point, 2)
    kit.prune()
    assert [drill.seen for drill in drills.every(kit.repository)] == [seen(2)]
    assert len(kit.records()) == 1
    kit.check_all()


def test_what_a_newer_version_wrote_is_passed_over_and_stays(kit: Kit) -> None:
    forger = Forger(kit)
    newer = bytearray(forger.data)
    newer[12:14] = (frames.VERSION + 1).to_bytes(2, "big")
    forger.put(bytes(newer))
    assert [drill.key for drill in drills.every(kit.repository)] == [forger.genuine.key]
    kit.prune()
    assert len(kit.records()) == 2


def test_a_long_story_is_cut(kit: Kit) -> None:
    """The largest that can be told is far below what is read; halves of characters are no reason to fail."""
    checks = tuple((f"\x01{'x' * 200}{n}", False) for n in range(200))
    told = Seen(NOON, False, None, 1.0, "\x01" * 200, checks, "\udcff" + "\x01" * 1000)
    made = drills.record(kit.repository, kit.points()[0], told)
    (found,) = drills.every(kit.repository)
    assert (len(found.seen.checks), len(found.seen.problem or "")) == (drills.MOST_CHECKS, 500)
    assert kit.memory.stat(made.key).size < drills.MOST_BYTES
