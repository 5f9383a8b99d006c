"""How much of a pack is read at once: of a folder some MiB, of an object store all that is wanted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.storage_backends import open_store

MIB = 1 << 20
SIZE = 13 * MIB  # does not compress: a pack of as many bytes


@pytest.mark.parametrize("folder", [True, False])
def test_parts_of_a_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    """Memory stays small, and is still in the processor's caches when it is decoded; a request costs more than that."""
    store: Any = open_store(str(tmp_path / "repository"), create=True) if folder else MemoryStore()
    kit = RamKit(tmp_path, {"vda": SIZE}, 64 << 10, store)
    kit.disk().write(0, random.Random(4).randbytes(SIZE))
    kit.backup(workers=1)  # one pack
    lengths: list[int] = []
    plain = type(store).read_into

    def read_into(self: Any, key: str, offset: int, buffer: memoryview) -> None:
        lengths.append(len(buffer))
        plain(self, key, offset, buffer)

    monkeypatch.setattr(type(store), "read_into", read_into)
    (point,) = kit.points()
    assert kit.restored(point) == kit.kept[point.id]
    assert sum(lengths) > SIZE
    assert max(lengths) < 5 * MIB if folder else len(lengths) == 1
