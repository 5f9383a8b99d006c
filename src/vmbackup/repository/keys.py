"""The reader's private keys, and the slots that wrap them (docs/repository-format.md, section 5)."""

import base64
import os
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from vmbackup.errors import AccessError, DamageError, UsageError
from vmbackup.repository import frames, shapes
from vmbackup.repository.crypto import PrivateKey, digest
from vmbackup.repository.shapes import Hex
from vmbackup.repository.writers import WriterKey, WriterKeys

_LENGTH = struct.Struct(">I")
_MAX_SLOT = 64 << 10
_CHECK = 32
_RECOVERY_CHECK = 3

# Costs of argon2id. A passphrase of a person: RFC 9106's second choice, 0.26 s here. A secret of 256 random bits
# cannot be guessed at any cost.
_COSTS_PERSON = {"memory_kib": 65536, "iterations": 3, "lanes": 4}
_COSTS_RANDOM = {"memory_kib": 8192, "iterations": 1, "lanes": 1}


_KDF = {"name": str, "memory_kib": int, "iterations": int, "lanes": int, "salt": Hex()}
_SLOT = {
    **dict.fromkeys(("slot", "kind", "label", "created"), str),
    "kdf": _KDF,
    "nonce": Hex(12),
    "sealed": Hex(),
}


@dataclass(frozen=True)
class ReaderKeys:
    """All that a reader has: the realm's signing key, the private key of each epoch, a writer's key of its own."""

    reads: ClassVar[bool] = True

    realm: bytes
    signing: Ed25519PrivateKey = field(repr=False)
    epochs: dict[int, PrivateKey] = field(repr=False)
    writer: WriterKey

    @classmethod
    def generate(cls, realm: bytes, group: str) -> "ReaderKeys":
        """The keys of a new realm."""
        return cls(
            realm,
            Ed25519PrivateKey.generate(),
            {1: PrivateKey.generate()},
            WriterKey.generate("reader", "reader", group),
        )

    @property
    def verify_key(self) -> Ed25519PublicKey:
        """The realm's public signing key, from the wrapped bundle and never from the store."""
        return self.signing.public_key()

    def private(self, epoch: int) -> PrivateKey:
        """The private key of an epoch. Raises AccessError."""
        try:
            return self.epochs[epoch]
        except KeyError:
            raise AccessError(
                f"this passphrase does not read what was stored since epoch {epoch} of the keys began",
                "the keys were rotated: open the repository with the passphrase or recovery key that was made then",
            ) from None

    def to_bundle(self) -> bytes:
        """JSON, to be wrapped."""
        return frames.canonical(
            {
                "realm": self.realm.hex(),
                "signing_private": self.signing.private_bytes_raw().hex(),
                "signing_public": self.verify_key.public_bytes_raw().hex(),
                "epochs": [{"number": n, "private_key": k.raw.hex()} for n, k in sorted(self.epochs.items())],
                "writer": self.writer.document(),
            }
        )

    @classmethod
    def from_bundle(cls, bundle: dict[str, Any]) -> "ReaderKeys":
        """The keys of an unwrapped bundle."""
        return cls(
            bytes.fromhex(bundle["realm"]),
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(bundle["signing_private"])),
            {e["number"]: PrivateKey(bytes.fromhex(e["private_key"])) for e in bundle["epochs"]},
            WriterKey.from_document(bundle["writer"]),
        )


Identity = ReaderKeys | WriterKeys
"""What a repository is opened with: what a passphrase opens, or the key file of a writer."""


@dataclass(frozen=True)
class Secret:
    """What opens a slot. `random` tells that it has 256 random bits, so that the derivation may be cheap."""

    value: bytes = field(repr=False)
    kind: str = "passphrase"
    random: bool = False

    @classmethod
    def passphrase(cls, text: str, *, random: bool = False) -> "Secret":
        """A passphrase; one trailing newline is not part of it. A recovery key in its place is recognised."""
        text = text.removesuffix("\n").removesuffix("\r")
        if not text:
            raise AccessError("the passphrase is empty", "put at least one character into it")
        if recovery := parse_recovery(text):
            return cls(recovery, "recovery", random=True)
        return cls(text.encode(), random=random)


def format_recovery(secret: bytes) -> str:
    """A recovery key as people write it: 14 groups of 4 letters, the last letters a checksum."""
    text = base64.b32encode(secret + digest(secret)[:_RECOVERY_CHECK]).decode()
    return "-".join(text[i : i + 4] for i in range(0, len(text), 4))


