"""A repository is repaired out of a replica of it, and the replica out of the repository."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.copy.pair import ReplicaPair
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.care import remap
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.progress import Silent
from vmbackup.repository import Repository, maps
from vmbackup.repository.trust import Trust

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReplicaPair:
    """A guest with two disks, whose maps have two levels, and three points, all copied."""
    for module in (maps, remap):
        monkeypatch.setattr(module, "LEAF_SPAN", 256 * KIB)
    kit = RamKit(tmp_path, {"vda": MIB, "vdb": 64 * KIB})
    kit.disk("vdb").write(5000, b"b" * 9000)
    for number in range(3):
        kit.disk().write(number * 150 * KIB, random.Random(number).randbytes(200 * KIB))
        kit.backup()
    made = ReplicaPair(kit)
    made.copy()
    return made


def lose(root: Path, folder: str) -> None:
    """All data or maps; the newest of what is read one by one."""
    if folder in ("data", "meta"):
        shutil.rmtree(root / folder)
    else:
        max((path for path in (root / folder).rglob("*") if path.is_file()), key=lambda path: path.name).unlink()


@pytest.mark.parametrize("folder", ["data", "meta", "index", "points", "writers", "groups"])
def test_out_of_a_replica(pair: ReplicaPair, folder: str) -> None:
    """Chunks by their ids, maps by those of the copies, points out of the copies; what the realm signed as it is."""
    kit = pair.kit
    lose(kit.root / "repository", folder)
    pair.there = Repository.open(pair.store, SECRET, Trust(None))
    kit.repository = Repository.open(kit.store, SECRET, Trust(None))
    done = repair(kit.repository, RepairOptions(replica=pair.there), Silent())
    assert done.first.damaged
    assert done.last.damaged == ()
    kit.reopen()
    kit.check_all()
    kit.backup()
    kit.check_all()


@pytest.mark.parametrize("folder", ["data", "meta", "index"])
def test_a_replica_out_of_the_repository(pair: ReplicaPair, folder: str) -> None:
    lose(pair.kit.root / "there", folder)
    pair.reopen()
    done = repair(pair.there, RepairOptions(replica=pair.kit.repository), Silent())
    assert done.first.damaged
    assert done.last.damaged == ()
    pair.check()
