"""Packs: slots in order, then a header that tells of each (docs/repository-format.md, section 6)."""

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.errors import DamageError
from vmbackup.repository import frames
from vmbackup.repository.crypto import (
    DATA,
    ENVELOPE_BYTES,
    META,
    TAG_BYTES,
    GroupKeys,
    derive,
    nonce,
    seal,
    unseal,
)

PACK_BYTES = 32 << 20  # slots of a pack; one PUT, and about one extent of a full's map
MAX_SLOTS = 8192  # bounds the header of a pack of well compressed chunks to 590 KB
MAX_BIRTHS = 256  # of a pack that is made here: 300 KB of envelopes
MAX_HEADER = 16 << 20
MAX_PLAIN = 16 << 20
RECORD = struct.Struct(">32s16sIIIBBHII")
HEADER_SLOTS = MAX_HEADER // RECORD.size  # no pack has more
FOOTER = struct.Struct(">II8s")
END = b"vmbkpend"
KINDS = {DATA: 1, META: 2}

_COUNTS = struct.Struct(">HHI")
_BIRTH = struct.Struct(">16s16sIHH")
_AAD_TAIL = struct.Struct(">IB")
_SUITE = 1
_PLAIN, _ZSTD = 0, 1
# Level 1: level 3 stores 3 % less for 1.6 times the CPU (docs/adr/0003-pipeline.md).
_LEVEL = 1
_NONCES = [nonce(slot) for slot in range(MAX_SLOTS)]
_HEADER_ROOM = 1 << 20


class Birth(NamedTuple):
    """Where slots were first encrypted: a session, and the envelope of its secret (empty in meta packs).

    `key_number`: the group's id key that their ids are made with, and map nodes sealed from.
    """

    session: bytes
    lineage: bytes
    epoch: int
    key_number: int
    envelope: bytes


class Slot(NamedTuple):
    """A record of the header: lengths and the offset in bytes."""

    id: bytes
    checksum: bytes
    offset: int
    stored: int
    plain: int
    compression: int
    reserved: int
    birth: int
    birth_pack: int
    birth_slot: int


def aad_prefix(realm: bytes, kind: str) -> bytes:
    """The constant part of a slot's associated data."""
    return bytes((_SUITE,)) + realm + bytes((KINDS[kind],))


def pack_key(kind: str, keys: GroupKeys, birth: Birth, secret: bytes, number: int) -> bytes:
    """The key of the slots born in a pack: from the session's secret for data, from the id key for map nodes."""
    if kind == DATA:
        return derive(secret, keys.realm, "data", birth.session, number)
    return keys.derive(birth.key_number, "meta", birth.session, number)


def header_key(kind: str, keys: GroupKeys, key_number: int, session: bytes, number: int) -> bytes:
    """The key of a pack's header."""
    return keys.derive(key_number, f"header of {kind}", session, number)


def encode_births(births: list[Birth]) -> bytes:
    """The births of a header or an index root."""
    return b"".join(_BIRTH.pack(*birth[:4], len(birth.envelope)) + birth.envelope for birth in births)


def decode_births(data: bytes, at: int, count: int, name: str) -> tuple[list[Birth], int]:
    """`count` births from `at` on, and where they end. Raises DamageError."""
    births = []
    for _ in range(count):
        if at + _BIRTH.size > len(data):
            raise DamageError(f"{name} is malformed", object_key=name)
        session, lineage, epoch, key_number, length = _BIRTH.unpack_from(data, at)
        at += _BIRTH.size
        if length not in (0, ENVELOPE_BYTES) or at + length > len(data):
            raise DamageError(f"{name} is malformed", object_key=name)
        births.append(Birth(session, lineage, epoch, key_number, data[at : at + length]))
        at += length
    return births, at


@dataclass(frozen=True)
class Header:
    """What a pack holds. `records` are the packed records of all slots."""

    births: list[Birth]
    records: bytes = field(repr=False)
    name: str

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def id(self, slot: int) -> bytes:
        """A slot's chunk id (32 bytes; empty where the pack has no such slot)."""
        at = slot * RECORD.size
        return self.records[at : at + 32]

    def ids_of(self, slot: int, slots: int) -> list[bytes]:
        """The ids of consecutive slots; fewer where the pack ends."""
        return [self.id(number) for number in range(slot, min(slot + slots, len(self)))]

    def slot(self, number: int) -> Slot:
        """A slot's record, its lengths within bounds. Raises DamageError."""
        if number >= len(self):
            raise DamageError(f"{self.name} has no slot {number}", object_key=self.name)
        slot = Slot._make(RECORD.unpack_from(self.records, number * RECORD.size))
        if not TAG_BYTES <= slot.stored <= slot.plain + TAG_BYTES or slot.plain > MAX_PLAIN:
            raise DamageError(f"{self.name}, slot {number} is malformed", object_key=self.name)
        return slot

    def run(self, slot: int, slots: int) -> list[tuple[Any, ...]]:
        """The records of consecutive slots, in the order of Slot's fields, not looked at. Raises DamageError."""
        if slot + slots > len(self):
            raise DamageError(f"{self.name} has no slot {len(self)}", object_key=self.name)
        return list(RECORD.iter_unpack(self.records[slot * RECORD.size : (slot + slots) * RECORD.size]))

    def birth_of(self, slot: Slot) -> Birth:
        """Where a slot was first encrypted. Raises DamageError."""
        if slot.birth >= len(self.births):
            raise DamageError(f"{self.name} is malformed", object_key=self.name)
        return self.births[slot.birth]

    def slots(self) -> Iterator[Slot]:
        """All records, in order."""
        return (self.slot(n) for n in range(len(self)))

    def ids(self) -> Iterator[bytes]:
        """All chunk ids, in order."""
        return (self.records[at : at + 32] for at in range(0, len(self.records), RECORD.size))

    def encode(self) -> bytes:
        """The plain bytes of the header."""
        head = _COUNTS.pack(len(self.births), 0, len(self))
        return head + encode_births(self.births) + self.records


