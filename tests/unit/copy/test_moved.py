"""Copies from and into repositories whose packs were repacked, and a repository that is healed from its replica."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.copy.pair import Pair, ReplicaPair
from tests.unit.engine.kit import RamKit
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.repository import PointList
from vmbackup.repository.tombstones import forget

MIB = 1 << 20


def scatter(kit: RamKit, seed: int) -> None:
    """Random chunks at random places, then a backup."""
    chance = random.Random(seed)
    for _ in range(40):
        kit.disk().write(chance.randrange(2 * MIB // 4096) * 4096, chance.randbytes(4096))
    kit.backup()


def thin(repository: Repository, kept: set[str]) -> PointList:
    """Forgets all but these, and collects with much repacking."""
    for point in repository.read_points().points:
        if point.id not in kept:
            forget(repository, point.lineage, point.session)
    prune(repository, PruneOptions(repack_below=100))
    return repository.read_points()


@pytest.mark.parametrize("kind", [Pair, ReplicaPair])
def test_repacked_here_and_there(tmp_path: Path, kind: type[Pair]) -> None:
    """Points are copied wherever their chunks lie now, and what was copied is found wherever it lies there."""
    kit = RamKit(tmp_path, {"vda": 2 * MIB})
    for seed in range(4):
        scatter(kit, seed)
    pair = kind(kit)
    pair.copy()
    pair.check()
    ids = [point.id for point in reversed(kit.points())]
    assert thin(kit.repository, {ids[2], ids[3]}).moves
    assert thin(pair.there, {ids[1], ids[3]}).moves
    pair.check(ids[1], ids[3])
    scatter(kit, 7)
    assert pair.copy().failed == []
    newest = kit.points()[0].id
    pair.check(ids[1], ids[3], newest)
    fresh = kind(kit, place="fresh")
    assert fresh.copy().failed == []
    fresh.check(ids[2], ids[3], newest)


@pytest.mark.parametrize("folder", ["data", "meta", "points", "index"])
def test_healed_from_its_replica(tmp_path: Path, folder: str) -> None:
    """Whatever is lost here, the replica's copies have it."""
    kit = RamKit(tmp_path, {"vda": 2 * MIB})
    for seed in range(3):
        scatter(kit, seed)
    pair = ReplicaPair(kit)
    pair.copy()
    pair.reopen()
    lost = sorted(p for p in (tmp_path / "repository" / folder).rglob("*") if p.is_file())
    lost[len(lost) // 2].unlink()
    report = repair(kit.repository, RepairOptions(read_data=True, replica=pair.there), Silent())
    assert report.first.damaged
    assert report.last.damaged == ()
    kit.reopen()
    kit.check_all()