def parse_recovery(text: str) -> bytes | None:
    """The 32 bytes of a recovery key, or None where the text is none. Raises UsageError for a misread one."""
    plain = "".join(text.split()).replace("-", "").upper()
    if text.count("-") != 13 or len(plain) != 56:
        return None
    try:
        raw = base64.b32decode(plain)
    except ValueError:
        return None
    if digest(raw[:32])[:_RECOVERY_CHECK] != raw[32:]:
        raise UsageError("this recovery key has a misread letter", "compare each group of four letters again")
    return raw[:32]


def _derive(secret: bytes, kdf: dict[str, Any], name: str) -> bytes:
    try:
        salt = bytes.fromhex(kdf["salt"])
        memory, iterations, lanes = int(kdf["memory_kib"]), int(kdf["iterations"]), int(kdf["lanes"])
        known = kdf["name"] == "argon2id"
    except (KeyError, ValueError, TypeError) as error:
        raise DamageError(f"{name} is damaged", object_key=name) from error
    if not known or not (
        8 <= memory <= 1 << 20 and 1 <= iterations <= 64 and 1 <= lanes <= 16 and 16 <= len(salt) <= 64
    ):
        raise DamageError(f"{name} asks for a key derivation out of bounds", object_key=name)
    return Argon2id(salt=salt, length=32, iterations=iterations, lanes=lanes, memory_cost=memory).derive(secret)


@dataclass(frozen=True)
class SlotInfo:
    """What a slot says of itself without being opened."""

    id: str
    kind: str
    label: str
    created: str


def wrap(keys: ReaderKeys, secret: Secret, label: str) -> tuple[str, bytes]:
    """A new slot: its id (16 hex digits) and its object."""
    slot = os.urandom(8).hex()
    costs = _COSTS_RANDOM if secret.random else _COSTS_PERSON
    kdf: dict[str, Any] = {"name": "argon2id", "salt": os.urandom(16).hex(), **costs}
    nonce = os.urandom(12)
    document: dict[str, Any] = {
        "realm": keys.realm.hex(),
        "slot": slot,
        "kind": secret.kind,
        "label": label,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "kdf": kdf,
        "nonce": nonce.hex(),
    }
    key = _derive(secret.value, kdf, slot)
    document["sealed"] = AESGCM(key).encrypt(nonce, keys.to_bundle(), frames.canonical(document)).hex()
    body = frames.canonical(document)
    head = frames.preamble(b"KEYS") + _LENGTH.pack(len(body)) + body
    return slot, head + digest(head)


def read_slot(data: bytes, name: str) -> dict[str, Any]:
    """The document of a slot whose checksum holds. Raises DamageError."""
    frames.check_preamble(data, b"KEYS", name)
    start = frames.PREAMBLE.size + _LENGTH.size
    if len(data) < start + _CHECK or digest(data[:-_CHECK]) != data[-_CHECK:]:
        raise DamageError(f"{name} is damaged: its checksum differs", object_key=name)
    (length,) = _LENGTH.unpack_from(data, frames.PREAMBLE.size)
    if length > _MAX_SLOT or len(data) != start + length + _CHECK:
        raise DamageError(f"{name} has the wrong length", object_key=name)
    document = frames.parse(data[start : start + length], name)
    if document.get("slot") != name.rpartition("/")[2]:
        raise DamageError(f"{name} does not belong where it lies", object_key=name)
    shapes.check(document, _SLOT, name)
    return document


def cost(document: dict[str, Any]) -> int:
    """What trying a slot takes: nobody signs one, so the dear ones are tried last."""
    return int(document["kdf"]["memory_kib"]) * int(document["kdf"]["iterations"])


def slot_info(document: dict[str, Any]) -> SlotInfo:
    """What people may know of a slot."""
    return SlotInfo(document["slot"], document["kind"], document["label"], document["created"])


def unwrap(document: dict[str, Any], secret: Secret, name: str) -> ReaderKeys | None:
    """The keys in a slot, or None where the secret is another one. Raises DamageError."""
    if document.get("kind") != secret.kind:
        return None
    key = _derive(secret.value, document.get("kdf", {}), name)
    rest = {k: v for k, v in document.items() if k != "sealed"}
    try:
        sealed, nonce = bytes.fromhex(document["sealed"]), bytes.fromhex(document["nonce"])
        bundle = AESGCM(key).decrypt(nonce, sealed, frames.canonical(rest))
    except InvalidTag:
        return None
    except (KeyError, ValueError) as error:
        raise DamageError(f"{name} is damaged", object_key=name) from error
    with frames.reading(name):
        return ReaderKeys.from_bundle(frames.parse(bundle, name))
