"""Chunks that lie together are decoded together where that costs nothing: the image is the same however they come."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.errors import DamageError
from vmbackup.repository.chunks import ChunkReader
from vmbackup.repository.layout import SessionRef

KIB = 1 << 10
CHUNK = 4 * KIB
SIZE = 3 * 1024 * KIB + 20_777  # longer than a write; a last chunk that the disk does not fill


def made(root: Path, store: Any = None) -> RamKit:
    """Two points; of the second some chunks lie alone."""
    kit, chance = RamKit(root, {"vda": SIZE}, CHUNK, store), random.Random(3)
    kit.disk().write(0, chance.randbytes(SIZE))
    kit.disk().write(500 * KIB, bytes(90 * KIB))
    kit.backup()
    for _ in range(20):
        kit.disk().write(chance.randrange(SIZE - 9000), chance.randbytes(chance.choice([512, 9000, 40])))
    kit.backup()
    return kit


def counted(kit: RamKit, monkeypatch: pytest.MonkeyPatch, outcome: str = "as it is") -> int:
    """Restores all points; how many chunks came in runs."""
    chunks, plain_run = 0, ChunkReader.run

    def run(reader: ChunkReader, ref: SessionRef, pack: int, slot: int, count: int, size: int) -> list[bytes] | None:
        nonlocal chunks
        if outcome == "damaged":
            raise DamageError("a chunk is damaged")
        found = None if outcome == "moved" else plain_run(reader, ref, pack, slot, count, size)
        chunks += len(found or ())
        return found

    monkeypatch.setattr(ChunkReader, "run", run)
    for point in kit.points():
        assert kit.restored(point) == kit.kept[point.id]
    return chunks


def test_of_a_folder_most_come_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(made(tmp_path), monkeypatch) > 1.5 * SIZE / CHUNK


@pytest.mark.parametrize("outcome", ["damaged", "moved"])
def test_what_is_no_run_is_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    assert counted(made(tmp_path), monkeypatch, outcome) == 0


def test_an_object_store_is_asked_for_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(made(tmp_path, MemoryStore()), monkeypatch) == 0
