"""What a restore will read, told beforehand: near what it then reads, by few requests."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.engine.restore.cost import Cost, disk_cost
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.engine.restore.speed import SpeedMemory
from vmbackup.progress import Silent
from vmbackup.storage_backends import Store
from vmbackup.storage_backends.s3_settings import EgressPrice, egress_price

MIB = 1 << 20
CHUNK = 64 << 10


class Counting:
    """A store that counts what is read of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.reads: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Counted."""
        data = self._store.get(key, offset, length)
        self.reads.append(len(data))
        return data

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Counted."""
        self._store.read_into(key, offset, buffer)
        self.reads.append(len(buffer))


@pytest.fixture
def store() -> Counting:
    """Not a folder, whose packs are read in small parts: nobody counts, or pays, those."""
    inner: Any = MemoryStore()
    return Counting(inner)


def test_near_what_is_read(tmp_path: Path, store: Counting) -> None:
    """Of a full, and of a point whose chunks are scattered over the packs of many."""
    kit = RamKit(tmp_path, {"vda": 64 * MIB}, chunk_size=CHUNK, store=store)  # type: ignore[arg-type]
    chance = random.Random(1)
    kit.disk().write(0, chance.randbytes(32 * MIB))
    kit.disk().write(40 * MIB, b"compressible" * (MIB // 2))
    kit.backup()
    _check(kit, store, tmp_path / "full")
    for _ in range(3):
        for _ in range(20):
            kit.disk().write(chance.randrange(30 * MIB), chance.randbytes(5000))
        kit.backup()
    _check(kit, store, tmp_path / "scattered")


def _check(kit: RamKit, store: Counting, folder: Path) -> None:
    kit.reopen()
    point = kit.points()[0]
    told = disk_cost(kit.repository, point, point.disks[0])
    kit.reopen()
    point = kit.points()[0]
    store.reads.clear()
    done = restore(kit.repository, point, RestoreOptions(folder, "raw", workers=2), Silent())
    assert told.data_bytes == done.files[0].fetched_bytes
    assert told.read_bytes == pytest.approx(sum(store.reads), rel=0.1, abs=4096)
    assert told.requests == pytest.approx(len(store.reads), rel=0.25, abs=20)


def test_prices() -> None:
    """10^9 bytes at the provider's price, where its own page tells one for every place; else none is known."""
    assert EgressPrice(0.01, "EUR").of(250 * 10**9) == pytest.approx(2.5)
    assert egress_price("hetzner:fsn1") == EgressPrice(0.001, "EUR")
    unknown = ("aws:eu-central-1", "ovh:gra", "scaleway:fr-par", "ionos:eu-central-1", "ceph")
    assert [name for name in unknown if egress_price(name)] == []


def test_speed_is_remembered(tmp_path: Path) -> None:
    """For each repository its own; the newest restore counts half; small ones, and what is no file of ours, nothing."""
    memory, now = SpeedMemory(tmp_path), datetime(2026, 11, 28, 20, tzinfo=UTC)
    one, other = bytes(16), bytes(15) + b"1"
    assert memory.of(one) is None
    memory.remember(one, 1000 * MIB, 10, now)
    memory.remember(one, 10 * MIB, 100, now)
    speed = SpeedMemory(tmp_path).of(one)
    assert speed is not None
    assert (speed.seconds(500 * MIB), speed.time) == (5, "2026-11-28T20:00:00+00:00")
    memory.remember(one, 200 * MIB, 1, now)
    speed = memory.of(one)
    assert speed is not None
    assert speed.bytes_per_second == 150 * MIB
    assert memory.of(other) is None
    (tmp_path / "restore-speed.json").write_text("[]")
    assert memory.of(one) is None
    assert Cost(1, 2, 3) + Cost(1, 1, 1) == Cost(2, 3, 4)
