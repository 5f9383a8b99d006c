"""Reading chunks out of packs: fetched, authenticated, decoded, their ids recomputed."""

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.errors import DamageError
from vmbackup.repository import packs
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, TAG_BYTES, digest
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.moves import Place
from vmbackup.repository.packs import Birth, Header, Slot
from vmbackup.repository.repository import Repository
from vmbackup.storage_backends import ObjectMissing, ObjectTruncated

# Parts of a pack that lie closer together are read as one: a seek, or a request, costs more than these bytes.
GAP_BYTES = 256 << 10
# Bytes of a pack that are read at once: of an object store as many as there are, a request costs more than the rest; of
# a folder what the processor's caches still hold when it is decoded. Four times as much took 6 % more CPU, and memory.
_FOLDER_BYTES = 4 << 20
_CIPHERS = 64

T = TypeVar("T")


class Wanted(NamedTuple):
    """Consecutive slots of a pack, and a number of the caller's for the first of them (a place in a disk)."""

    slot: int
    chunks: int
    first: int


class _Part(NamedTuple):
    """Wanted slots at their place now; `old` is where they were in the pack that was asked for."""

    slot: int
    chunks: int
    first: int
    old: int


def _rest(parts: list[_Part], done: int) -> list[Wanted]:
    """What is left of the parts, slot by slot at its old place, after so many chunks."""
    slots = [(part.old + step, part.first + step) for part in parts for step in range(part.chunks)]
    return [Wanted(old, 1, first) for old, first in slots[done:]]


class Secrets:
    """Session secrets out of their envelopes, opened once each. Shared by threads."""

    def __init__(self, repository: Repository, group: str) -> None:
        self._repository, self._group = repository, group
        self._known: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def of(self, birth: Birth, name: str) -> bytes:
        """The secret of a birth's session. Raises AccessError."""
        with self._lock:
            if birth.session not in self._known:
                self._known[birth.session] = self._repository.open_envelope(
                    self._group, birth.session, birth.epoch, birth.envelope, name
                )
            return self._known[birth.session]


class SlotReader(ABC, Generic[T]):
    """Reads slots of data packs. Not shared between threads; holds a buffer as large as the largest read."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._buffer = bytearray(1 << 20)
        self.of_folder = catalog.store.url.startswith("file:")  # which is asked often at little cost
        self._most = _FOLDER_BYTES if self.of_folder else packs.PACK_BYTES

    @abstractmethod
    def open(self, header: Header, slot: Slot, stored: memoryview) -> T:
        """What is made of the stored bytes of a slot, which are the buffer's. Raises DamageError."""

    def read(self, ref: SessionRef, pack: int, wanted: Sequence[Wanted]) -> Iterator[tuple[int, T]]:
        """(the caller's number, what it is made of) of each wanted slot, wherever it lies now. Raises DamageError.

        They come in the order of the pack, but for those that were moved.
        """
        for place, parts in self._placed(ref, pack, sorted(wanted)):
            done = 0
            try:
                for number, data in self._read(place, [Wanted(*part[:3]) for part in parts]):
                    yield number, data
                    done += 1
            except DamageError as error:
                rest = _rest(parts, done)
                if self._catalog.learn(ref.lineage):
                    yield from self.read(ref, pack, rest)
                elif place.tables:
                    for one in rest:
                        yield one.first, self._rescued(ref, pack, one.slot, error)
                else:
                    raise

    def _placed(self, ref: SessionRef, pack: int, wanted: list[Wanted]) -> list[tuple[Place, list["_Part"]]]:
        """What is wanted by the pack that it lies in now."""
        if not self._catalog.moves.concerns(ref.session):
            return [(Place(ref, pack, 0, 0), [_Part(*one, one.slot) for one in wanted])]
        found: dict[tuple[bytes, int], tuple[Place, list[_Part]]] = {}
        for slot, chunks, first in wanted:
            at = 0
            for place in self._catalog.places(ref, DATA, pack, slot, chunks):
                _, parts = found.setdefault((place.ref.session, place.pack), (place, []))
                parts.append(_Part(place.slot, place.slots, first + at, slot + at))
                at += place.slots
        for _, parts in found.values():
            parts.sort()
        return list(found.values())

    def _rescued(self, ref: SessionRef, pack: int, slot: int, error: DamageError) -> T:
        """A chunk whose pack has damage: from where it is now, or from where it was, whichever is whole."""
        (place,) = self._catalog.places(ref, DATA, pack, slot)
        for tried in (place, Place(ref, pack, slot, 1)):
            with contextlib.suppress(DamageError):
                ((_, data),) = self._read(tried, [Wanted(tried.slot, 1, 0)])
                return data
        raise error

    def _read(self, place: Place, wanted: list[Wanted]) -> Iterator[tuple[int, T]]:
        header = self._catalog.header(place.ref, DATA, place.pack)
        for group in spans(header, wanted, self._most):
            start, end = group[0][1].offset, max(slot.offset + slot.stored for _, slot in group)
            view = self._fetch(header, start, end - start)
            last: tuple[Slot, T] | None = None
            for number, slot in group:
                if last is None or last[0] != slot:  # a chunk that a disk has often is decoded once
                    at = slot.offset - start
                    last = slot, self.open(header, slot, view[at : at + slot.stored])
                yield number, last[1]

    def _fetch(self, header: Header, offset: int, length: int) -> memoryview:
        if length > packs.PACK_BYTES:
            raise DamageError(f"{header.name} is malformed", object_key=header.name)
        if length > len(self._buffer):
            self._buffer = bytearray(min(packs.PACK_BYTES, max(length, 2 * len(self._buffer))))  # seldom: it is zeroed
        view = memoryview(self._buffer)[:length]
        try:
            self._catalog.store.read_into(header.name, offset, view)
        except ObjectMissing as error:
            raise DamageError(f"{header.name} is missing", object_key=header.name) from error
        except ObjectTruncated as error:
            raise DamageError(f"{header.name} is cut short", object_key=header.name) from error
        return view


