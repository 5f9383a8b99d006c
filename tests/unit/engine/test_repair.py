"""Repair: whatever was damaged is whole again where it is whole anywhere, and nothing is deleted or overwritten."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.backup.run import backup
from vmbackup.engine.care.repair import RepairOptions, RepairSummary, repair
from vmbackup.errors import AccessError
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import Store, open_store

KIB, MIB = 1 << 10, 1 << 20
DAMAGE = ["missing", "cut", "flipped"]


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Two restore points that share most of what they hold."""
    made = RamKit(tmp_path, {"vda": MIB, "vdb": 64 * KIB})
    made.disk().write(0, random.Random(1).randbytes(300 * KIB))
    made.disk("vdb").write(0, random.Random(2).randbytes(20 * KIB))
    made.backup()
    made.disk().write(600 * KIB, random.Random(3).randbytes(40 * KIB))
    made.backup()
    return made


def objects(kit: RamKit, folder: str = "") -> list[Path]:
    return sorted(path for path in (kit.root / "repository" / folder).rglob("*") if path.is_file())


def contents(kit: RamKit) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in objects(kit)}


def key_of(kit: RamKit, path: Path) -> str:
    return str(path.relative_to(kit.root / "repository"))


def harm(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:20] + bytes((data[20] ^ 4,)) + data[21:])


def replica(kit: RamKit) -> Repository:
    """A copy of everything as it is now."""
    place = kit.root / "replica"
    shutil.copytree(kit.root / "repository", place)
    return Repository.open(open_store(str(place)), SECRET, Trust(None))


def repaired(kit: RamKit, other: Repository | None = None, *, look: bool = True, dry: bool = False) -> RepairSummary:
    kit.reopen()
    return repair(kit.repository, RepairOptions(look, other, dry), Silent())


def healed(kit: RamKit, other: Repository | None = None, *, look: bool = True) -> RepairSummary:
    """A repair after which nothing is damaged, and nothing is gone that was there before."""
    before = contents(kit)
    done = repaired(kit, other, look=look)
    assert done.first.damaged
    assert done.last.damaged == ()
    assert done.healed
    after = contents(kit)
    assert {path: after.get(path) for path in before} == before
    kit.reopen()
    kit.check_all()
    return done


class _Told(Silent):
    """Keeps what an operator is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def backed_up(kit: RamKit) -> list[str]:
    """What a further backup tells."""
    told, host = _Told(), cast("Any", kit.host)
    point = backup(host, kit.repository, "guest", kit.options, told)
    kit.kept[point.id] = {target: bytes(disk.data) for target, disk in kit.guest.disks.items()}
    return told.notes


@pytest.mark.parametrize("how", DAMAGE)
def test_the_guest_still_has_it(kit: RamKit, how: str) -> None:
    """The next backup reads the lost parts again, and heals the older points."""
    pack = objects(kit, "data")[0]
    harm(pack, how)
    kit.reopen()
    assert len(kit.verify().damaged[0].points) == 2
    told = backed_up(kit)
    assert [re.sub(r"\d+", "N", text) for text in told] == [
        "older restore points: N chunks of damaged packs are whole again"
    ]
    kit.reopen()
    kit.check_all()
    assert backed_up(kit) == []
    prune(kit.repository, PruneOptions(wait=0))
    assert not pack.exists(), "nothing needs it any more"
    assert objects(kit, "damage") == []
    kit.reopen()
    kit.check_all()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_backup_key_leaves_it_to_others(kit: RamKit, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says who can heal the older points; a repair there finds them in what the backup has stored."""
    pack = objects(kit, "data")[0]
    harm(pack, how)
    kit.reopen()
    first = repaired(kit)
    assert first.last.damaged, "nobody has all of it"
    assert [healing.how.partition(" chunks ")[2][:9] for healing in first.healed] == ["taken out"] * (how != "missing")
    with monkeypatch.context() as patch:
        patch.setattr(Repository, "check_may_collect", _refuse)
        assert [text.partition(": ")[2] for text in backed_up(kit)] == [
            "run 'vmbackup repair' on a host whose key reads or prunes"
        ]
        with pytest.raises(AccessError):
            repaired(kit)
    done = healed(kit, look=False)
    (healing,) = done.healed
    assert healing.object == key_of(kit, pack)
    assert "found elsewhere in the repository" in healing.how
    assert "nowhere" not in healing.how


def _refuse(*_: object) -> None:
    raise AccessError("this key may not")


