"""What somebody with a key, or without one, puts into a repository on purpose."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.torture.scale import CHUNK, Writer
from tests.unit.engine.kit import RamKit
from vmbackup.engine.backup.plan import plan
from vmbackup.engine.backup.run import BackupOptions
from vmbackup.errors import DamageError
from vmbackup.hypervisor.plan import Plan
from vmbackup.repository import packs, points
from vmbackup.repository.crypto import DATA, derive, seal
from vmbackup.repository.nodes import Run
from vmbackup.repository.points import Point
from vmbackup.repository.run import Run as WriterRun
from vmbackup.repository.session import Session
from vmbackup.repository.writers import WriterKey

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 64 * CHUNK})
    made.disk().write(0, bytes(range(1, 201)) * 500)
    made.backup()
    return made


class LyingWriter(Writer):
    """Its packs are as they should be; its maps name other slots."""

    lie: Callable[[Run], Run]

    def _full(self, run: WriterRun) -> list[Run]:  # type: ignore[override]
        return [type(self).lie(stored) for stored in self._store(run, self._chunks)]


@pytest.mark.parametrize(
    "lie",
    [
        lambda run: run._replace(slot=1),
        lambda run: run._replace(slot=(1 << 32) - 1),
        lambda run: run._replace(pack=7),
    ],
    ids=["past the last slot", "far past it", "a pack that is none"],
)
def test_a_map_that_points_outside_a_pack(kit: RamKit, lie: Callable[[Run], Run]) -> None:
    """Verify names the point, without reading data; a restore refuses; other guests' points are as they were."""
    writer = type("Lying", (LyingWriter,), {"lie": staticmethod(lie)})(kit.repository, 16)
    lying = writer.point("mallory", 0, 0)
    kit.reopen()
    assert {(damage.object, damage.points) for damage in kit.verify(None).damaged} == {(lying.key, (lying.id,))}
    with pytest.raises(DamageError):
        kit.restored(lying)
    honest = next(point for point in kit.points() if point.id != lying.id)
    assert kit.restored(honest) == kit.kept[honest.id]


