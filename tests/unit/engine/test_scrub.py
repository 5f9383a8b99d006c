"""Scrubbing: by decoding, by checksums of stored bytes where the key reads nothing, and again what was found before."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.care.verify import VerifySummary, verify
from vmbackup.errors import AccessError, DamageError
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.crypto import ENVELOPE_BYTES, PublicKey

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": MIB})
    made.disk().write(0, random.Random(1).randbytes(MIB // 2))
    made.backup()
    return made


def pack(kit: RamKit, kind: str = "data") -> Path:
    return next(path for path in (kit.root / "repository" / kind).rglob("*") if path.is_file())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that opens no envelope."""

    def refuse(*_: object) -> bytes:
        raise AccessError("this key reads nothing")

    monkeypatch.setattr(Repository, "open_envelope", refuse)
    monkeypatch.setattr(Repository, "can_read", False)


@pytest.mark.usefixtures("writer")
@pytest.mark.parametrize("kind", ["data", "meta"])
def test_a_key_that_reads_nothing_compares_checksums(kit: RamKit, kind: str) -> None:
    assert kit.verify().damaged == ()
    assert kit.verify().read == "checksums"
    path = pack(kit, kind)
    flip(path, 20)
    kit.reopen()
    (damage, *_) = kit.verify().damaged
    assert (path.name in damage.object, damage.disks) == (True, ("vda",))


def test_a_reader_decodes(kit: RamKit) -> None:
    found = kit.verify()
    assert (found.damaged, found.read, found.share, found.domains) == ((), "decoded", 1.0, ("guest",))
    assert kit.verify(None).read is None


def test_an_envelope_of_garbage_is_told(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen backup host stores what nobody can ever read: verify names it and goes on with the rest."""
    with monkeypatch.context() as patch:
        patch.setattr(PublicKey, "seal", lambda *_: bytes(ENVELOPE_BYTES))
        kit.disk().write(MIB // 2, random.Random(2).randbytes(9000))
        point = kit.backup()
    kit.reopen()
    found = kit.verify()
    assert {name for damage in found.damaged for name in damage.points} == {point.id}
    assert any("made for nobody who could read it" in damage.problem for damage in found.damaged)
    with pytest.raises(DamageError):
        kit.restored(kit.points()[0])


def test_what_was_found_once_is_read_again(kit: RamKit) -> None:
    """By its record in the repository, or as this host remembers it: a look at sizes alone would call it well."""

    def look(suspects: set[str]) -> VerifySummary:
        return verify(kit.repository, None, None, Silent(), suspects=suspects)

    path = pack(kit)
    key = str(path.relative_to(kit.root / "repository"))
    flip(path, 100)
    assert look(set()).damaged == ()
    assert [damage.object for damage in look({key}).damaged] == [key]
    assert [damage.object for damage in look(set()).damaged] == [key], "its record"
    shutil.rmtree(kit.root / "repository" / "damage")
    assert look(set()).damaged == ()
    index = next((kit.root / "repository" / "index").rglob("*-0"))
    flip(index, 30)
    key = str(index.relative_to(kit.root / "repository"))
    assert look(set()).damaged == ()
    assert [damage.object for damage in look({key}).damaged] == [key]
