"""A request that is under way: what it asked for, and what has come of it."""

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator

from vmbackup.nbd import protocol as p
from vmbackup.nbd.errors import broken

Columns = tuple["array[int]", "array[int]"]
"""Lengths and status flags of extents, apart: a list of pairs would cost four times as much to make."""

# Chunks beyond one a sector of the request: end marks, errors, pieces at the borders.
_SPARE_CHUNKS = 64


class Request:
    """One request and its reply so far. Offsets and lengths in bytes, of the export."""

    __slots__ = (
        "_chunks_left",
        "_ends",
        "_starts",
        "buffer",
        "command",
        "cookie",
        "covered",
        "failure",
        "internal",
        "length",
        "offset",
        "one",
        "status",
    )

    def __init__(self, command: int, offset: int, length: int) -> None:
        self.cookie = 0  # given when it is sent
        self.command = command
        self.offset = offset
        self.length = length
        self.buffer: memoryview | None = None  # where a read puts its bytes
        self.covered = 0  # bytes of the buffer that have come
        self.failure: tuple[int, str] | None = None  # errno and the server's own words
        self.status: dict[str, Columns] = {}  # what a block status has brought, by context
        self.one = False  # a block status that may bring one extent only
        self.internal = False  # completed for the client itself, not for `wait`
        self._chunks_left = -1
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __str__(self) -> str:
        name = p.COMMAND_NAMES.get(self.command, f"command {self.command}")
        return f"{name} of {self.length} bytes at {self.offset}" if self.length else name

    def claim(self, start: int, length: int) -> memoryview:
        """The part of a read's buffer for the bytes at `start` of the export; each part is given out once.

        Raises a Fault where the part lies outside the request, or overlaps one given out before.
        """
        start -= self.offset
        if self.buffer is None or start < 0 or length <= 0 or start + length > self.length:
            raise broken(f"a piece of {length} bytes at {start + self.offset} lies outside the {self}")
        if length == self.length and not self.covered:
            self.covered = length
            return self.buffer
        if self.covered + length > self.length or not self._insert(start, start + length):
            raise broken(f"pieces of the {self} overlap")
        self.covered += length
        return self.buffer[start : start + length]

    def _insert(self, start: int, end: int) -> bool:
        """Adds a span to the sorted ones, joined with its neighbours; False where it overlaps one."""
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)
        if (at and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            return False
        joins_left = at > 0 and ends[at - 1] == start
        joins_right = at < len(starts) and starts[at] == end
        if joins_left and joins_right:
            ends[at - 1] = ends.pop(at)
            del starts[at]
        elif joins_left:
            ends[at - 1] = end
        elif joins_right:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        return True

    def count_chunk(self) -> None:
        """Bounds the chunks of one reply: no server of ours cuts a read into pieces below a sector."""
        if self._chunks_left < 0:
            size = self.length if self.command == p.CMD_READ else 0
            self._chunks_left = _SPARE_CHUNKS + size // p.SECTOR
        self._chunks_left -= 1
        if self._chunks_left == 0:
            raise broken(f"endless pieces in the reply to the {self}")

    def take_status(self, context: str, payload: memoryview, least: int) -> None:
        """Takes one context's extents (u32 length, u32 flags each), clipped to the request.

        At most MAX_EXTENTS are kept: a reply may end early, so cutting it is right. `least` is the
        export's minimum block size. Raises a Fault for extents that make no progress.
        """
        if context in self.status:
            raise broken(f"context {context} came twice in the reply to the {self}")
        numbers = array("I", payload[: p.MAX_EXTENTS * p.EXTENT_SIZE].tobytes())
        if sys.byteorder == "little":
            numbers.byteswap()
        lengths, flags = numbers[::2], numbers[1::2]
        total = sum(lengths)
        if 0 in lengths:
            raise broken(f"an extent of no bytes in the reply to the {self}")
        if self.one and len(lengths) > 1:
            raise broken(f"{len(lengths)} extents where one was asked for")
        if total < p.SECTOR * (len(lengths) - 1):
            raise broken(f"extents below {p.SECTOR} bytes on average in the reply to the {self}")
        over = total - self.length
        if over > 0:
            if over >= lengths[-1] or self.one:
                raise broken(f"extents beyond the end of the {self}")
            lengths[-1] -= over
        elif over < 0 and (self.offset + total) % least:
            raise broken(f"extents of the {self} that end off the minimum block size of {least}")
        self.status[context] = lengths, flags


def pieces(offset: int, length: int, largest: int) -> Iterator[tuple[int, int]]:
    """Cuts a range into (offset, length) of at most `largest` bytes."""
    end = offset + length
    while offset < end:
        step = min(largest, end - offset)
        yield offset, step
        offset += step
