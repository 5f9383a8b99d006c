"""What a scrub found broken: writers build on it no more (docs/repository-format.md, section 11)."""

import contextlib
import struct
from typing import TYPE_CHECKING

from vmbackup.errors import DamageError
from vmbackup.repository import frames
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA, META, digest
from vmbackup.storage_backends import ObjectMissing, Store

if TYPE_CHECKING:
    from collections.abc import Iterable

_KINDS = {DATA: 1, META: 2}
_NAMES = {number: kind for kind, number in _KINDS.items()}
_ENTRY = struct.Struct(">B16s16sI")
_SIZE = frames.PREAMBLE.size + _ENTRY.size


def record(store: Store, group: str, packs: "Iterable[ObjectName]") -> None:
    """One object a pack, of a name that its content gives: the same finding is one object."""
    for name in packs:
        body = frames.preamble(b"DAMG") + _ENTRY.pack(_KINDS[name.kind], name.lineage, name.session, name.number)
        store.put(f"damage/{group}/{digest(body)[:16].hex()}", body)


def read(store: Store, group: str) -> dict[str, ObjectName]:
    """The packs with a finding, by the keys of the records. What is no record counts for nothing."""
    found = {}
    for entry in store.list(f"damage/{group}/"):
        with contextlib.suppress(DamageError, ObjectMissing):
            data = store.get(entry.key) if entry.size == _SIZE else b""
            found[entry.key] = decode(data, entry.key)
    return found


def decode(data: bytes, key: str) -> ObjectName:
    """The pack that a record names. Raises DamageError, RepositoryError (newer)."""
    frames.check_preamble(data, b"DAMG", key)
    if len(data) != _SIZE or key.rpartition("/")[2] != digest(data)[:16].hex():
        raise DamageError(f"{key} is damaged: its name is not its digest", object_key=key)
    kind, *rest = _ENTRY.unpack_from(data, frames.PREAMBLE.size)
    if kind not in _NAMES:
        raise DamageError(f"{key} is malformed", object_key=key)
    return ObjectName(_NAMES[kind], *rest)
