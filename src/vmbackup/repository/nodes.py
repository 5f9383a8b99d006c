"""The nodes of a disk's map (docs/repository-format.md, section 8)."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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
# Half the time of Run._make: millions are read.
_MAKE_RUN: Callable[[tuple[int, ...]], Run] = partial(tuple.__new__, Run)


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
    entries: tuple[Run, ...] | tuple[Ref, ...]

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
        if self.level:
            return set()
        return {(session, pack) for _, session, pack, _ in self.entries if session != ZERO}  # type: ignore[misc]

    def runs(self) -> Iterator[Run]:
        """Its runs that have storage; none of an inner node."""
        return (run for run in self.entries if isinstance(run, Run) and run.session != ZERO)

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
        entries: tuple[Run, ...] | tuple[Ref, ...]
        if level == 0:
            entries = tuple(map(_MAKE_RUN, _LEAF.iter_unpack(body)))
        else:
            entries = tuple(Ref(level - 1, *fields) for fields in _INNER.iter_unpack(body))
    except struct.error as error:
        raise DamageError(f"a map node in {name} is malformed", object_key=name) from error
    limit = LEAF_ENTRIES if level == 0 else INNER_ENTRIES
    if (
        (level, start, chunks, size) != (ref.level, first, ref.chunks, chunk_size)
        or level > _MAX_LEVEL
        or not 0 < count <= limit
        or len(entries) != count
        or 0 in (counts := [entry.chunks for entry in entries])
        or sum(counts) != chunks
        or {entry.session for entry in entries} - {ZERO} != set(names)
    ):
        raise DamageError(f"a map node in {name} contradicts its parent or itself", object_key=name)
    return Node(level, size, start, chunks, names, entries)
