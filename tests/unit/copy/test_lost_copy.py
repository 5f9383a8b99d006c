"""Copies of guests alike, and a replica that lost a restore point and got it again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.ram import RamDisk, RamGuest
from tests.unit.copy.pair import Pair, ReplicaPair, size
from tests.unit.engine.kit import RamKit
from vmbackup.engine.care.verify import verify
from vmbackup.progress import Silent
from vmbackup.repository.cache import Cache
from vmbackup.repository.collect import PruneOptions, prune


@pytest.mark.parametrize("kind", [ReplicaPair, Pair])
def test_a_copy_stores_common_content_once(tmp_path: Path, kind: type[Pair]) -> None:
    """Four guests of one content cost there what they cost here.

    Each stores again what lies before its first hook: one chunk in 64, at random, so of 3,072 a few.
    """
    kit = RamKit(tmp_path, {"vda": 4096})
    kit.repository.cache = Cache(tmp_path / "a.sqlite")
    common = random.Random(1).randbytes(12 << 20)
    for name in "abcd":
        kit.host.add(RamGuest(name, {"vda": RamDisk(bytearray(common))}))
        kit.backup_guest(name)
    pair = kind(kit)
    pair.reopen()
    copier = pair.copier()
    pair.there.cache = Cache(tmp_path / "b.sqlite")
    for history in copier.histories(()):
        pair.of(copier, history)
    assert size(pair.store) < 1.7 * size(kit.store)


def test_a_replica_that_lost_a_copied_point_is_whole_again(tmp_path: Path) -> None:
    """The next copy brings it once more: what is left of the first one is collected, and blocks nothing."""
    kit = RamKit(tmp_path, {"vda": 1 << 20})
    for number in range(2):
        kit.disk().write(number * 65536, random.Random(number).randbytes(50000))
        kit.backup()
    pair = ReplicaPair(kit)
    pair.copy()
    max((tmp_path / "there/points").rglob("*/*/*"), key=lambda p: p.name).unlink()
    assert len(verify(pair.there, None, 1.0, Silent()).damaged) == 1
    pair.copy()
    pair.reopen()
    assert verify(pair.there, None, 1.0, Silent()).damaged == ()
    before = size(pair.store)
    prune(pair.there, PruneOptions(), sleep=lambda _s: None)
    assert size(pair.store) < before
    pair.reopen()
    assert verify(pair.there, None, 1.0, Silent()).damaged == ()
    pair.check()
