"""The index of a session: the headers of its packs, in parts and a root (docs/repository-format.md, section 7)."""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository import frames, hooks
from vmbackup.repository.crypto import DATA, TAG_BYTES, GroupKeys, digest, seal, unseal
from vmbackup.repository.packs import FOOTER, KINDS, MAX_HEADER, Birth, decode_births, encode_births

PART_BYTES = 4 << 20  # of the 16 MiB that the format allows: it is held while it fills
MAX_ROOT = 64 << 20  # 65,536 packs of 32 MiB, 2 TiB stored in one session, take 4 MiB
_RECORD = struct.Struct(">B3xII")
_COUNT = struct.Struct(">I")
_PART = struct.Struct(">Q32s")
_PACK = struct.Struct(">B3xIQIIII32s")
_NAMES = {number: kind for kind, number in KINDS.items()}


class PackEntry(NamedTuple):
    """A pack as its index root tells it: the object's size in bytes, and where its sealed header lies in the part."""

    kind: str
    number: int
    size: int
    part: int
    offset: int
    length: int
    slots: int
    digest: bytes


@dataclass(frozen=True)
class IndexRoot:
    """What a session wrote."""

    births: list[Birth]
    parts: dict[int, tuple[int, bytes]]  # number -> (size, digest)
    packs: dict[tuple[str, int], PackEntry]

    def hooks_part(self) -> int | None:
        """The number of the part with hooks: the last one, if no header lies in it."""
        last = max(self.parts, default=None)
        return None if any(entry.part == last for entry in self.packs.values()) else last


class IndexWriter:
    """Collects the sealed headers of a session; hands parts to `put(number, object)` as they fill."""

    def __init__(self, keys: GroupKeys, own: Birth, put: Callable[[int, bytes], None], first: int = 0) -> None:
        """`first`: the number of the first part, more than 0 where a killed session left parts already."""
        self._keys, self._own, self._put, self._first = keys, own, put, first
        self._births = {own.session: own}
        self._buffer = bytearray(frames.preamble(b"IDXP"))
        self._parts: list[tuple[int, bytes]] = []
        self._packs: list[PackEntry] = []
        self.hooks: dict[int, bytes] = {}

    def add(
        self,
        kind: str,
        number: int,
        size: int,
        slots: int,
        sealed: bytes,
        births: Iterable[Birth] = (),
        ids: Iterable[bytes] = (),
    ) -> None:
        """One pack, stored already: `size` bytes of the object, its sealed header, the births and ids of its slots."""
        if kind == DATA:  # what opens a map node is the id key, no envelope
            for birth in births:
                self._births.setdefault(birth.session, birth)
            if found := hooks.select(ids):
                self.hooks[number] = found
        if len(self._buffer) + _RECORD.size + len(sealed) > PART_BYTES:
            self._flush()
        self._buffer += _RECORD.pack(KINDS[kind], number, len(sealed))
        entry = PackEntry(kind, number, size, self._next, len(self._buffer), len(sealed), slots, digest(sealed))
        self._buffer += sealed
        self._packs.append(entry)

    @property
    def _next(self) -> int:
        return self._first + len(self._parts)

    def _flush(self) -> None:
        if len(self._buffer) > frames.PREAMBLE.size:
            self._put_part(bytes(self._buffer))
            self._buffer = bytearray(frames.preamble(b"IDXP"))

    def _put_part(self, part: bytes) -> None:
        self._put(self._next, part)
        self._parts.append((len(part), digest(part)))

    def finish(self) -> tuple[int, bytes]:
        """Writes the last parts and the root; gives the root's (number, digest)."""
        self._flush()
        if sum(map(len, self.hooks.values())) >= hooks.LEAST * hooks.HOOK_BYTES:
            self._put_part(hooks.encode(self._keys, self._own.session, self._next, self.hooks))
        number = self._next
        births = list(self._births.values())
        root = encode_root(self._keys, self._own.session, births, self._first, self._parts, self._packs)
        self._put(number, root)
        return number, digest(root)