class ChunkReader(SlotReader[bytes]):
    """Reads the plain bytes of chunks. Not shared between threads."""

    def __init__(self, catalog: Catalog, secrets: Secrets) -> None:
        super().__init__(catalog)
        self._secrets = secrets
        self._aad = packs.aad_prefix(catalog.keys.realm, DATA)
        self._openers: dict[int, packs.SlotOpener] = {}
        self._ciphers: dict[tuple[bytes, int], AESGCM] = {}

    def open(self, header: Header, slot: Slot, stored: memoryview) -> bytes:
        """The plain bytes of a slot. Raises DamageError."""
        birth = header.birth_of(slot)
        return self._opener(birth).open(slot, stored, self._cipher(birth, slot.birth_pack, header.name), header.name)

    def run(self, ref: SessionRef, pack: int, slot: int, chunks: int, size: int) -> list[bytes] | None:
        """The plain bytes of consecutive slots, each of `size`, where they lie in order, unmoved and born in one pack.

        As `read` gives them, for a third of Python's time; None where they lie otherwise: `read` them. DamageError.
        """
        if self._catalog.moves.concerns(ref.session):
            return None
        header = self._catalog.header(ref, DATA, pack)
        records = header.run(slot, chunks)
        first = Slot._make(records[0])
        start, end = first.offset, records[-1][2] + records[-1][3]
        most = size + TAG_BYTES
        for _, _, offset, stored, plain, _, _, birth, birth_pack, _ in records:
            if plain != size or not TAG_BYTES <= stored <= most or not start <= offset <= end - stored:
                return None
            if birth != first.birth or birth_pack != first.birth_pack:
                return None
        if end - start > chunks * most:
            return None
        born = header.birth_of(first)
        view = self._fetch(header, start, end - start)
        cipher = self._cipher(born, first.birth_pack, header.name)
        return self._opener(born).open_run(records, view, start, cipher, header.name)

    def _opener(self, birth: Birth) -> packs.SlotOpener:
        opener = self._openers.get(birth.key_number)
        if opener is None:
            id_key = self._catalog.keys.chunk_id_key(birth.key_number)
            opener = self._openers[birth.key_number] = packs.SlotOpener(self._aad, id_key)
        return opener

    def _cipher(self, birth: Birth, pack: int, name: str) -> AESGCM:
        cipher = self._ciphers.get((birth.session, pack))
        if cipher is None:
            key = packs.pack_key(DATA, self._catalog.keys, birth, self._secrets.of(birth, name), pack)
            if len(self._ciphers) >= _CIPHERS:
                self._ciphers.clear()
            cipher = self._ciphers[birth.session, pack] = AESGCM(key)
        return cipher


class StoredSlot(NamedTuple):
    """A slot as it is stored: its record, its birth, its bytes."""

    slot: Slot
    birth: Birth
    data: bytes


class StoredReader(SlotReader[StoredSlot]):
    """Reads slots as they are stored, compared with their checksums. It needs no private key."""

    def open(self, header: Header, slot: Slot, stored: memoryview) -> StoredSlot:
        """The slot. Raises DamageError."""
        if digest(stored)[: len(slot.checksum)] != slot.checksum:
            raise DamageError(f"{header.name} is damaged: a slot differs from its checksum", object_key=header.name)
        return StoredSlot(slot, header.birth_of(slot), bytes(stored))


def spans(header: Header, wanted: list[Wanted], most: int = packs.PACK_BYTES) -> Iterator[list[tuple[int, Slot]]]:
    """The wanted slots, in order, in groups that are fetched as one, of about `most` bytes; each with its number."""
    group: list[tuple[int, Slot]] = []
    start = end = 0
    for first_slot, count, first in wanted:
        for step in range(count):
            slot = header.slot(first_slot + step)
            if group and (end - start >= most or not start <= slot.offset <= end + GAP_BYTES):
                yield group
                group = []
            if not group:
                start = end = slot.offset
            group.append((first + step, slot))
            end = max(end, slot.offset + slot.stored)
    if group:
        yield group
