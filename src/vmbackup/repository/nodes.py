"""The nodes of a disk's map (docs/repository-format.md, section 8)."""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import NamedTuple, overload

from vmbackup.errors import DamageError

LEAF_SPAN = 16 << 30  # bytes of the disk: a leaf is read and written whole, an incremental changes few
LEAF_ENTRIES = 4096  # 64 KiB
INNER_ENTRIES = 1024  # 52 KiB
ZERO = 0  # session number of chunks without storage
KEEP = -1  # session number, in runs only: as the old map has it

_HEAD = struct.Struct(">B3xIQQII")
_LEAF = struct.Struct(">IIII")
_INNER = struct.Struct(">QIII32s")
_MAX_LEVEL = 8


class Run(NamedTuple):
    """`chunks` chunks in consecutive slots, from `slot` on, of a data pack of the session with that number."""

    chunks: int
    session: int
    pack: int
    slot: int


class Ref(NamedTuple):
    """Where a node lies, its id, its level and how many chunks it covers. Session ZERO: all zeros, no node."""

    level: int
    chunks: int
    session: int
    pack: int
    slot: int
    id: bytes


ZERO_ID = bytes(32)
_MAKE_RUN: Callable[[tuple[int, ...]], Run] = partial(tuple.__new__, Run)  # half the time of Run._make


_SESSION = itemgetter(1)  # of a run; ZERO is false


class Runs(Sequence[Run]):
    """The runs of a leaf as it is stored: each is made when it is asked for, for who looks at millions asks for few."""

    def __init__(self, body: bytes) -> None:
        """`body`: as they stand in the leaf. Raises struct.error where it holds no whole number of them."""
        self._body = body
        numbers = struct.unpack(f">{len(body) // 4}I", body)
        self.chunks, self.sessions, self.packs, self.slots = (numbers[n::4] for n in range(4))

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Run]:
        return map(_MAKE_RUN, zip(self.chunks, self.sessions, self.packs, self.slots, strict=True))

    def raw(self) -> set[bytes]:
        """Each as it stands in the leaf: so millions are compared, and few looked at. `runs_of` makes runs of them."""
        body, size = self._body, _LEAF.size
        return {body[at : at + size] for at in range(0, len(body), size)}

    @overload
    def __getitem__(self, at: int) -> Run: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Run, ...]: ...
    def __getitem__(self, at: int | slice) -> Run | tuple[Run, ...]:
        return tuple(self)[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


def runs_of(raw: Iterable[bytes]) -> Iterator[tuple[int, int, int, int]]:
    """The runs with storage that pieces of `Runs.raw` say, as plain tuples in the order of Run's fields."""
    return filter(_SESSION, _LEAF.iter_unpack(b"".join(raw)))


def zero_ref(level: int, chunks: int) -> Ref:
    """A part of the disk that is all zeros."""
    return Ref(level, chunks, ZERO, 0, 0, ZERO_ID)


@dataclass(frozen=True)
class Node:
    """A node: `entries` are runs (level 0) or references one level down; `sessions` the numbers that they name."""

    level: int
    chunk_size: int
    first: int
    chunks: int
    sessions: tuple[int, ...]
    entries: Sequence[Run] | Sequence[Ref]

    @classmethod
    def leaf(cls, chunk_size: int, first: int, entries: list[Run]) -> "Node":
        """A leaf of coalesced runs."""
        sessions = tuple(sorted({e.session for e in entries} - {ZERO}))
        return cls(0, chunk_size, first, sum(e.chunks for e in entries), sessions, tuple(entries))

    @classmethod
    def inner(cls, chunk_size: int, first: int, entries: list[Ref]) -> "Node":
        """An inner node over references of one level."""
        sessions = tuple(sorted({e.session for e in entries} - {ZERO}))
        level = entries[0].level + 1
        return cls(level, chunk_size, first, sum(e.chunks for e in entries), sessions, tuple(entries))

    def data_packs(self) -> set[tuple[int, int]]:
        """(session number, pack) of each data pack that its runs name; none of an inner node."""
        if isinstance(self.entries, Runs):
            found = set(zip(self.entries.sessions, self.entries.packs, strict=True))
        else:
            found = {(entry.session, entry.pack) for entry in self.entries if isinstance(entry, Run)}
        return {place for place in found if place[0] != ZERO}

    def runs(self) -> Iterator[Run]:
        """Its runs that have storage; none of an inner node."""
        if isinstance(self.entries, Runs):
            return filter(_SESSION, self.entries)
        return (run for run in self.entries if isinstance(run, Run) and run.session != ZERO)

    def ends(self) -> dict[tuple[int, int], int]:
        """Of each data pack that its runs name (session number, pack): the slot behind the last one named."""
        ends: dict[tuple[int, int], int] = {}
        for chunks, session, pack, slot in self.runs():
            if slot + chunks > ends.get((session, pack), 0):
                ends[session, pack] = slot + chunks
        return ends

    def children(self) -> Iterator[tuple[Ref, int]]:
        """The nodes below with their first chunks, parts of zeros among them; none of a leaf."""
        at = self.first
        for entry in self.entries if self.level else ():
            if isinstance(entry, Ref):
                yield entry, at
            at += entry.chunks

    def encode(self) -> bytes:
        """The node's plain bytes."""
        head = _HEAD.pack(self.level, self.chunk_size, self.first, self.chunks, len(self.sessions), len(self.entries))
        names = struct.pack(f">{len(self.sessions)}I", *self.sessions)
        if self.level == 0:
            body = b"".join(_LEAF.pack(*entry) for entry in self.entries)
        else:
            body = b"".join(_INNER.pack(*entry[1:]) for entry in self.entries)
        return head + names + body


def decode(data: bytes, ref: Ref, first: int, chunk_size: int, name: str) -> Node:
    """The node that `ref` names, checked against what its parent says of it. Raises DamageError."""
    try:
        level, size, start, chunks, sessions, count = _HEAD.unpack_from(data)
        at = _HEAD.size
        names = struct.unpack_from(f">{sessions}I", data, at) if sessions <= len(data) // 4 else ()
        body = data[at + 4 * sessions :]
        entries: Runs | tuple[Ref, ...]
        if level == 0:
            entries = Runs(body)
            counts, named = entries.chunks, set(entries.sessions)
        else:
            entries = tuple(Ref(level - 1, *fields) for fields in _INNER.iter_unpack(body))
            counts, named = tuple(entry.chunks for entry in entries), {entry.session for entry in entries}
    except struct.error as error:
        raise DamageError(f"a map node in {name} is malformed", object_key=name) from error
    limit = LEAF_ENTRIES if level == 0 else INNER_ENTRIES
    if (
        (level, start, chunks, size) != (ref.level, first, ref.chunks, chunk_size)
        or level > _MAX_LEVEL
        or not 0 < count <= limit
        or len(body) != count * (_LEAF if level == 0 else _INNER).size
        or 0 in counts
        or sum(counts) != chunks
        or named - {ZERO} != set(names)
    ):
        raise DamageError(f"a map node in {name} contradicts its parent or itself", object_key=name)
    return Node(level, size, start, chunks, names, entries)
