"""The commits of restore points on this host, as they are stored: immutable, and authenticated anew on each reading.

Beside a commit stands a proof of each signature that held: a hash of who signed what, under a key that only this key's
holder has. It spares checking it once more (0.26 ms) and proves nothing to anybody else.
"""

import contextlib
from collections.abc import Callable, Container
from typing import TypeVar

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmbackup.errors import VmbackupError
from vmbackup.repository.cache import Cache
from vmbackup.repository.points import Verify, verify_signature
from vmbackup.storage_backends import Entry

# Commits of some KiB that are written to the file together.
_BATCH = 256

_CONTEXT = "vmbackup 2026-11 proof of a signature in the cache of a host"
_PROOF = 32
_MOST_PROOFS = 8  # two of a copy, for a few keys

T = TypeVar("T")


class Proofs:
    """The signatures of one commit that held: those known from before, and those checked now."""

    def __init__(self, key: bytes, known: bytes) -> None:
        self._key = key
        self._known = [known[at : at + _PROOF] for at in range(0, len(known), _PROOF)]
        self._new: list[bytes] = []

    def verify(self, public: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
        """Raises InvalidSignature."""
        proof = blake3(public.public_bytes_raw() + signature + message, key=self._key).digest(_PROOF)
        if proof not in self._known:
            verify_signature(public, signature, message)
            self._new.append(proof)

    @property
    def grown(self) -> bool:
        """Whether a signature was checked that was not known to hold."""
        return bool(self._new)

    def to_bytes(self) -> bytes:
        """The newest few: another key on this host has its own of the same commit."""
        return b"".join([*self._new, *self._known][:_MOST_PROOFS])


class PointCache:
    """Bodies of objects below `points/`, by key, size and time, as the store tells them: a changed one is read.

    `own`: the key of who reads, which makes the key of the proofs.
    """

    def __init__(self, cache: Cache, own: Ed25519PrivateKey) -> None:
        self._cache = cache
        self._key = blake3(own.private_bytes_raw(), derive_key_context=_CONTEXT).digest()
        self._new: list[tuple[str, int, float, bytes, bytes]] = []

    def get(self, entry: Entry, read: Callable[[str], bytes], decode: Callable[[bytes, Verify], T]) -> T:
        """What `decode` makes of a body: of one that `read(key)` gets, where none here passes. Raises what they do."""
        rows = self._cache.rows(
            "SELECT body, proofs FROM points WHERE key = ? AND size = ? AND modified = ? AND length(body) = size",
            (entry.key, entry.size, entry.modified),
        )
        if rows and isinstance(rows[0][0], bytes) and isinstance(rows[0][1], bytes):
            body, known = rows[0]
            with contextlib.suppress(VmbackupError):
                proofs = Proofs(self._key, known)
                found = decode(body, proofs.verify)
                if proofs.grown:
                    self._keep(entry, body, proofs)
                return found
        data, proofs = read(entry.key), Proofs(self._key, b"")
        found = decode(data, proofs.verify)
        self._keep(entry, data, proofs)
        return found

    def _keep(self, entry: Entry, data: bytes, proofs: Proofs) -> None:
        if self._cache and len(data) == entry.size:
            self._new.append((entry.key, entry.size, entry.modified, data, proofs.to_bytes()))
            if len(self._new) >= _BATCH:
                self._flush()

    def _flush(self) -> None:
        new, self._new = self._new, []
        if new:
            self._cache.change(("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", new))

    def close(self, prefix: str, keys: Container[str]) -> None:
        """Writes what was read, and drops what is below `prefix` but not among the keys: it is gone from the store."""
        self._flush()
        rows = self._cache.rows("SELECT key FROM points WHERE key >= ? AND key < ?", (prefix, prefix[:-1] + "0"))
        if gone := [row for row in rows if row[0] not in keys]:
            self._cache.change(("DELETE FROM points WHERE key = ?", gone))
