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
from vmbackup.errors import DamageError
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
