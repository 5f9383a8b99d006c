"""The enrolled writers and their revocations, as the realm signed them (docs/repository-format.md, section 4)."""

import contextlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmbackup.errors import DamageError
from vmbackup.repository import frames, shapes
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import digest
from vmbackup.repository.keys import Identity
from vmbackup.repository.layout import SESSION_BYTES, Lineage
from vmbackup.repository.opening import RepositoryConfig
from vmbackup.repository.shapes import Hex
from vmbackup.repository.writers import Enrolment
from vmbackup.storage_backends import Store

MOST_REVOCATION = 16 << 20  # bytes: half a million commits of one writer
_REVOKED = ".revoked"
_ENROLMENT = {
    **dict.fromkeys(("name", "role", "group"), str),
    "realm": Hex(),
    "writer": Hex(8),
    "public_key": Hex(32),
}
_REVOCATION = {"realm": Hex(), "writer": Hex(8), "stands": {str: Hex()}}


class Enrolments:
    """Reads them; what was read once is kept, for no name is written twice.

    `lost`: the errors of revocations that the config lists, by the writer's id: nothing stands of those writers.
    """

    def __init__(self, store: Store, identity: Identity) -> None:
        self._store, self._identity = store, identity
        self._known: dict[str, Enrolment] = {}
        self._standing: dict[bytes, tuple[bytes, frozenset[bytes]]] = {}
        self.lost: dict[bytes, DamageError] = {}

    def read(self, config: RepositoryConfig, own: Enrolment | None) -> dict[bytes, Enrolment]:
        """All that can be read, and a reader's `own`, by id. Raises RepositoryError (newer)."""
        found = {own.id: own} if own else {}
        revoked = set(config.revoked)
        for entry in self._store.list("writers/"):
            with contextlib.suppress(DamageError):  # verify tells of it; its points tell who signed them
                if entry.key.endswith(_REVOKED):
                    revoked.add(bytes.fromhex(entry.key.removeprefix("writers/").removesuffix(_REVOKED)))
                    continue
                if entry.key not in self._known:
                    self._known[entry.key] = self.enrolment(entry.key, fetch(self._store, entry.key))
                found[self._known[entry.key].id] = self._known[entry.key]
        self.lost = {}
        return {
            writer: self._judged(enrolment, config.revoked.get(writer)) if writer in revoked else enrolment
            for writer, enrolment in found.items()
        }

    def _judged(self, writer: Enrolment, listed: bytes | None) -> Enrolment:
        """A writer with what stands of it; as enrolled where its revocation is none and the config lists none."""
        key = revocation_key(writer.id)
        try:
            known, standing = self._standing.get(writer.id) or self._read_revocation(key, writer.id)
            if listed is not None and known != listed:
                raise DamageError(f"{key} is not the one that the config lists", object_key=key)
        except DamageError as error:
            if listed is None:
                return writer
            self.lost[writer.id] = error
            standing = frozenset()
        return Enrolment(writer.id, writer.name, writer.role, writer.group, writer.public, standing)

    def _read_revocation(self, key: str, writer: bytes) -> tuple[bytes, frozenset[bytes]]:
        data = fetch(self._store, key)
        found = digest(data), self.revocation(key, data)
        self._standing[writer] = found
        return found

    def enrolment(self, key: str, data: bytes) -> Enrolment:
        """Out of a WRTR. Raises DamageError, RepositoryError."""
        document = frames.open_document(data, b"WRTR", key, self._identity.verify_key)
        shapes.check(document, _ENROLMENT, key)
        if document["realm"] != self._identity.realm.hex() or key != f"writers/{document['writer']}":
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        with frames.reading(key):
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key"]))
        writer = bytes.fromhex(document["writer"])
        return Enrolment(writer, document["name"], document["role"], document["group"], public)

    def revocation(self, key: str, data: bytes) -> frozenset[bytes]:
        """Lineage and session of the commits that stand, out of a WRVK. Raises DamageError, RepositoryError."""
        document = frames.open_document(data, b"WRVK", key, self._identity.verify_key, MOST_REVOCATION)
        shapes.check(document, _REVOCATION, key)
        if document["realm"] != self._identity.realm.hex() or key != f"writers/{document['writer']}{_REVOKED}":
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        found = set()
        for lineage, text in document["stands"].items():
            with frames.reading(key):
                place, sessions = bytes.fromhex(lineage), bytes.fromhex(text)
            if len(place) != Lineage.BYTES or len(sessions) % SESSION_BYTES:
                raise DamageError(f"{key} is malformed", object_key=key)
            found |= {place + sessions[at : at + SESSION_BYTES] for at in range(0, len(sessions), SESSION_BYTES)}
        return frozenset(found)


def revocation_key(writer: bytes) -> str:
    """The name of a writer's revocation."""
    return f"writers/{writer.hex()}{_REVOKED}"
