"""What a restore point keeps of a guest beside its disks comes back as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.unit.engine.kit import RamKit
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import DamageError
from vmbackup.progress import Silent
from vmbackup.repository import frames, points
from vmbackup.repository.crypto import derive, seal

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    return RamKit(tmp_path, {"vda": MIB})


@pytest.mark.parametrize(
    "variables", [b"", b"\0", b"variables", b"variables" + bytes(64 * MIB - 9)], ids=["empty", "zero", "full", "64 MiB"]
)
def test_variables_and_tpm(kit: RamKit, tmp_path: Path, variables: bytes) -> None:
    """Byte for byte, also those of AArch64, which are nearly all zeros."""
    kit.guest.documents = {"nvram.fd": variables, "tpm2-00.permall": b"\0keys\0"}
    kit.backup()
    (point,) = kit.points()
    found = kit.repository.documents(point)
    assert (found["nvram.fd"], found["tpm2-00.permall"]) == (variables, b"\0keys\0")
    assert len(point.sealed_private) < 1000
    restore(kit.repository, point, RestoreOptions(tmp_path / "out", "raw", workers=2), Silent())
    assert (tmp_path / "out" / "nvram.fd").read_bytes() == variables


def test_documents_that_claim_too_much(kit: RamKit) -> None:
    """Zeros that nobody stored cost no memory without bound."""
    kit.backup()
    (point,) = kit.points()
    told = {"documents": [{"name": str(n), "type": "x", "data": "00", "length": 64 << 20} for n in range(3)]}
    secret = bytes(32)
    packed = zstandard.ZstdCompressor().compress(frames.canonical(told))
    sealed = seal(derive(secret, kit.repository.config.realm, "private", point.session), point.aad, packed)
    with pytest.raises(DamageError, match="is malformed"):
        points.open_documents(replace(point, sealed_private=sealed), secret, kit.repository.config.realm)
