"""Index objects made again out of what is left, byte by byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.errors import DamageError
from vmbackup.repository import hooks, index, reindex
from vmbackup.repository.layout import SessionRef

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RamKit:
    """A session of several packs, more than one index part, and hooks."""
    monkeypatch.setattr(index, "PART_BYTES", 16 << 10)
    monkeypatch.setattr(hooks, "LEAST", 1)
    made = RamKit(tmp_path, {"vda": 2 * MIB})
    made.disk().write(0, random.Random(1).randbytes(MIB))
    made.backup(partial_bytes=MIB // 4)
    made.backup()
    return made


def objects(kit: RamKit, ref: SessionRef) -> list[Path]:
    folder = kit.root / "repository" / "index" / "default" / ref.lineage.hex()
    return sorted(folder.glob(f"{ref.session.hex()}-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def test_the_same_bytes(kit: RamKit) -> None:
    """Each part and each root, of sessions with packs and without."""
    found = kit.repository.read_points()
    refs = {r.session: r for p in (*found.points, *found.partials) for r in (*p.table.values(), p.own_ref(0))}
    assert len(refs) > 1
    with_hooks = 0
    for ref in refs.values():
        catalog = kit.repository.new_catalog("default")
        root = catalog.root(ref)
        *parts, last = objects(kit, ref)
        for number, path in enumerate(parts):
            whole = path.read_bytes()
            path.unlink()
            assert reindex.part(catalog, ref, root, number) == whole
            if number == root.hooks_part():
                assert reindex.root(catalog, ref, (*found.points, *found.partials)) == last.read_bytes()
                with_hooks += 1
            path.write_bytes(whole)
        whole = last.read_bytes()
        last.unlink()
        assert reindex.root(catalog, ref, (*found.points, *found.partials)) == whole
        last.write_bytes(whole)
    assert with_hooks


def test_one_that_is_damaged_is_found_by_its_bytes(kit: RamKit) -> None:
    """It keeps its name; what was made again lies above the root, and readers and verify find it there."""
    ref = max(kit.points()[-1].table.values(), key=lambda r: r.root)
    parts, last = objects(kit, ref)[:-1], objects(kit, ref)[-1]
    catalog = kit.repository.new_catalog("default")
    root = catalog.root(ref)
    for path in (parts[0], last):
        data = path.read_bytes()
        path.write_bytes(data[:30] + bytes((data[30] ^ 4,)) + data[31:])
    with pytest.raises(DamageError):
        kit.repository.new_catalog("default").root(ref)
    reindex.put_again(catalog, ref, 0, reindex.part(catalog, ref, root, 0))
    again = reindex.root(catalog, ref, kit.points())
    key = reindex.put_again(catalog, ref, ref.root, again)
    assert key.endswith(f"-{ref.root + 2}")
    assert reindex.put_again(catalog, ref, ref.root, again) == key
    assert kit.repository.new_catalog("default").root(ref) == root
    kit.reopen()
    kit.check_all()


def test_what_cannot_be_made_again(kit: RamKit) -> None:
    ref = max(kit.points()[-1].table.values(), key=lambda r: r.root)
    catalog = kit.repository.new_catalog("default")
    root = catalog.root(ref)
    objects(kit, ref)[0].unlink()
    with pytest.raises(DamageError):
        reindex.root(catalog, ref, kit.points())
    for path in (kit.root / "repository" / "data").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamageError):
        reindex.part(catalog, ref, root, 0)
