"""The enrolled writers and their revocations, as the realm signed them (docs/repository-format.md, section 4)."""

import contextlib
from collections import defaultdict
from dataclasses import replace
from datetime import datetime

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
from vmbackup.storage_backends import Entry, Store

MOST_REVOCATION = 16 << 20  # bytes: half a million commits of one writer
_AROUND = 1 << 10  # bytes of a revocation beside its JSON, generous
REVOKED = ".revoked"
_ENROLMENT = {
    **dict.fromkeys(("name", "role", "group"), str),
    "realm": Hex(),
    "writer": Hex(8),
    "public_key": Hex(32),
    "created?": str,
}
_REVOCATION = {"realm": Hex(), "repository?": Hex(16), "writer": Hex(8), "stands": {str: Hex()}}


class Enrolments:
    """Reads them; what was read once is kept, for no name is written twice.

    A writer has one name for each, and further ones with a number: whoever may put objects may occupy a name, so what
    the realm did not sign counts for nothing, and what it did is put under the next. Of several revocations that it
    signed only what all of them list stands.
    `lost`: the errors of revocations that the config lists, by the writer's id: nothing stands of those writers.
    """

    def __init__(self, store: Store, identity: Identity, repository: bytes) -> None:
        self._store, self._identity, self._repository = store, identity, repository
        self._known: dict[Entry, Enrolment | None] = {}
        self._revocations: dict[Entry, tuple[bytes, frozenset[bytes]] | None] = {}
        self._of: dict[bytes, list[Entry]] = {}
        self.lost: dict[bytes, DamageError] = {}

    def read(self, config: RepositoryConfig, own: Enrolment | None) -> dict[bytes, Enrolment]:
        """All that can be read, and a reader's `own`, by id. Raises RepositoryError (newer)."""
        found = {own.id: own} if own else {}
        of: dict[bytes, list[Entry]] = defaultdict(list)
        for entry in self._store.list("writers/"):
            writer = writer_of(entry.key)
            if REVOKED in entry.key:
                of[writer].append(entry)
            elif enrolment := self._enrolled(entry):
                found.setdefault(enrolment.id, enrolment)
        self._of, self.lost = of, {}
        revoked = {*config.revoked, *of}
        return {
            writer: self._judged(enrolment, config.revoked.get(writer)) if writer in revoked else enrolment
            for writer, enrolment in found.items()
        }

    def revocations(self, writer: bytes) -> dict[str, bytes]:
        """The digests of those of a writer that are valid, by their names, as `read` found them."""
        found = {entry.key: self._revoked(entry) for entry in self._of.get(writer, ())}
        return {key: valid[0] for key, valid in found.items() if valid}

    def _enrolled(self, entry: Entry) -> Enrolment | None:
        """None for one that is none: verify tells of it; its points tell who signed them."""
        if entry not in self._known:
            try:
                self._known[entry] = self.enrolment(entry.key, fetch(self._store, entry.key))
            except DamageError:
                self._known[entry] = None
        return self._known[entry]

    def _revoked(self, entry: Entry) -> tuple[bytes, frozenset[bytes]] | None:
        """Digest and what stands; None where it is none."""
        if entry not in self._revocations:
            self._revocations[entry] = None
            if entry.size <= MOST_REVOCATION + _AROUND:
                with contextlib.suppress(DamageError):
                    data = fetch(self._store, entry.key)
                    self._revocations[entry] = digest(data), self.revocation(entry.key, data)
        return self._revocations[entry]

    def _judged(self, writer: Enrolment, listed: bytes | None) -> Enrolment:
        """A writer with what stands of it; as enrolled where no revocation is one and the config lists none."""
        valid = [found for entry in self._of.get(writer.id, ()) if (found := self._revoked(entry))]
        if listed is not None and listed not in (known for known, _ in valid):
            key = revocation_key(writer.id)
            there = any(entry.key == key for entry in self._of.get(writer.id, ()))
            wrong = "is not the one that the config lists" if there else "is missing"
            self.lost[writer.id] = DamageError(f"{key} {wrong}", object_key=key)
            return replace(writer, standing=frozenset())
        if not valid:
            return writer
        return replace(writer, standing=frozenset.intersection(*(standing for _, standing in valid)))

    def enrolment(self, key: str, data: bytes) -> Enrolment:
        """Out of a WRTR. Raises DamageError, RepositoryError."""
        document = frames.open_document(data, b"WRTR", key, self._identity.verify_key)
        shapes.check(document, _ENROLMENT, key)
        writer = bytes.fromhex(document["writer"])
        if document["realm"] != self._identity.realm.hex() or writer_of(key) != writer or REVOKED in key:
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        with frames.reading(key):
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key"]))
            created = datetime.fromisoformat(document["created"]) if "created" in document else None
        if created is not None and created.tzinfo is None:
            created = None
        return Enrolment(writer, document["name"], document["role"], document["group"], public, None, created)

    def revocation(self, key: str, data: bytes) -> frozenset[bytes]:
        """Lineage and session of the commits that stand, out of a WRVK. Raises DamageError, RepositoryError."""
        document = frames.open_document(data, b"WRVK", key, self._identity.verify_key, MOST_REVOCATION)
        shapes.check(document, _REVOCATION, key)
        writer = bytes.fromhex(document["writer"])
        if document["realm"] != self._identity.realm.hex() or writer_of(key) != writer or REVOKED not in key:
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        if document.get("repository", self._repository.hex()) != self._repository.hex():
            raise DamageError(f"{key} is of another repository", object_key=key)
        found = set()
        for lineage, text in document["stands"].items():
            with frames.reading(key):
                place, sessions = bytes.fromhex(lineage), bytes.fromhex(text)
            if len(place) != Lineage.BYTES or len(sessions) % SESSION_BYTES:
                raise DamageError(f"{key} is malformed", object_key=key)
            found |= {place + sessions[at : at + SESSION_BYTES] for at in range(0, len(sessions), SESSION_BYTES)}
        return frozenset(found)


def writer_of(key: str) -> bytes:
    """Whose enrolment or revocation lies under that name."""
    return bytes.fromhex(key.removeprefix("writers/").partition(".")[0])


def enrolment_key(writer: bytes, number: int = 0) -> str:
    """A name of a writer's enrolment; one with a number is used where those before it are occupied."""
    return f"writers/{writer.hex()}{f'.{number}' if number else ''}"


def revocation_key(writer: bytes, number: int = 0) -> str:
    """A name of a writer's revocation, in the same way."""
    return f"writers/{writer.hex()}{REVOKED}{f'.{number}' if number else ''}"
