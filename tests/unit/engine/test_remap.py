"""Map nodes that are nowhere any more are made again, out of the maps of a replica."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.care import heal, remap
from vmbackup.engine.care.repair import RepairOptions, RepairSummary, repair
from vmbackup.progress import Silent
from vmbackup.repository import Repository, maps, packs
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.crypto import META
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RamKit:
    """Maps of two levels, chunks that lie in several places, zeros, a disk that is all zeros."""
    for module in (maps, remap):
        monkeypatch.setattr(module, "LEAF_SPAN", 128 * KIB)
    made = RamKit(tmp_path, {"vda": MIB, "vdb": 64 * KIB, "vdc": 64 * KIB})
    made.disk().write(0, random.Random(1).randbytes(400 * KIB))
    made.disk("vdb").write(0, bytes(range(256)) * 64)
    made.backup()
    made.disk().write(100 * KIB, random.Random(2).randbytes(60 * KIB))
    made.disk().write(700 * KIB, random.Random(1).randbytes(40 * KIB))
    made.backup()
    made.disk().write(900 * KIB, random.Random(3).randbytes(8 * KIB))
    made.backup()
    return made


@pytest.fixture
def replica(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Another repository with these points, whose own map nodes are of no use here."""
    place = kit.root / "replica"
    shutil.copytree(kit.root / "repository", place)
    original = heal._History._search

    def search(self: heal._History, where: str, origins: Iterable[Any]) -> None:
        original(self, where, (o for o in origins if where != heal.REPLICA or o.kind != META))

    monkeypatch.setattr(heal._History, "_search", search)
    return Repository.open(open_store(str(place)), SECRET, Trust(None))


def lose_maps(kit: RamKit) -> None:
    shutil.rmtree(kit.root / "repository" / "meta")
    kit.reopen()


def repaired(kit: RamKit, replica: Repository | None) -> RepairSummary:
    return repair(kit.repository, RepairOptions(replica=replica), Silent())


def test_all_maps_are_lost(kit: RamKit, replica: Repository) -> None:
    """Without the replica nothing can be done; with it every point restores, and the collector believes it."""
    lose_maps(kit)
    assert len({point for damage in repaired(kit, None).last.damaged for point in damage.points}) == 3
    done = repaired(kit, replica)
    assert done.last.damaged == ()
    assert all("made again" in healing.how for healing in done.healed)
    kit.reopen()
    kit.check_all()
    report = prune(kit.repository, PruneOptions(wait=0))
    assert report.objects == 0
    kit.reopen()
    kit.check_all()
    kit.backup()
    kit.check_all()


def test_a_node_that_comes_out_otherwise_is_not_taken(
    kit: RamKit, replica: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its id tells, and where another zstd made it the checksum of its slot."""
    lose_maps(kit)
    with monkeypatch.context() as patch:
        patch.setattr(remap, "LEAF_SPAN", 64 * KIB)
        kept = {point for damage in repaired(kit, replica).last.damaged for point in damage.points}
        assert len(kept) == 3
    monkeypatch.setattr(packs, "_LEVEL", 19)
    assert repaired(kit, replica).last.damaged