def test_a_lying_name_costs_a_reading(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point whose disk has another name than its target, so that its map is not found: the guest is read whole."""
    original = Session.commit

    def commit(self: Session, public: Any, *rest: Any) -> Point:
        return original(self, {**public, "disks": [{**public["disks"][0], "name": "x"}]}, *rest)

    kit.disk().write(0, b"a change")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", commit)
        kit.backup()
    kit.disk().write(CHUNK, b"another")
    healed = kit.backup()
    assert healed.disks[0].mode == "reread"
    found = {point.id: point for point in kit.points()}
    assert kit.restored(found[healed.id]) == kit.kept[healed.id]


def test_a_disk_of_no_bytes(tmp_path: Path) -> None:
    """It is backed up, restored as an empty image, grows and shrinks to nothing."""
    kit = RamKit(tmp_path, {"vda": 0, "vdb": 2 * CHUNK})
    sizes = [0, 0, 3 * CHUNK, 0, CHUNK // 2]
    for size in sizes:
        kit.disk().resize(size)
        kit.disk().write(0, bytes([7]) * size)
        kit.backup()
    kit.check_all()
    assert [point.disks[0].virtual_size for point in reversed(kit.points())] == sizes


def test_damaged_points_are_one_warning(kit: RamKit) -> None:
    """However many of the guest's points cannot be read, its backups say so in one line."""
    for number in range(3):
        kit.disk().write(number * CHUNK, b"a change")
        kit.backup()
    for point in kit.points()[1:]:
        path = kit.root / "repository" / point.key
        path.write_bytes(path.read_bytes()[:-1])
    kit.disk().write(0, b"again")
    told = [warning for warning in kit.backup().warnings if "cannot be read" in warning]
    assert len(told) == 1
    assert told[0].startswith("3 restore points of this guest cannot be read, among them: points/")


def test_a_dry_run_tells_what_is_lost(kit: RamKit) -> None:
    """A pack that is gone would be read again: that stands in the plan's notes."""
    host: Any = kit.host
    host.plan = lambda domain, *_args, **_options: Plan(domain, (), None, notes=("a note",))
    assert plan(host, kit.repository, "guest", BackupOptions()).notes == ("a note",)
    (pack,) = [path for path in (kit.root / "repository" / "data").rglob("*") if path.is_file()]
    pack.unlink()
    first, lost = plan(host, kit.repository, "guest", BackupOptions()).notes
    assert first == "a note"
    assert lost.endswith(f"{pack.name} is missing: what the guest has of it would be read again")


def signed_by(kit: RamKit, point: Point, writer: WriterKey) -> bytes:
    table = struct.pack(">I", len(point.table)) + point.rows
    return points.encode(points.POINT, kit.repository.group(), writer, point.lineage, point.session, bytes(32),
                         point.public, table, [])  # fmt: skip


def test_a_point_signed_by_another_key(kit: RamKit) -> None:
    """Nobody enrolled it, or the signature is not that of whose name it bears: it is no point, and is named."""
    (point,) = kit.points()
    path = kit.root / "repository" / point.key
    stranger = WriterKey.generate("stranger", "reader", "default")
    own = kit.repository.writer
    borrowed = WriterKey(own.id, own.name, own.role, own.group, stranger.private)
    for writer, said in ((stranger, "not enrolled"), (borrowed, "its signature does not hold")):
        path.write_bytes(signed_by(kit, point, writer))
        kit.reopen()
        assert kit.points() == []
        (damage,) = kit.verify(None).damaged
        assert damage.object == point.key
        assert said in damage.problem


@pytest.mark.parametrize("told", [CHUNK, 16 * MIB, (1 << 32) - 1])
def test_a_chunk_that_is_a_bomb(kit: RamKit, told: int) -> None:
    """A frame that grows beyond the length that its slot tells is never decompressed."""
    prefix, key = packs.aad_prefix(kit.repository.config.realm, DATA), bytes(32)
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    stored = AESGCM(key).encrypt(bytes(12), bomb, prefix + bytes(32) + struct.pack(">IB", told, 1))
    slot = packs.Slot(bytes(32), bytes(16), 0, len(stored), told, 1, 0, 0, 0, 0)
    opener = packs.SlotOpener(prefix, kit.repository.group().chunk_id_key())
    with pytest.raises(DamageError, match="wrong length"):
        opener.open(slot, stored, AESGCM(key), "a pack")


def test_a_private_part_that_is_a_bomb(kit: RamKit) -> None:
    """Documents that grow beyond what any have are damage."""
    (point,) = kit.points()
    secret = bytes(32)
    bomb = zstandard.ZstdCompressor().compress(bytes(points.MAX_PART + 1))
    sealed = seal(derive(secret, kit.repository.config.realm, "private", point.session), point.aad, bomb)
    lying = replace(point, sealed_private=sealed)
    with pytest.raises(DamageError, match="is malformed"):
        points.open_documents(lying, secret, kit.repository.config.realm)


def test_a_lying_parent_costs_a_reading(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point whose map names a session that its table lacks is built on no more; the guest is read, and is whole."""
    original = Session.commit

    def commit(self: Session, public: Any, _table: bytes, *rest: Any) -> Point:
        return original(self, public, points.encode_table({}, {}), *rest)

    kit.disk().write(0, b"a change")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", commit)
        lying = kit.backup()
    kit.disk().write(CHUNK, b"another")
    healed = kit.backup()
    assert healed.disks[0].mode == "reread"
    found = {point.id: point for point in kit.points()}
    assert kit.restored(found[healed.id]) == kit.kept[healed.id]
    with pytest.raises(DamageError, match="contradicts its maps"):
        kit.restored(found[lying.id])
    assert {point for damage in kit.verify(None).damaged for point in damage.points} == {lying.id}
