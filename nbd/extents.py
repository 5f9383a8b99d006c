"""Which parts of a disk are data, zeros or unchanged: read from a server run by run, never held whole."""

import itertools
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from vmbackup.nbd import protocol as p
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import ExtentsError
from vmbackup.nbd.request import Columns

# Bytes: dirty runs that lie closer together share one request for their allocation. A request costs as
# much as qemu-nbd's look at 90 extents (50 us), which is 6 MiB of a wholly fragmented image of 64 KiB clusters.
NEAR = 4 << 20
# Bytes that each reply must tell of on average, after so many: QEMU tells of a sector at least, mostly of far more.
LEAST, FREE_REPLIES = 512, 1000
MOST_NEAR = 4096  # dirty runs that are held for that


class Kind(IntEnum):
    """What a run holds. A block that is dirty and reads as zeros is ZERO: a record, never skipped."""

    DATA = 0
    ZERO = 1
    UNCHANGED = 2


class Extent(NamedTuple):
    """A run of a disk: offset and length in bytes."""

    offset: int
    length: int
    kind: Kind


# Enum members cost a look-up each time, a NamedTuple's constructor a call: a map has many runs.
_DATA, _ZERO, _UNCHANGED = Kind
_new = tuple.__new__


def extents(
    allocation: NbdClient, bitmap: NbdClient | None, start: int, end: int, bitmap_context: str | None
) -> Iterator[Extent]:
    """The runs of [start, end), in order, without a gap, equal neighbours joined.

    `allocation` has the context base:allocation. With a `bitmap` connection, `bitmap_context` names the
    dirty bitmap there, clean blocks are UNCHANGED, and allocation is asked for in dirty runs only. Both
    may be the same connection. Each context advances by what it covers itself, so that one that is cut
    short never shifts the other. Raises the errors of NbdClient.block_status.
    """
    if bitmap is None:
        return _by_allocation(allocation, start, end)
    if bitmap_context is None or bitmap_context not in bitmap.contexts:
        raise ValueError(f"the connection lacks the bitmap {bitmap_context}")
    return _joined(_by_bitmap(allocation, bitmap, start, end, bitmap_context))


def align(runs: Iterable[Extent], chunk_size: int, disk_size: int, *, start: int = 0) -> Iterator[Extent]:
    """Rounds runs to chunks: whole chunks from `start` (a chunk's border), equal neighbours joined.

    A chunk is ZERO only if all of it is, UNCHANGED only if all of it is, else DATA. A last chunk that the
    disk does not fill counts as whole, so the result ends at `disk_size` rounded up. Raises ExtentsError
    unless the runs follow each other without a gap from `start` to exactly `disk_size`.
    """
    if chunk_size <= 0 or start % chunk_size:
        raise ValueError(f"chunks of {chunk_size} bytes from {start}")
    return _joined(_chunks(runs, chunk_size, disk_size, start))


def _chunks(
    runs: Iterable[Extent], chunk_size: int, disk_size: int, start: int
) -> Iterator[tuple[int, int, Kind]]:
    position = start
    mixed: Kind | None = None  # what the chunk that `position` is inside of holds so far
    for offset, length, kind in runs:
        end = offset + length
        if offset != position or length <= 0 or end > disk_size:
            raise ExtentsError(f"a run of {length} bytes at {offset}, where {position} of {disk_size} is due")
        inside = position % chunk_size
        if inside:
            position = min(end, position - inside + chunk_size)
            mixed = kind if mixed is kind else _DATA
            if position % chunk_size == 0:
                yield position - chunk_size, chunk_size, mixed
        whole = (end - position) // chunk_size * chunk_size
        if whole:
            yield position, whole, kind
            position += whole
        if position < end:
            mixed, position = kind, end
    if position != disk_size:
        raise ExtentsError(f"the runs end at {position}, the disk at {disk_size}")
    inside = position % chunk_size
    if inside and mixed is not None:
        yield position - inside, chunk_size, mixed


def _by_allocation(client: NbdClient, start: int, end: int) -> Iterator[Extent]:
    first, last = start, -1
    for lengths, all_flags in _replies(client, p.BASE_ALLOCATION, start, end):
        for length, flags in zip(lengths, all_flags, strict=True):
            zero = flags & p.STATE_ZERO
            if zero != last:
                if first < start:
                    yield _new(Extent, (first, start - first, _ZERO if last else _DATA))
                first, last = start, zero
            start += length
    if first < start:
        yield Extent(first, start - first, _ZERO if last else _DATA)


def _by_bitmap(
    allocation: NbdClient, bitmap: NbdClient, start: int, end: int, context: str
) -> Iterator[tuple[int, int, Kind]]:
    position = offset = start
    near: list[tuple[int, int]] = []  # dirty runs, begin and end, that share a request for their allocation
    near_end = -1
    for lengths, all_flags in _replies(bitmap, context, start, end):
        for length, flags in zip(lengths, all_flags, strict=True):
            begin, offset = offset, offset + length
            if not flags & p.STATE_DIRTY:
                continue
            if near and (begin - near_end > NEAR or len(near) == MOST_NEAR):
                yield from _dirty(allocation, near, position)
                position = near_end
                near.clear()
            near.append((begin, offset))
            near_end = offset
    if near:
        yield from _dirty(allocation, near, position)
        position = near_end
    if position < end:
        yield position, end - position, _UNCHANGED


def _dirty(
    allocation: NbdClient, dirty: list[tuple[int, int]], position: int
) -> Iterator[tuple[int, int, Kind]]:
    """The runs from `position` to the end of the last dirty one."""
    runs = _by_allocation(allocation, dirty[0][0], dirty[-1][1])
    run_end, kind = 0, _DATA
    for begin, end in dirty:
        if begin > position:
            yield position, begin - position, _UNCHANGED
        position = begin
        while position < end:
            while run_end <= position:
                offset, length, kind = next(runs)
                run_end = offset + length
            piece_end = min(end, run_end)
            yield position, piece_end - position, kind
            position = piece_end


def _replies(client: NbdClient, context: str, start: int, end: int) -> Iterator[Columns]:
    """One context's extents over [start, end), a reply at a time. Each brings progress, or raised.

    Raises ExtentsError where replies go on to bring next to none.
    """
    if context not in client.contexts:
        raise ValueError(f"the connection lacks the context {context}")
    begin = start
    for replies in itertools.count():
        if start >= end:
            return
        if replies > FREE_REPLIES and start - begin < replies * LEAST:
            raise ExtentsError(f"{replies} replies about {context} tell of {start - begin} bytes alone")
        columns = client.block_status_columns(start, min(end - start, p.MAX_STATUS))[context]
        yield columns
        start += sum(columns[0])


def _joined(runs: Iterable[tuple[int, int, Kind]]) -> Iterator[Extent]:
    """Joins equal neighbours of runs that follow each other."""
    first = end = 0
    last: Kind | None = None
    for begin, length, kind in runs:
        if kind is not last:
            if last is not None:
                yield _new(Extent, (first, end - first, last))
            first, last = begin, kind
        end = begin + length
    if last is not None:
        yield Extent(first, end - first, last)
