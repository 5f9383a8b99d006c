"""Index objects made again, byte by byte, out of what is left (docs/repository-format.md, section 7).

A part holds the sealed headers of packs, which the packs have too; a root is made of its parts and sealed with a key
and a nonce that its place gives. So either comes out as it was, which its digest proves.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from vmbackup.errors import DamageError
from vmbackup.repository import hooks, index, packs
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.crypto import DATA, ENVELOPE_BYTES, TAG_BYTES, GroupKeys, digest
from vmbackup.repository.index import IndexRoot, PackEntry
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.packs import FOOTER, RECORD, Birth, Header
from vmbackup.repository.points import Point
from vmbackup.storage_backends import ObjectExists

# Orders of parts that were made again; of one damaged part there are as many as copies.
_TRIES = 24
_COUNTS, _BIRTH = 8, 40  # bytes of a header before its births, and of a birth without its envelope


def put_again(catalog: Catalog, ref: SessionRef, number: int, data: bytes) -> str:
    """Stores an index object that was made again: under its name, or where that is taken under a higher number.

    A reader that finds the one damaged looks for its bytes in those above the root's. Gives the key.
    """
    lineage = catalog.lineage(ref)
    free = number
    while True:
        key = lineage.index(ref.session, free)
        try:
            catalog.store.put(key, data)
        except ObjectExists:
            free = max(free, ref.root) + 1
        else:
            return key


def part(catalog: Catalog, ref: SessionRef, root: IndexRoot, number: int) -> bytes:
    """A part out of the headers in its packs, or hooks out of all. Raises DamageError where one of those is damaged."""
    name = catalog.lineage(ref).index(ref.session, number)
    expected = root.parts[number][1]
    if number == root.hooks_part():
        ids = {e.number: catalog.header(ref, DATA, e.number).ids() for e in root.packs.values() if e.kind == DATA}
        for data in _hooks(catalog.keys, ref, number, ids):
            if digest(data) == expected:
                return data
        raise DamageError(f"{name} cannot be made again out of its packs", object_key=name)
    entries = sorted((e for e in root.packs.values() if e.part == number), key=lambda e: e.offset)
    data = index.encode_part([(entry, _own_header(catalog, ref, entry)) for entry in entries])
    if digest(data) != expected:
        raise DamageError(f"{name} cannot be made again out of its packs", object_key=name)
    return data


def _hooks(keys: GroupKeys, ref: SessionRef, number: int, ids: Mapping[int, Iterable[bytes]]) -> Iterator[bytes]:
    """A part with the hooks of packs, as each id key makes it."""
    found = {pack: chosen for pack, of_pack in ids.items() if (chosen := hooks.select(of_pack))}
    for key_number in sorted(keys.id_keys, reverse=True):
        yield hooks.encode(_until(keys, key_number), ref.session, number, found)


def _until(keys: GroupKeys, key_number: int) -> GroupKeys:
    """The keys as they were when that id key was the current one."""
    return replace(keys, id_keys={number: key for number, key in keys.id_keys.items() if number <= key_number})


def _own_header(catalog: Catalog, ref: SessionRef, entry: PackEntry) -> bytes:
    key = catalog.lineage(ref).pack(entry.kind, ref.session, entry.number)
    sealed = fetch(catalog.store, key, entry.size - FOOTER.size - entry.length, entry.length)
    if digest(sealed) != entry.digest:
        raise DamageError(f"the header of {key} is damaged", object_key=key)
    return sealed


@dataclass
class _Part:
    size: int
    digest: bytes
    packs: list[tuple[PackEntry, Header]]


def root(catalog: Catalog, ref: SessionRef, points: Iterable[Point]) -> bytes:
    """A root out of its parts, and where no pack tells the envelope out of the session's commit among `points`.

    Raises DamageError where a part is damaged too.
    """
    name = catalog.lineage(ref).index(ref.session, ref.root)
    commit = next((point for point in points if point.session == ref.session), None)
    for parts in itertools.islice(_parts(catalog, ref), _TRIES):
        for first in range(ref.root + 1):  # parts of a killed session may stand before it
            for key_number in sorted(catalog.keys.id_keys, reverse=True):
                data = _encoded(catalog.keys, ref, first, parts[first:], commit, key_number)
                if digest(data) == ref.digest:
                    return data
    raise DamageError(f"{name} cannot be made again out of its parts", object_key=name)


def _parts(catalog: Catalog, ref: SessionRef) -> Iterator[list[_Part]]:
    """The parts; for those that are damaged what a repair made again, in each order, for nothing tells which is which.

    Raises DamageError.
    """
    lineage = catalog.lineage(ref)
    found: dict[int, _Part] = {}
    lost: list[int] = []
    for number in range(ref.root):
        try:
            found[number] = _read_part(catalog, ref, number, lineage.index(ref.session, number))
        except DamageError:
            lost.append(number)
    names = (entry.key for entry in catalog.store.list(lineage.prefix("index", ref.session))) if lost else ()
    copies = [name for name in names if int(name.rpartition("-")[2]) > ref.root]
    if lost == [ref.root - 1]:  # it may be the one with the hooks
        ids = {e.number: header.ids() for part in found.values() for e, header in part.packs if e.kind == DATA}
        for data in _hooks(catalog.keys, ref, ref.root - 1, ids):
            yield [*(found[number] for number in range(ref.root - 1)), _Part(len(data), digest(data), [])]
    for chosen in itertools.permutations(copies, len(lost)):
        with contextlib.suppress(DamageError):
            again = {n: _read_part(catalog, ref, n, name) for n, name in zip(lost, chosen, strict=True)}
            yield [(found | again)[number] for number in range(ref.root)]


def _encoded(
    keys: GroupKeys, ref: SessionRef, first: int, parts: list[_Part], commit: Point | None, key_number: int
) -> bytes:
    packed = [one for part in parts for one in part.packs]
    births: dict[bytes, Birth] = {}
    if commit is not None:
        births[ref.session] = Birth(ref.session, ref.lineage, commit.public["epoch"], key_number, commit.envelope)
    for entry, header in packed:
        if entry.kind == DATA:
            for birth in header.births:
                births.setdefault(birth.session, birth)
    sizes = [(part.size, part.digest) for part in parts]
    entries = [entry for entry, _ in packed]
    return index.encode_root(_until(keys, key_number), ref.session, list(births.values()), first, sizes, entries)


def _read_part(catalog: Catalog, ref: SessionRef, number: int, name: str) -> _Part:
    """Raises DamageError."""
    data = fetch(catalog.store, name)
    found = _Part(len(data), digest(data), [])
    if data[8:12] == b"IDXH":
        return found
    for kind, pack, offset, sealed in index.records(data, name):
        header = _opened(catalog, ref, kind, pack, sealed, name)
        last = header.slot(len(header) - 1)
        size = last.offset + last.stored + len(sealed) + FOOTER.size
        entry = PackEntry(kind, pack, size, number, offset, len(sealed), len(header), digest(sealed))
        found.packs.append((entry, header))
    return found


def _opened(catalog: Catalog, ref: SessionRef, kind: str, pack: int, sealed: bytes, name: str) -> Header:
    """A header whose number of slots nobody tells: it follows from its length and the number of its births."""
    birth = _BIRTH + (ENVELOPE_BYTES if kind == DATA else 0)
    for births in range(1, packs.MAX_BIRTHS + 1):
        slots, rest = divmod(len(sealed) - TAG_BYTES - _COUNTS - births * birth, RECORD.size)
        if slots < 0:
            break
        if rest:
            continue
        for number in catalog.keys.id_keys:
            key = packs.header_key(kind, catalog.keys, number, ref.session, pack)
            try:
                return packs.open_header(sealed, key, number, slots, name)
            except DamageError:
                continue
    raise DamageError(f"{name} is damaged", object_key=name)