def test_what_the_guest_has_no_more(kit: RamKit) -> None:
    """Points that need it still suffer, others do not; a replica heals them later."""
    other = replica(kit)
    harm(objects(kit, "data")[0], "missing")
    kit.reopen()
    kit.disk().write(100 * KIB, random.Random(4).randbytes(8 * KIB))
    assert "; 2 are lost" in backed_up(kit)[0]
    done = repaired(kit)
    assert done.healed == ()
    (damage,) = done.last.damaged
    assert set(damage.points) == {point.id for point in kit.points()[1:]}
    assert [healing.how for healing in healed(kit, other).healed] == ["2 chunks found in the replica"]


@pytest.mark.parametrize("folder", ["data", "meta", "index"])
def test_all_of_a_kind_is_lost(kit: RamKit, folder: str) -> None:
    """All packs of chunks, or of maps, or all indexes are gone at once: a replica has them."""
    other = replica(kit)
    shutil.rmtree(kit.root / "repository" / folder)
    healed(kit, other)
    kit.backup()
    kit.check_all()


@pytest.mark.parametrize("how", DAMAGE)
def test_an_index_is_made_again(kit: RamKit, how: str) -> None:
    """A part out of its packs, a root out of its parts, byte by byte; a prune keeps what was made."""
    for path in objects(kit, "index"):
        whole = path.read_bytes()
        harm(path, how)
        done = healed(kit)
        assert [healing.how.partition(" out of")[0] for healing in done.healed] == ["made again"]
        assert whole in contents(kit).values()
        prune(kit.repository, PruneOptions(wait=0))
        kit.reopen()
        kit.check_all()


def test_lost_documents_are_put_back(kit: RamKit) -> None:
    """A config from its copy, all else that is signed or has a checksum from a replica: only where it is missing."""
    copy = kit.root / "repository" / "config.copy" / "1"
    harm(copy, "missing")
    assert [healing.how for healing in healed(kit).healed] == ["put back from its copy"]
    other = replica(kit)
    for folder in ("keys", "groups", "writers", "points"):
        for path in objects(kit, folder):
            if path.name == kit.trust.recall(kit.store.place).slot:
                continue  # this key opens it
            data = path.read_bytes()
            harm(path, "missing")
            assert [healing.how for healing in healed(kit, other).healed] == ["put back from the replica"], path
            harm(path, "flipped")
            done = repaired(kit, other)
            assert (done.healed, len(done.last.damaged)) == ((), 1), "nothing is overwritten"
            path.write_bytes(data)


def test_what_a_replica_has_wrong_is_not_taken(kit: RamKit) -> None:
    other = replica(kit)
    for folder, number in (("index", -2), ("writers", 0), ("data", 0)):
        path = objects(kit, folder)[number]
        harm(kit.root / "replica" / key_of(kit, path), "flipped")
        harm(path, "missing")
    done = repaired(kit, other)
    paths = [damage.object.partition("/")[0] for damage in done.last.damaged]
    assert paths == ["data", "writers"], "the index is made out of its packs"
    assert objects(kit, "writers") == []


@pytest.mark.parametrize("how", DAMAGE)
def test_a_dry_run_changes_nothing(kit: RamKit, how: str) -> None:
    other = replica(kit)
    for folder, number in (("data", 0), ("index", -1), ("config.copy", 0)):
        harm(objects(kit, folder)[number], how)
    before = contents(kit)
    done = repaired(kit, other, dry=True)
    assert contents(kit) == before
    assert len(done.healed) >= (3 if how == "missing" else 2)
    assert done.last.damaged == done.first.damaged


class _Killed(BaseException):
    pass


class _Dying:
    """A store of a process that dies at its n-th request that changes anything."""

    def __init__(self, store: Store, requests: int) -> None:
        self._store, self.left = store, requests

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if self.left <= 0:
                raise _Killed
            self.left -= name in ("put", "delete")
            if self.left == 0 and random.random() < 0.5:  # before or after it has come about
                raise _Killed
            return getattr(self._store, name)(*args)

        return getattr(self._store, name) if name in ("url", "place") else call


def test_a_killed_repair_is_taken_up_again(kit: RamKit) -> None:
    """Whenever it dies, the next one heals everything."""
    other = replica(kit)
    for folder in ("data", "index", "meta"):
        harm(objects(kit, folder)[0], "missing")
    start = contents(kit)
    for requests in range(1, 20):
        dying: Any = _Dying(kit.store, requests)  # some 13 of them change anything
        with contextlib.suppress(_Killed):
            repair(Repository.open(dying, SECRET, Trust(None)), RepairOptions(True, other), Silent())
        assert repaired(kit, other).last.damaged == ()
        if dying.left > 0:
            break
        for path in set(objects(kit)) - set(start):
            path.unlink()
        for path, data in start.items():
            path.write_bytes(data)
    assert 5 < requests < 19
    kit.reopen()
    kit.check_all()


def test_nothing_to_repair(kit: RamKit) -> None:
    done = repaired(kit)
    assert (done.first.damaged, done.healed, done.last.read) == ((), (), "decoded")
