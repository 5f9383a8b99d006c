"""Where moved slots lie now: tables of old place -> new place (docs/repository-format.md, section 9)."""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef

MOST_MOVES = 1 << 20  # of a table that is made here: 32 MiB
PIN_FIELD = "moves"  # in a pin: the mark of the process that moves slots
_ROW = struct.Struct(">B3xIIIIIII")
_COUNT = struct.Struct(">I")
_KINDS = {DATA: 1, META: 2}
_NAMES = {number: kind for kind, number in _KINDS.items()}
# A later table flattens the former ones, so that one hop is the rule; more than these is a circle.
_MOST_HOPS = 32


class Move(NamedTuple):
    """`slots` consecutive slots of an old pack lie in consecutive slots of a new one; sessions by their number."""

    kind: str
    session: int
    pack: int
    slot: int
    slots: int
    new_session: int
    new_pack: int
    new_slot: int


class Place(NamedTuple):
    """`slots` consecutive slots of a pack.

    `tables`: the sessions of the tables that led there, none for the origin; `left`: the packs where they lay before.
    """

    ref: SessionRef
    pack: int
    slot: int
    slots: int
    tables: tuple[bytes, ...] = ()
    left: tuple[tuple[SessionRef, int], ...] = ()


class Table(NamedTuple):
    """A table of moves that holds: whose history, its session, its session table, its rows as they are stored."""

    lineage: bytes
    session: bytes
    sessions: dict[int, SessionRef]
    rows: bytes


def encode(moves: Iterable[Move]) -> bytes:
    """The rows of a table, counted and sorted."""
    rows = sorted(_ROW.pack(_KINDS[move.kind], *move[1:]) for move in moves)
    return _COUNT.pack(len(rows)) + b"".join(rows)


def split(data: bytes, name: str) -> bytes:
    """The rows out of a table's counted ones. Raises DamageError."""
    if len(data) < _COUNT.size or len(data) != _COUNT.size + _COUNT.unpack_from(data)[0] * _ROW.size:
        raise DamageError(f"{name} is malformed", object_key=name)
    return data[_COUNT.size :]


class _Span(NamedTuple):
    slot: int
    end: int
    ref: SessionRef
    pack: int
    new_slot: int
    table: bytes


Key = tuple[bytes, str, int]  # session, kind, pack


class Moves:
    """The tables that hold, looked up by old place. Of several that tell of a slot that of the highest session holds.

    It is made whole and not changed: shared by threads.
    """

    def __init__(self, tables: Iterable[Table] = ()) -> None:
        self.tables = sorted(tables, key=lambda table: table.session, reverse=True)
        self._rows: dict[Key, list[tuple[Table, int, int]]] = {}
        self._spans: dict[Key, list[_Span]] = {}
        self._sessions: set[bytes] = set()
        for table in self.tables:
            self._index(table)

    def _index(self, table: Table) -> None:
        """Where the rows of each pack begin and end. Raises DamageError."""
        before: tuple[int, int, int, int] = (0, 0, 0, 0)
        start, key = 0, None
        try:
            for at, (kind, session, pack, slot, slots, new, *_) in enumerate(_ROW.iter_unpack(table.rows)):
                if (kind, session, pack, slot) < before or not slots or new not in table.sessions:
                    raise DamageError("a table of moves contradicts itself")
                before = (kind, session, pack, slot + slots)
                here = table.sessions[session].session, _NAMES[kind], pack
                if here != key:
                    self._close(table, key, start, at)
                    start, key = at, here
        except KeyError as error:
            raise DamageError("a table of moves contradicts itself") from error
        self._close(table, key, start, len(table.rows) // _ROW.size)

    def _close(self, table: Table, key: Key | None, start: int, end: int) -> None:
        if key is not None:
            self._rows.setdefault(key, []).append((table, start, end))
            self._sessions.add(key[0])

    def __bool__(self) -> bool:
        return bool(self._rows)

    def concerns(self, session: bytes) -> bool:
        """Whether any slot of the session was moved."""
        return session in self._sessions

    def _of(self, key: Key) -> list[_Span]:
        """The spans of a pack in order of slots, none twice."""
        spans = self._spans.get(key)
        if spans is None:
            spans = []
            for table, start, end in self._rows.get(key, ()):
                rows = memoryview(table.rows)[start * _ROW.size : end * _ROW.size]
                for _, _, _, slot, slots, new, pack, new_slot in _ROW.iter_unpack(rows):
                    span = _Span(slot, slot + slots, table.sessions[new], pack, new_slot, table.session)
                    spans = _filled(spans, span)
            self._spans[key] = spans
        return spans

    def places(self, ref: SessionRef, kind: str, pack: int, slot: int, slots: int) -> Iterator[Place]:
        """Where consecutive slots lie now, in their order: in one piece where none was moved. DamageError."""
        if not self.concerns(ref.session):
            yield Place(ref, pack, slot, slots)
            return
        yield from self._follow(Place(ref, pack, slot, slots), kind, _MOST_HOPS)

    def _follow(self, place: Place, kind: str, hops: int) -> Iterator[Place]:
        if not hops:
            raise DamageError("tables of moves lead in a circle")
        at, end = place.slot, place.slot + place.slots
        for span in self._of((place.ref.session, kind, place.pack)):
            if span.end <= at or span.slot >= end:
                continue
            if span.slot > at:
                yield place._replace(slot=at, slots=span.slot - at)
                at = span.slot
            stop = min(span.end, end)
            tables = (*place.tables, span.table)
            left = (*place.left, (place.ref, place.pack))
            moved = Place(span.ref, span.pack, span.new_slot + at - span.slot, stop - at, tables, left)
            yield from self._follow(moved, kind, hops - 1)
            at = stop
        if at < end:
            yield place._replace(slot=at, slots=end - at)


def _filled(spans: list[_Span], new: _Span) -> list[_Span]:
    """`spans` with `new` where they leave room, in order."""
    out: list[_Span] = []
    at = new.slot
    for span in spans:
        if span.end > at and span.slot < new.end:
            if span.slot > at:
                out.append(_cut(new, at, span.slot))
            at = max(at, span.end)
        out.append(span)
    if at < new.end:
        out.append(_cut(new, at, new.end))
    return sorted(out)


def _cut(span: _Span, start: int, end: int) -> _Span:
    return span._replace(slot=start, end=end, new_slot=span.new_slot + start - span.slot)