def open_header(sealed: bytes, key: bytes, key_number: int, slots: int, name: str) -> Header:
    """A header out of its sealed bytes. `slots`: the number that the footer or the index tells. Raises DamageError."""
    aad = frames.preamble(b"PACK", key_number) + slots.to_bytes(4, "big")
    data = unseal(key, aad, sealed, name)
    if len(data) < _COUNTS.size:
        raise DamageError(f"{name} is malformed", object_key=name)
    count, _, found = _COUNTS.unpack_from(data)
    births, at = decode_births(data, _COUNTS.size, count, name)
    if not births or found != slots or len(data) - at != slots * RECORD.size:
        raise DamageError(f"{name} is malformed", object_key=name)
    return Header(births, data[at:], name)


def read_footer(tail: bytes, name: str) -> tuple[int, int]:
    """(length of the sealed header, number of slots) from a pack's last 16 bytes. Raises DamageError."""
    if len(tail) != FOOTER.size:
        raise DamageError(f"{name} is cut or no pack", object_key=name)
    length, slots, end = FOOTER.unpack(tail)
    if end != END or not TAG_BYTES <= length <= MAX_HEADER:
        raise DamageError(f"{name} is cut or no pack", object_key=name)
    return length, slots


class PackBuilder:
    """A pack in the making, in a buffer of page-aligned memory that is used again and again.

    Not shared between threads. `number` is burnt with the first slot; `position`: bytes of the object so far.
    """

    def __init__(self, capacity: int = PACK_BYTES) -> None:
        self._map = mmap.mmap(-1, capacity + _HEADER_ROOM)
        self._view = memoryview(self._map)
        self._capacity = capacity
        self._compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self._records: list[bytes] = []
        self.position = 0

    def begin(self, kind: str, keys: GroupKeys, birth: Birth, secret: bytes, number: int) -> None:
        """Starts pack `number` of the session that `birth` names, written with the group's current id key."""
        self.kind, self.number, self._births = kind, number, {birth.session: (0, birth)}
        self._key_number = keys.current
        self._header_key = header_key(kind, keys, keys.current, birth.session, number)
        self._decrypt_key = pack_key(kind, keys, birth, secret, number)
        self._encrypt = AESGCM(self._decrypt_key).encrypt_into
        self._aad = aad_prefix(keys.realm, kind)
        self._id_key = keys.chunk_id_key()
        head = frames.preamble(b"PACK", keys.current)
        self._view[: len(head)] = head
        self.position = len(head)
        self.clear()

    def clear(self) -> None:
        """Forgets the slots; `begin` makes the next pack."""
        self._records = []

    def __len__(self) -> int:
        return len(self._records)

    def fits(self, plain_length: int) -> bool:
        """Whether one more chunk of that length surely fits."""
        return self.position + plain_length + TAG_BYTES <= self._capacity and len(self._records) < MAX_SLOTS

    def ids(self) -> Iterator[bytes]:
        """The chunk ids of the slots so far, in order."""
        return (record[:32] for record in self._records)

    @property
    def births(self) -> list[Birth]:
        """Of the slots so far, that of the pack's own session first."""
        return [birth for _, birth in self._births.values()]

    def fits_stored(self, slot: Slot, birth: Birth) -> bool:
        """Whether a slot of another pack fits as it is."""
        known = birth.session in self._births or len(self._births) < MAX_BIRTHS
        return known and self.position + slot.stored <= self._capacity and len(self._records) < MAX_SLOTS

    def add(self, chunk_id: bytes, plain: memoryview | bytes) -> int:
        """Compresses and seals a chunk that fits; gives its slot."""
        slot, at = len(self._records), self.position
        length = len(plain)
        data: bytes | memoryview = self._compress(plain)
        compression = _ZSTD
        if len(data) >= length:
            data, compression = plain, _PLAIN
        end = at + len(data) + TAG_BYTES
        place = self._view[at:end]
        self._encrypt(_NONCES[slot], data, self._aad + chunk_id + _AAD_TAIL.pack(length, compression), place)
        self._records.append(
            RECORD.pack(chunk_id, blake3(place).digest(16), at, end - at, length, compression, 0, 0, self.number, slot)
        )
        self.position = end
        return slot

    def add_stored(self, slot: Slot, birth: Birth, stored: bytes | memoryview) -> int:
        """A slot as it lies in another pack, byte by byte; gives its number here. It needs no key of what is in it.

        The caller has compared the bytes with the slot's checksum, and asked `fits_stored`.
        """
        number, at = len(self._records), self.position
        end = at + slot.stored
        self._view[at:end] = stored
        at_birth, _ = self._births.setdefault(birth.session, (len(self._births), birth))
        self._records.append(RECORD.pack(*slot._replace(offset=at, birth=at_birth)))
        self.position = end
        return number

    def check(self, slots: Iterable[int]) -> None:
        """Decodes slots again and compares their ids; checksums of what was taken over. DamageError: memory lied."""
        opener = SlotOpener(aad_prefix(self._aad[1:17], self.kind), self._id_key)
        cipher = AESGCM(self._decrypt_key)
        for number in slots:
            slot = Slot._make(RECORD.unpack(self._records[number]))
            stored = self._view[slot.offset : slot.offset + slot.stored]
            if slot.birth:
                if blake3(stored).digest(16) != slot.checksum:
                    raise DamageError("a pack just made is damaged: a checksum differs")
            else:
                opener.open(slot, stored, cipher, "a pack just made")

    def finish(self) -> tuple[memoryview, bytes]:
        """(the whole object, the sealed header). The object lies in the builder's own memory."""
        header = Header(self.births, b"".join(self._records), "")
        count = len(self._records)
        aad = frames.preamble(b"PACK", self._key_number) + count.to_bytes(4, "big")
        sealed = seal(self._header_key, aad, header.encode())
        tail = sealed + FOOTER.pack(len(sealed), count, END)
        end = self.position + len(tail)
        self._view[self.position : end] = tail
        return self._view[:end], sealed


