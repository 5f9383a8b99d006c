"""The test vectors of docs/repository-format.md, section 13, hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.repository import packs
from vmbackup.repository.crypto import DATA, META, GroupKeys, derive, digest, envelope_info, nonce
from vmbackup.repository.keys import format_recovery, parse_recovery
from vmbackup.repository.layout import point_id, short_id
from vmbackup.repository.nodes import Node, Run

DOCS = Path(__file__).parents[3] / "docs" / "repository-format.md"

REALM = bytes(range(16))
ID_KEY = bytes(range(32, 64))
LINEAGE_KEY = bytes(range(64, 96))
SECRET = bytes(range(96, 128))
SESSION = bytes(range(128, 144))
CHUNK = b"vmbackup" * 512
KEYS = GroupKeys(REALM, "default", {1: ID_KEY}, LINEAGE_KEY)


def computed() -> dict[str, str]:
    chunk_id = blake3(CHUNK, key=KEYS.chunk_id_key()).digest()
    aad = packs.aad_prefix(REALM, DATA) + chunk_id + (4096).to_bytes(4, "big") + b"\0"
    birth = packs.Birth(SESSION, bytes(16), 1, 1, b"")
    key = packs.pack_key(DATA, KEYS, birth, SECRET, 7)
    slot = AESGCM(key).encrypt(nonce(3), CHUNK, aad)
    leaf = Node.leaf(4096, 0, [Run(2, 0, 0, 0), Run(3, 9, 7, 3)]).encode()
    return {
        "chunk id key": KEYS.chunk_id_key().hex(),
        "chunk id": chunk_id.hex(),
        "key of data pack 7": key.hex(),
        "key of meta pack 7": packs.pack_key(META, KEYS, birth, b"", 7).hex(),
        "key of the header of data pack 7": packs.header_key(DATA, KEYS, 1, SESSION, 7).hex(),
        "key of the pin": KEYS.derive(1, "pin", SESSION).hex(),
        "key of the private part": derive(SECRET, REALM, "private", SESSION).hex(),
        "associated data of slot 3": aad.hex(),
        "H of the sealed slot 3 (ciphertext and tag)": digest(slot).hex(),
        "tag of slot 3": slot[-16:].hex(),
        "lineage": KEYS.lineage("libvirt", "f707ff3b-b71b-4e4e-8f78-acacb883c7e3").hex(),
        "envelope info, epoch 1": envelope_info(REALM, 1, "default", SESSION).hex(),
        "leaf": leaf.hex(),
        "digits of the restore point": short_id(SESSION),
        "recovery key of the secret": format_recovery(SECRET),
    }


def written() -> dict[str, str]:
    section = DOCS.read_text().split("## 12.")[1]
    return {m[1]: m[2] for m in re.finditer(r"^\| ([^|]+?) \| `([^`]+)` \|$", section, re.MULTILINE)}


def test_vectors() -> None:
    """What the document says is what the code computes."""
    assert computed() == written()


def test_a_misread_recovery_key_is_told() -> None:
    from vmbackup.errors import UsageError

    text = format_recovery(SECRET)
    assert parse_recovery(text) == SECRET
    assert parse_recovery(text.lower()) == SECRET
    with pytest.raises(UsageError, match="misread"):
        parse_recovery(("B" if text[0] == "A" else "A") + text[1:])


def test_point_ids() -> None:
    from datetime import datetime

    assert point_id(datetime.fromisoformat("2026-11-24T04:00:00+01:00"), SESSION) == "20261124T030000Z-86878889"
