"""Writers: who signs restore points, as the realm enrolled it, and the key file of a host that may not read.

The file is described in docs/repository-format.md, section 5.
"""

import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmbackup.errors import AccessError
from vmbackup.repository import frames
from vmbackup.repository.crypto import GroupKeys, PrivateKey, digest

_KIND, _VERSION = "vmbackup writer key", 1
_HINT = "get the file again from where 'vmbackup key add-writer' made it, or make another one there"
ROLES = ("backup", "prune")  # of hosts with a key file
NOT_A_READER = "this host's key may not read stored data"
BY_READER = "run this where the repository opens with the passphrase or the recovery key"


@dataclass(frozen=True)
class WriterKey:
    """Who signs restore points: 8 bytes of id, a name, a role (`reader`, `backup`, `prune`) and a group."""

    id: bytes
    name: str
    role: str
    group: str
    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls, name: str, role: str, group: str) -> "WriterKey":
        """A new one."""
        return cls(os.urandom(8), name, role, group, Ed25519PrivateKey.generate())

    def enrolment(self) -> "Enrolment":
        """As the realm would enrol it."""
        return Enrolment(self.id, self.name, self.role, self.group, self.private.public_key())

    def document(self) -> dict[str, Any]:
        """All of it, to be kept secret."""
        return {
            "id": self.id.hex(),
            "name": self.name,
            "role": self.role,
            "group": self.group,
            "private_key": self.private.private_bytes_raw().hex(),
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "WriterKey":
        """Out of such a document. Raises KeyError, ValueError, TypeError."""
        private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(document["private_key"]))
        name, role, group = document["name"], document["role"], document["group"]
        return cls(bytes.fromhex(document["id"]), name, role, group, private)


@dataclass(frozen=True)
class Enrolment:
    """A writer as the realm enrolled it. `standing`: lineage + session of what counts of a revoked one.

    `created`: when it was enrolled, by the clock of who did; None where that is not told.
    """

    id: bytes
    name: str
    role: str
    group: str
    public: Ed25519PublicKey
    standing: frozenset[bytes] | None = None
    created: datetime | None = None

    @property
    def revoked(self) -> bool:
        """Whether it was revoked: then nothing that it forgets counts, and of the rest what stood."""
        return self.standing is not None

    def stands(self, lineage: bytes, session: bytes) -> bool:
        """Whether what it signed as the commit of that session counts, as far as it was not revoked since."""
        return self.standing is None or lineage + session in self.standing

    def may_collect(self, group: str) -> bool:
        """Whether what it forgets of the group is forgotten."""
        return self.role == "reader" or (self.role == "prune" and self.group == group)

    def may_write(self, group: str) -> bool:
        """Whether restore points of the group count that it signed."""
        return self.role == "reader" or (self.role == "backup" and self.group == group)


@dataclass(frozen=True)
class WriterKeys:
    """All that the host of a writer has: the realm's public signing key, its group's keys, its own signing key."""

    reads: ClassVar[bool] = False

    realm: bytes
    verify_key: Ed25519PublicKey
    keys: GroupKeys = field(repr=False)
    writer: WriterKey

    def private(self, _epoch: int) -> PrivateKey:
        """Raises AccessError: it has none."""
        raise AccessError(NOT_A_READER, BY_READER)

    def to_text(self) -> str:
        """The key file."""
        document = {
            "kind": _KIND,
            "version": _VERSION,
            "realm": self.realm.hex(),
            "verify_key": self.verify_key.public_bytes_raw().hex(),
            "id_keys": [{"number": n, "key": key.hex()} for n, key in sorted(self.keys.id_keys.items())],
            "lineage_key": self.keys.lineage_key.hex(),
            "writer": self.writer.document(),
        }
        return json.dumps(document | {"checksum": _checksum(document)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_text(cls, text: str, name: str) -> "WriterKeys":
        """Out of the key file `name`. Raises AccessError where it is none, damaged, or of a newer version."""
        try:
            document = json.loads(text)
            kind, version = document["kind"], int(document["version"])
            checksum = _checksum({name: value for name, value in document.items() if name != "checksum"})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise AccessError(f"{name} is no writer key, or is damaged", _HINT) from None
        if kind != _KIND:
            raise AccessError(f"{name} is no writer key", _HINT)
        if version > _VERSION:
            raise AccessError(f"{name} was made by a newer version of vmbackup", "upgrade vmbackup on this host")
        if document.get("checksum") != checksum:
            raise AccessError(f"{name} is damaged: its checksum differs", _HINT)
        try:
            realm, writer = bytes.fromhex(document["realm"]), WriterKey.from_document(document["writer"])
            id_keys = {k["number"]: bytes.fromhex(k["key"]) for k in document["id_keys"]}
            group = GroupKeys(realm, writer.group, id_keys, bytes.fromhex(document["lineage_key"]))
            return cls(realm, Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["verify_key"])), group, writer)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AccessError(f"{name} lacks what a writer key must have", _HINT) from None


def _checksum(document: dict[str, Any]) -> str:
    """Of all other fields."""
    return digest(frames.canonical(document)).hex()