def stored_again(kind: str, keys: GroupKeys, slot: Slot, birth: Birth, plain: bytes) -> bytes:
    """A map node's stored bytes, made again as they were; empty where they come out otherwise (another zstd).

    Nothing else is ever sealed with that key and nonce: what differs is thrown away.
    """
    data = zstandard.ZstdCompressor(level=_LEVEL).compress(plain) if slot.compression == _ZSTD else plain
    aad = aad_prefix(keys.realm, kind) + slot.id + _AAD_TAIL.pack(slot.plain, slot.compression)
    stored = AESGCM(pack_key(kind, keys, birth, b"", slot.birth_pack)).encrypt(nonce(slot.birth_slot), data, aad)
    return stored if blake3(stored).digest(16) == slot.checksum else b""


class SlotOpener:
    """Decodes slots: authenticates, decompresses within bounds, and computes the id again. Not shared by threads."""

    def __init__(self, aad: bytes, id_key: bytes) -> None:
        self._aad = aad
        self._id_key = id_key
        self._decompress = zstandard.ZstdDecompressor().decompress
        self._frame = memoryview(bytearray(64 << 10))

    def open(self, slot: Slot, stored: bytes | memoryview, cipher: AESGCM, name: str) -> bytes:
        """The plain bytes. Raises DamageError."""
        return self.open_run((slot,), memoryview(stored), slot.offset, cipher, name)[0]

    def open_run(
        self, records: Iterable[Slot | tuple[Any, ...]], stored: memoryview, start: int, cipher: AESGCM, name: str
    ) -> list[bytes]:
        """Those of slots born in one pack and within bounds; `stored` begins at `start` of the object. DamageError.

        What is done for each is kept short: beside the decoding, Python's part costs as much as a hash.
        """
        decompress, aad, key, plain_bytes = self._decompress, self._aad, self._id_key, []
        try:
            for chunk_id, _, offset, length, plain, compression, _, _, _, slot in records:
                at = offset - start
                sealed, tail = stored[at : at + length], _AAD_TAIL.pack(plain, compression)
                if compression == _ZSTD:
                    if length > len(self._frame):
                        self._frame = memoryview(bytearray(length))
                    frame = self._frame[: length - TAG_BYTES]  # used again: a new one each time costs as much as a hash
                    cipher.decrypt_into(slot.to_bytes(12, "big"), sealed, aad + chunk_id + tail, frame)
                    if zstandard.frame_content_size(frame) != plain:
                        raise DamageError(f"{name} is damaged: a chunk has the wrong length", object_key=name)
                    data = decompress(frame, max_output_size=plain)
                else:
                    data = cipher.decrypt(slot.to_bytes(12, "big"), sealed, aad + chunk_id + tail)
                if len(data) != plain or blake3(data, key=key).digest() != chunk_id:
                    raise DamageError(f"{name} is damaged: a chunk differs from its id", object_key=name)
                plain_bytes.append(data)
        except (InvalidTag, zstandard.ZstdError, ValueError, OverflowError) as error:
            raise DamageError(f"{name} is damaged: a chunk cannot be authenticated", object_key=name) from error
        return plain_bytes
