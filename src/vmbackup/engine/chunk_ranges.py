"""Ranges of a disk's chunks, many, in little memory."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]  # first chunk, number of chunks


class ChunkRanges:
    """Ranges that are added in order; those that touch or overlap are one."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts, self._ends = array("Q"), array("Q")
        self.chunks = 0
        for first, chunks in ranges:
            self.add(first, chunks)

    def add(self, first: int, chunks: int) -> None:
        """Adds a range that begins no earlier than the last one did."""
        if self._ends and first < self._firsts[-1]:
            raise ValueError(f"chunk {first} after {self._firsts[-1]}")
        end = first + chunks
        if self._ends and first <= self._ends[-1]:
            if end > self._ends[-1]:
                self.chunks += end - self._ends[-1]
                self._ends[-1] = end
        else:
            self._firsts.append(first)
            self._ends.append(end)
            self.chunks += chunks

    def __iter__(self) -> Iterator[Range]:
        return ((first, end - first) for first, end in zip(self._firsts, self._ends, strict=True))

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __contains__(self, chunk: int) -> bool:
        at = bisect_right(self._firsts, chunk) - 1
        return at >= 0 and chunk < self._ends[at]