def encode_root(
    keys: GroupKeys,
    session: bytes,
    births: list[Birth],
    first: int,
    parts: list[tuple[int, bytes]],
    entries: list[PackEntry],
) -> bytes:
    """The root of a session, sealed with the current id key; `parts`, from number `first` on: size and digest."""
    number = first + len(parts)
    body = _COUNT.pack(len(births)) + encode_births(births)
    body += _COUNT.pack(first) + _COUNT.pack(len(parts))
    body += b"".join(_PART.pack(*part) for part in parts)
    body += _COUNT.pack(len(entries))
    body += b"".join(_PACK.pack(KINDS[entry.kind], *entry[1:]) for entry in entries)
    head = frames.preamble(b"IDXR", keys.current)
    key = keys.derive(keys.current, "index root", session, number)
    return head + seal(key, head, body)


def encode_part(headers: list[tuple[PackEntry, bytes]]) -> bytes:
    """A part: the packs' sealed headers, in order."""
    records = (_RECORD.pack(KINDS[entry.kind], entry.number, len(sealed)) + sealed for entry, sealed in headers)
    return frames.preamble(b"IDXP") + b"".join(records)


def records(part: bytes, name: str) -> Iterator[tuple[str, int, int, bytes]]:
    """(kind, pack, offset of the sealed header, sealed header) of a part, in order. Raises DamageError."""
    frames.check_preamble(part, b"IDXP", name)
    at = frames.PREAMBLE.size
    while at < len(part):
        try:
            kind, pack, length = _RECORD.unpack_from(part, at)
            at += _RECORD.size
            if at + length > len(part):
                raise DamageError(f"{name} is cut", object_key=name)
            yield _NAMES[kind], pack, at, part[at : at + length]
        except (struct.error, KeyError) as error:
            raise DamageError(f"{name} is malformed", object_key=name) from error
        at += length


def open_root(data: bytes, expected: bytes, keys: GroupKeys, session: bytes, number: int, name: str) -> IndexRoot:
    """An index root whose digest is the one that a point vouches for. Raises DamageError."""
    if digest(data) != expected:
        raise DamageError(f"{name} is damaged: its digest differs", object_key=name)
    key_number = frames.check_preamble(data, b"IDXR", name)
    key = keys.derive(key_number, "index root", session, number, name)
    body = unseal(key, data[: frames.PREAMBLE.size], data[frames.PREAMBLE.size :], name)
    try:
        (count,) = _COUNT.unpack_from(body)
        births, at = decode_births(body, _COUNT.size, count, name)
        (first,) = _COUNT.unpack_from(body, at)
        (count,) = _COUNT.unpack_from(body, at + _COUNT.size)
        at += 2 * _COUNT.size
        parts = list(_PART.iter_unpack(body[at : at + count * _PART.size]))
        at += count * _PART.size
        (packs,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size
        if len(parts) != count or len(body) - at != packs * _PACK.size:
            raise DamageError(f"{name} is malformed", object_key=name)
        entries = [PackEntry(_NAMES[kind], *rest) for kind, *rest in _PACK.iter_unpack(body[at:])]
    except (struct.error, KeyError) as error:
        raise DamageError(f"{name} is malformed", object_key=name) from error
    if not all(_is_possible(entry, first, len(parts)) for entry in entries):
        raise DamageError(f"{name} tells of a pack that cannot be", object_key=name)
    return IndexRoot(births, dict(enumerate(parts, first)), {(e.kind, e.number): e for e in entries})


def _is_possible(entry: PackEntry, first: int, parts: int) -> bool:
    """Whether a pack's header lies in one of the parts, and in the pack."""
    room = entry.size - frames.PREAMBLE.size - FOOTER.size
    return first <= entry.part < first + parts and TAG_BYTES <= entry.length <= min(MAX_HEADER, room)
