"""Cutting a disk into units of work, with what the parent's map says of each."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vmbackup.nbd.extents import Extent as SourceExtent
from vmbackup.nbd.extents import Kind
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import KEEP, ZERO, Run

# Bytes of data in a unit: a pack of 32 MiB holds about as much, so its chunks lie in disk order in the map.
UNIT_BYTES = 64 << 20
# Scattered runs: few enough that 500 of them keep all workers busy.
UNIT_RUNS = 64

KEEP_RUN, ZERO_RUN = Run(0, KEEP, 0, 0), Run(0, ZERO, 0, 0)


@dataclass
class Unit:
    """Neighbouring parts of a disk, in order. `parts`: (first chunk, chunks, kind); `old`: the parent's map there."""

    parts: list[tuple[int, int, Kind]] = field(default_factory=list)
    old: list[Extent] = field(default_factory=list)
    data_chunks: int = 0
    data_runs: int = 0


class OldMap:
    """The parent's map, read forward once: what it says of ever later parts."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._extents = iter(extents)
        self._current = next(self._extents, None)

    def of(self, first: int, chunks: int) -> Iterator[Extent]:
        """The extents that touch [first, first + chunks), whole; each part must lie behind the former ones."""
        while self._current is not None and self._current.first < first + chunks:
            if self._current.first + self._current.chunks > first:
                yield self._current
            if self._current.first + self._current.chunks > first + chunks:
                return
            self._current = next(self._extents, None)


def units(runs: Iterable[SourceExtent], chunk_size: int, old: OldMap | None) -> Iterator[Unit]:
    """Units of at most UNIT_BYTES of data and UNIT_RUNS data runs. `runs` are rounded to chunks."""
    unit = Unit()
    limit = max(1, UNIT_BYTES // chunk_size)
    for offset, length, kind in runs:
        first, chunks = offset // chunk_size, -(-length // chunk_size)
        while chunks:
            count = chunks if kind != Kind.DATA else min(chunks, limit - unit.data_chunks)
            unit.parts.append((first, count, kind))
            if old is not None and kind != Kind.UNCHANGED:
                unit.old += (e for e in old.of(first, count) if not unit.old or unit.old[-1] != e)
            if kind == Kind.DATA:
                unit.data_chunks += count
                unit.data_runs += 1
            first, chunks = first + count, chunks - count
            if unit.data_chunks >= limit or unit.data_runs >= UNIT_RUNS or len(unit.parts) >= 4 * UNIT_RUNS:
                yield unit
                unit = Unit()
    if unit.parts:
        yield unit
