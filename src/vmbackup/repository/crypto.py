"""Keys and seals (docs/repository-format.md, section 3)."""

import os
import struct
from dataclasses import dataclass
from functools import lru_cache

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmbackup.errors import AccessError, DamageError

ENVELOPE_BYTES = 1168
TAG_BYTES = 16
NONCE_ZERO = bytes(12)
_MLKEM_PUBLIC, _MLKEM_SEED = 1184, 64
_PLACE = struct.Struct(">16sI")
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)

DATA, META = "data", "meta"


def derive(secret: bytes, realm: bytes, purpose: str, session: bytes | None = None, number: int = 0) -> bytes:
    """32 bytes for one purpose: HKDF-SHA-256 salted by the realm."""
    info = b"vmbackup/1/" + purpose.encode()
    if session is not None:
        info += b"\0" + _PLACE.pack(session, number)
    return HKDF(SHA256(), 32, realm, info).derive(secret)


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3-256, 32 bytes."""
    return blake3(data).digest()


def nonce(number: int) -> bytes:
    """The 12 bytes of a nonce that is a number."""
    return number.to_bytes(12, "big")


def seal(key: bytes, aad: bytes, data: bytes) -> bytes:
    """One message under a key that seals nothing else."""
    return AESGCM(key).encrypt(NONCE_ZERO, data, aad)


def unseal(key: bytes, aad: bytes, data: bytes | memoryview, name: str) -> bytes:
    """The message, authenticated. Raises DamageError."""
    try:
        return AESGCM(key).decrypt(NONCE_ZERO, data, aad)
    except (InvalidTag, ValueError) as error:
        raise DamageError(f"{name} is damaged: it cannot be authenticated", object_key=name) from error


@dataclass(frozen=True)
class PrivateKey:
    """An epoch's private key: the ML-KEM-768 seed (64 bytes) and the X25519 key (32 bytes)."""

    raw: bytes

    @classmethod
    def generate(cls) -> "PrivateKey":
        """A new one."""
        return cls(os.urandom(_MLKEM_SEED + 32))

    def _parts(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        return (
            MLKEM768PrivateKey.from_seed_bytes(self.raw[:_MLKEM_SEED]),
            X25519PrivateKey.from_private_bytes(self.raw[_MLKEM_SEED:]),
        )

    def public(self) -> "PublicKey":
        """Its public half."""
        kem, dh = self._parts()
        return PublicKey(kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw())

    def open(self, info: bytes, sealed: bytes, name: str) -> bytes:
        """What was sealed for the public half. Raises AccessError."""
        try:
            return _SUITE.decrypt(sealed, hpke.MLKEM768X25519PrivateKey(*self._parts()), info=info)
        except (InvalidTag, ValueError) as error:
            raise AccessError(f"the private key does not open {name}") from error


@dataclass(frozen=True)
class PublicKey:
    """An epoch's public key: ML-KEM-768 (1,184 bytes) and X25519 (32 bytes)."""

    raw: bytes

    def seal(self, info: bytes, data: bytes) -> bytes:
        """Sealed for the holder of the private key, with 1,136 bytes more than `data`."""
        return _SUITE.encrypt(
            data,
            hpke.MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(self.raw[:_MLKEM_PUBLIC]),
                X25519PublicKey.from_public_bytes(self.raw[_MLKEM_PUBLIC:]),
            ),
            info=info,
        )


def envelope_info(realm: bytes, epoch: int, group: str, session: bytes) -> bytes:
    """What an envelope is bound to."""
    return b"vmbackup/1/envelope\0" + realm + epoch.to_bytes(4, "big") + session + group.encode()


@dataclass(frozen=True)
class GroupKeys:
    """What the writers of a group share. `id_keys`: number -> 32 bytes; the highest number is used for writing."""

    realm: bytes
    group: str
    id_keys: dict[int, bytes]
    lineage_key: bytes

    @property
    def current(self) -> int:
        """The number of the id key that new sessions use."""
        return max(self.id_keys)

    def id_key(self, number: int, name: str) -> bytes:
        """The id key of that number. Raises AccessError."""
        try:
            return self.id_keys[number]
        except KeyError:
            raise AccessError(
                f"{name} is sealed by id key {number} of group '{self.group}', which this key lacks"
            ) from None

    def derive(self, number: int, purpose: str, session: bytes | None = None, pack: int = 0, name: str = "") -> bytes:
        """A key derived from the id key of that number."""
        return derive(self.id_key(number, name), self.realm, purpose, session, pack)

    @lru_cache(maxsize=16)  # noqa: B019  the few groups of a process live as long as it
    def _chunk_id_key(self, number: int) -> bytes:
        return self.derive(number, "chunk id")

    def chunk_id_key(self, number: int | None = None) -> bytes:
        """The key of chunk ids."""
        return self._chunk_id_key(self.current if number is None else number)

    def lineage(self, kind: str, stable_id: str) -> bytes:
        """The 16 bytes of the lineage of a guest."""
        return blake3(kind.encode() + b"\0" + stable_id.encode(), key=self.lineage_key).digest(16)

    def __hash__(self) -> int:
        return hash((self.realm, self.group))
