"""Finding packs and their headers, from the index roots that a restore point vouches for."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.errors import DamageError
from vmbackup.repository import packs
from vmbackup.repository.crypto import META, GroupKeys, digest
from vmbackup.repository.index import IndexRoot, PackEntry, open_root
from vmbackup.repository.layout import Lineage
from vmbackup.repository.nodes import Node, Ref, decode
from vmbackup.repository.packs import FOOTER, Header
from vmbackup.storage_backends import ObjectMissing, ObjectTruncated, Store

# A header of 512 slots is 37 KB; 256 of them 10 MB. A pass in disk order needs a few at a time.
_HEADERS = 256
_ROOTS = 256
_LEAVES = 64

K = TypeVar("K")
V = TypeVar("V")


class SessionRef(NamedTuple):
    """An entry of a point's session table: where a session's objects lie, and the digest of its index root."""

    number: int
    session: bytes
    lineage: bytes
    root: int
    digest: bytes


class _Cache(OrderedDict[K, V]):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def fetch(self, key: K, make: Callable[[], V]) -> V:
        try:
            value = self[key]
            self.move_to_end(key)
        except KeyError:
            value = self[key] = make()
            if len(self) > self._limit:
                self.popitem(last=False)
        return value


class Catalog:
    """Index roots, headers and map nodes of one group, cached. Safe to share between threads."""

    def __init__(self, store: Store, keys: GroupKeys) -> None:
        self.store, self.keys = store, keys
        self._lock = threading.RLock()
        self._roots: _Cache[tuple[bytes, int], IndexRoot] = _Cache(_ROOTS)
        self._headers: _Cache[tuple[bytes, str, int], Header] = _Cache(_HEADERS)
        self._nodes: _Cache[bytes, bytes] = _Cache(_LEAVES)

    def lineage(self, ref: SessionRef) -> Lineage:
        """Where a session's objects lie."""
        return Lineage(self.keys.group, ref.lineage)

    def root(self, ref: SessionRef) -> IndexRoot:
        """A session's index root. Raises DamageError."""
        with self._lock:
            return self._roots.fetch((ref.session, ref.root), lambda: self._read_root(ref))

    def _read_root(self, ref: SessionRef) -> IndexRoot:
        name = self.lineage(ref).index(ref.session, ref.root)
        data = fetch(self.store, name)
        return open_root(data, ref.digest, self.keys, ref.session, ref.root, name)

    def entry(self, ref: SessionRef, kind: str, pack: int) -> PackEntry:
        """A pack as the index tells it. Raises DamageError where it tells of none."""
        try:
            return self.root(ref).packs[kind, pack]
        except KeyError:
            name = self.lineage(ref).pack(kind, ref.session, pack)
            raise DamageError(f"the index knows no {name}", object_key=name) from None

    def header(self, ref: SessionRef, kind: str, pack: int) -> Header:
        """A pack's header, from the index or, where that is damaged, from the pack. Raises DamageError."""
        with self._lock:
            return self._headers.fetch((ref.session, kind, pack), lambda: self._read_header(ref, kind, pack))

    def _read_header(self, ref: SessionRef, kind: str, pack: int) -> Header:
        entry = self.entry(ref, kind, pack)
        lineage = self.lineage(ref)
        name = lineage.pack(kind, ref.session, pack)
        try:
            part = lineage.index(ref.session, entry.part)
            return self.open_header(ref, entry, fetch(self.store, part, entry.offset, entry.length), part)
        except DamageError:
            at = entry.size - FOOTER.size - entry.length
            return self.open_header(ref, entry, fetch(self.store, name, at, entry.length), name)

    def open_header(self, ref: SessionRef, entry: PackEntry, sealed: bytes, found_in: str) -> Header:
        """A header out of its sealed bytes, compared with the index's digest. Raises DamageError."""
        if digest(sealed) != entry.digest:
            raise DamageError(f"{found_in} is damaged: a header's digest differs", object_key=found_in)
        name = self.lineage(ref).pack(entry.kind, ref.session, entry.number)
        for number in sorted(self.keys.id_keys, reverse=True):
            key = packs.header_key(entry.kind, self.keys, number, ref.session, entry.number)
            try:
                return packs.open_header(sealed, key, number, entry.slots, name)
            except DamageError:
                continue
        raise DamageError(f"the header of {name} cannot be authenticated", object_key=name)

    def node(self, ref: Ref, first: int, session: SessionRef, chunk_size: int) -> Node:
        """A map node, its id recomputed. Raises DamageError."""
        name = self.lineage(session).pack(META, session.session, ref.pack)
        with self._lock:
            data = self._nodes.fetch(ref.id, lambda: self._read_node(ref, session, name))
        return decode(data, ref, first, chunk_size, name)

    def _read_node(self, ref: Ref, session: SessionRef, name: str) -> bytes:
        header = self.header(session, META, ref.pack)
        slot = header.slot(ref.slot)
        if slot.id != ref.id:
            raise DamageError(f"{name}, slot {ref.slot} holds another map node than the map says", object_key=name)
        stored = fetch(self.store, name, slot.offset, slot.stored)
        birth = header.birth_of(slot)
        key = packs.pack_key(META, self.keys, birth, b"", slot.birth_pack)
        opener = packs.SlotOpener(packs.aad_prefix(self.keys.realm, META), self.keys.chunk_id_key(birth.key_number))
        return opener.open(slot, stored, AESGCM(key), name)


def fetch(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    """An object or a range of it that must be there. Raises DamageError where it is missing or cut."""
    try:
        return store.get(key, offset, length)
    except ObjectMissing as error:
        raise DamageError(f"{key} is missing", object_key=key) from error
    except ObjectTruncated as error:
        raise DamageError(f"{key} is cut short", object_key=key) from error
