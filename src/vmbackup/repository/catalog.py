"""Finding packs and their headers, from the index roots that a restore point vouches for."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.errors import DamageError
from vmbackup.repository import packs
from vmbackup.repository.crypto import META, GroupKeys, digest
from vmbackup.repository.index import IndexRoot, PackEntry, open_root
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moves import Moves, Place, Table
from vmbackup.repository.nodes import Node, Ref, decode
from vmbackup.repository.packs import FOOTER, Header
from vmbackup.storage_backends import ObjectMissing, ObjectTruncated, Store

# A header of 512 slots is 37 KB, the largest 590 KB. A pass in disk order needs a few at a time.
_HEADER_BYTES = 16 << 20
# An incremental's root tells of some packs, that of 2 TiB of 65,536: about 30 MB, and as much for all others.
_ROOT_PACKS = 1 << 16
_LEAVES = 64

ReadTables = Callable[[Lineage, frozenset[bytes]], list[Table] | None]
"""The tables of a history that hold now; None where they are the sessions that are known."""

K = TypeVar("K")
V = TypeVar("V")


class _Cache(OrderedDict[K, V]):
    """The values used last, as many as cost no more than `limit` together, but always the last one."""

    def __init__(self, limit: int, cost: Callable[[V], int] = lambda _value: 1) -> None:
        super().__init__()
        self._limit, self._cost = limit, cost
        self._held = 0

    def fetch(self, key: K, make: Callable[[], V]) -> V:
        try:
            value = self[key]
            self.move_to_end(key)
        except KeyError:
            value = make()
            self[key] = value
            self._held += self._cost(value)
            while self._held > self._limit and len(self) > 1:
                self._held -= self._cost(self.popitem(last=False)[1])
        return value


class Catalog:
    """Index roots, headers and map nodes of one group, cached. Safe to share between threads.

    `moves`: the tables of moves known so far. What is not where it was is looked for in those of its history, which
    `read_tables(lineage, known sessions)` gives.
    """

    def __init__(self, store: Store, keys: GroupKeys, read_tables: ReadTables = lambda _lineage, _known: None) -> None:
        self.store, self.keys = store, keys
        self.moves = Moves()
        self._read_tables = read_tables
        self._refused: frozenset[bytes] = frozenset()
        self._lock = threading.RLock()
        self._roots: _Cache[tuple[bytes, int], IndexRoot] = _Cache(_ROOT_PACKS, lambda root: 1 + len(root.packs))
        self._headers: _Cache[tuple[bytes, str, int], Header] = _Cache(
            _HEADER_BYTES, lambda header: len(header.records)
        )
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
        try:
            return open_root(fetch(self.store, name), ref.digest, self.keys, ref.session, ref.root, name)
        except DamageError:
            copy = self.index_copy(ref, ref.digest)
            if copy is None:
                raise
            return open_root(copy, ref.digest, self.keys, ref.session, ref.root, name)

    def index_copy(self, ref: SessionRef, expected: bytes) -> bytes | None:
        """An index object that a repair made again under a number above the root's; None where there is none."""
        lineage = self.lineage(ref)
        for entry in self.store.list(lineage.prefix("index", ref.session)):
            if int(entry.key.rpartition("-")[2]) > ref.root:
                with contextlib.suppress(DamageError):
                    data = fetch(self.store, entry.key)
                    if digest(data) == expected:
                        return data
        return None

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
            try:
                return self.open_header(ref, entry, fetch(self.store, name, at, entry.length), name)
            except DamageError:
                copy = self.index_copy(ref, self.root(ref).parts[entry.part][1])
                if copy is None:
                    raise
                return self.open_header(ref, entry, copy[entry.offset : entry.offset + entry.length], part)

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

    # Moved slots

    def use(self, tables: Iterable[Table], refused: Iterable[bytes] = ()) -> None:
        """Tables that were read with the points of their history; those of `refused` sessions are never used."""
        with self._lock:
            self._refused = frozenset({*self._refused, *refused})
            known = {table.session: table for table in (*self.moves.tables, *tables)}
            self.moves = Moves(table for table in known.values() if table.session not in self._refused)

    def hold(self, tables: Iterable[Table]) -> None:
        """These tables and no others."""
        with self._lock:
            self.moves = Moves(tables)

    def learn(self, lineage: bytes) -> bool:
        """Reads the tables of a history again, after something was not where it should be. Whether any is new."""
        with self._lock:
            old = [table for table in self.moves.tables if table.lineage == lineage]
            found = self._read_tables(Lineage(self.keys.group, lineage), frozenset(t.session for t in old))
            if found is None:
                return False
            rest = [table for table in self.moves.tables if table.lineage != lineage]
            new = [table for table in found if table.session not in self._refused]
            self.moves = Moves((*rest, *new))
            return {table.session for table in new} != {table.session for table in old}

    def places(self, ref: SessionRef, kind: str, pack: int, slot: int, slots: int = 1) -> list[Place]:
        """Where consecutive slots lie now. A moved one counts only if its id is the old one. Raises DamageError."""
        moves = self.moves
        if not moves.concerns(ref.session):
            return [Place(ref, pack, slot, slots)]
        found: list[Place] = []
        at = slot
        for place in moves.places(ref, kind, pack, slot, slots):
            if not place.tables or self._same(ref, kind, pack, at, place):
                found.append(place)
            else:
                found.append(Place(ref, pack, at, place.slots))
            at += place.slots
        return found

    def _same(self, ref: SessionRef, kind: str, pack: int, slot: int, place: Place) -> bool:
        try:
            new = self.header(place.ref, kind, place.pack).ids_of(place.slot, place.slots)
        except DamageError:
            return False
        return bool(new) and new == self.header(ref, kind, pack).ids_of(slot, place.slots)

    def node(self, ref: Ref, first: int, session: SessionRef, chunk_size: int) -> Node:
        """A map node, its id recomputed. Raises DamageError."""
        with self._lock:
            data = self._nodes.fetch(ref.id, lambda: self._find_node(ref, session))
        name = self.lineage(session).pack(META, session.session, ref.pack)
        return decode(data, ref, first, chunk_size, name)

    def _find_node(self, ref: Ref, session: SessionRef) -> bytes:
        origin = Place(session, ref.pack, ref.slot, 1)
        try:
            (place,) = self.moves.places(session, META, ref.pack, ref.slot, 1)
            return self._read_node(ref, place)
        except DamageError:
            if self.learn(session.lineage):
                return self._find_node(ref, session)
            if place == origin:
                raise
            return self._read_node(ref, origin)

    def _read_node(self, ref: Ref, place: Place) -> bytes:
        name = self.lineage(place.ref).pack(META, place.ref.session, place.pack)
        header = self.header(place.ref, META, place.pack)
        slot = header.slot(place.slot)
        if slot.id != ref.id:
            raise DamageError(f"{name}, slot {place.slot} holds another map node than the map says", object_key=name)
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
