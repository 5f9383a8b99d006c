"""The main job: full, changes of every kind, incremental, restore of each point."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit, same

MIB = 1 << 20
GIB = 1 << 30
pytestmark = pytest.mark.real


@pytest.mark.parametrize("cluster", [4096, 65536])
def test_each_point_restores_as_the_disk_was(make_domain: Callable[..., Workhorse], kit: Kit, cluster: int) -> None:
    """Writes, zero writes, discards, unmapped zeroes, growth, writes across chunk borders: all come back."""
    horse = make_domain(Disk("vda", size=64 * MIB, cluster_size=cluster), Disk("vdb", size=3 * MIB + 512))
    kept = []

    def step() -> None:
        point = kit.backup(horse)
        copies = {t: horse.copy(t) for t in ("vda", "vdb")}
        kept.append((point, copies))

    horse.write("vda", 0, 10 * MIB, 0x11)
    horse.write("vda", 20 * MIB, 4 * MIB, 0x22)
    horse.write("vdb", 0, 3 * MIB + 512, 0x33)
    step()
    assert [d.mode for d in kept[0][0].disks] == ["full", "full"]
    horse.write("vda", 65536 - 512, 1024, 0x44)  # across a chunk's border
    horse.write("vda", 1 * MIB, 4096, 0x55)
    step()
    assert [d.mode for d in kept[1][0].disks] == ["incremental", "incremental"]
    horse.zero("vda", 2 * MIB, MIB)
    horse.discard("vda", 20 * MIB, MIB)
    horse.zero_unmap("vda", 22 * MIB, 65536)
    horse.zero("vda", 5 * MIB + 4096, 512)
    horse.write("vdb", 3 * MIB, 512, 0x66)
    step()
    horse.grow("vda", 96 * MIB + 4096)
    horse.write("vda", 96 * MIB, 4096, 0x77)
    step()
    step()
    assert [d.changed_bytes for d in kept[-1][0].disks] == [0, 0]
    for round_ in (kept, reversed(kept)):
        for point, copies in round_:
            for file in kit.restore(point.id).files:
                same(file.path, copies[file.target])
    for point, copies in kept:
        for file in kit.restore(point.id, "raw").files:
            same(file.path, copies[file.target])
    shutil.rmtree(kit.root / "trust")
    kit.host.purge(kit.host.domain(horse.name))
    kit.reopen()
    assert horse.checkpoints() == []
    point = kit.backup(horse)
    assert [d.mode for d in point.disks] == ["reread", "reread"]
    assert sum(d.changed_bytes + d.stored_bytes for d in point.disks) == 0
    kit.check(horse, point.id)
