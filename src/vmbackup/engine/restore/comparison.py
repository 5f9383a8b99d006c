"""A local image compared with a disk of a restore point, by the ids of its chunks: nothing of the store is decoded."""

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from mmap import mmap
from typing import NamedTuple

from blake3 import blake3

from vmbackup.engine.chunk_ids import ChunkIds
from vmbackup.engine.chunk_ranges import ChunkRanges, Range
from vmbackup.engine.images.local_image import LocalImage, Region, RegionReader, Regions, fill
from vmbackup.engine.map_lookup import MapIndex
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import ZERO

# Bytes that one thread compares at a time: long enough that Python's part is small.
_UNIT = 2 << 20
_AHEAD = 2  # units a thread that wait for one
_THREADS = 2  # a core: while one waits for the disk another one hashes

Advance = Callable[[int], None]


@dataclass
class Differences:
    """Where an image differs. `read_bytes` of it were looked at; `new_bytes` it has no own room for yet, at most."""

    ranges: ChunkRanges = field(default_factory=ChunkRanges)
    read_bytes: int = 0
    new_bytes: int = 0


class _Unit(NamedTuple):
    """Chunks from `first` on that one thread compares; `ids` are None for chunks that are to be zeros."""

    first: int
    chunks: int
    regions: list[Region]
    key: bytes = b""
    ids: list[bytes] | None = None


class Comparison:
    """Finds the chunks of an image that are not as a restore point has them."""

    def __init__(self, disk_map: DiskMap, image: LocalImage, workers: int) -> None:
        self._map, self._image, self._threads = disk_map, image, _THREADS * workers
        self._ids, self._index = ChunkIds(disk_map), MapIndex(disk_map)
        self._size, self._end = disk_map.disk.chunk_size, disk_map.disk.virtual_size
        self._step = max(1, _UNIT // self._size)

    def run(self, advance: Advance, ranges: Iterable[Range] | None = None) -> Differences:
        """Compares all of the disk, or some ranges of its chunks, in order. Raises TargetError, DamageError."""
        found = Differences()
        free: queue.SimpleQueue[_Comparer] = queue.SimpleQueue()
        comparers = []
        try:
            for _ in range(self._threads):
                comparers.append(_Comparer(self._image.open_reader(), self._size, self._step))
                free.put(comparers[-1])
            every = [(0, self._map.disk.root.chunks)]
            self._run(every if ranges is None else ranges, free, found, advance)
        finally:
            for comparer in comparers:
                comparer.close()
        return found

    def _run(
        self,
        ranges: Iterable[Range],
        free: "queue.SimpleQueue[_Comparer]",
        found: Differences,
        advance: Advance,
    ) -> None:
        def compare(unit: _Unit) -> list[int]:
            comparer = free.get()
            try:
                return comparer.compare(unit)
            finally:
                free.put(comparer)

        pending: deque[tuple[_Unit, Future[list[int]]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="compare") as pool:
            try:
                for unit in self._units(ranges, advance):
                    pending.append((unit, pool.submit(compare, unit)))
                    if len(pending) > _AHEAD * self._threads:
                        self._take(*pending.popleft(), found, advance)
                while pending:
                    self._take(*pending.popleft(), found, advance)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, unit: _Unit, future: Future[list[int]], found: Differences, advance: Advance) -> None:
        different = future.result()
        for chunk in different:
            found.ranges.add(chunk, 1)
        found.read_bytes += sum(region.length for region in unit.regions if not region.zero)
        if unit.ids is not None and any(region.host < 0 for region in unit.regions):
            found.new_bytes += len(different) * self._size
        advance(unit.chunks * self._size)

    def _units(self, ranges: Iterable[Range], advance: Advance) -> Iterator[_Unit]:
        for first, chunks in ranges:
            start, end = (min(n * self._size, self._end, self._image.size) for n in (first, first + chunks))
            regions = Regions(self._regions(start, end) if start < end else iter(()))
            for extent in self._index.extents(first, chunks):
                yield from self._zeros(extent, regions, advance) if extent.session == ZERO else self._data(
                    extent, regions
                )

    def _regions(self, start: int, end: int) -> Iterator[Region]:
        """The image's parts. Of a few chunks it is not asked: where they are a hole, zeros are read."""
        if end - start > _UNIT:
            yield from self._image.regions(start, end)
        else:
            yield Region(start, end - start, zero=False)

    def _data(self, extent: Extent, regions: Regions) -> Iterator[_Unit]:
        for run in self._ids.of(extent):
            key = self._ids.key(run.key_number)
            for at in range(0, len(run.ids), self._step):
                first, ids = run.first + at, run.ids[at : at + self._step]
                parts = list(regions.take(first * self._size, self._cut(first + len(ids))))
                yield _Unit(first, len(ids), parts, key, ids)

    def _zeros(self, extent: Extent, regions: Regions, advance: Advance) -> Iterator[_Unit]:
        """Only what the image has data in is looked at: of terabytes of holes nothing."""
        start, end = extent.first * self._size, self._cut(extent.first + extent.chunks)
        longest = self._step * self._size
        for region in regions.take(start, end):
            if region.zero:
                advance(region.length)
                continue
            for at in range(0, region.length, longest):
                length = min(longest, region.length - at)
                offset, host = region.offset + at, region.host + at if region.host >= 0 else region.host
                first = offset // self._size
                chunks = -(-(offset + length) // self._size) - first
                yield _Unit(first, chunks, [Region(offset, length, zero=False, host=host)])

    def _cut(self, chunk: int) -> int:
        """Where a chunk begins, or the disk ends."""
        return min(chunk * self._size, self._end)


class _Comparer:
    """One thread's reader and buffer."""

    def __init__(self, reader: RegionReader, chunk_size: int, step: int) -> None:
        self._reader, self._size = reader, chunk_size
        self._memory = mmap(-1, chunk_size * step)
        self._buffer = memoryview(self._memory)
        self._zeros = bytes(chunk_size)

    def compare(self, unit: _Unit) -> list[int]:
        """The chunks of a unit that differ."""
        if unit.ids is None:
            return self._with_data(unit.regions[0])
        if all(region.zero for region in unit.regions):
            return list(range(unit.first, unit.first + unit.chunks))
        size, buffer = self._size, self._buffer
        fill(buffer[: unit.chunks * size], unit.first * size, unit.regions, self._reader)
        return [
            unit.first + at
            for at, wanted in enumerate(unit.ids)
            if blake3(buffer[at * size : (at + 1) * size], key=unit.key).digest() != wanted
        ]

    def _with_data(self, region: Region) -> list[int]:
        """The chunks in which a region is not all zeros."""
        buffer, size = self._buffer[: region.length], self._size
        self._reader.read(region, buffer)
        found, at = [], 0
        while at < region.length:
            chunk = (region.offset + at) // size
            end = min((chunk + 1) * size - region.offset, region.length)
            if self._memory[at:end] != self._zeros[: end - at]:
                found.append(chunk)
            at = end
        return found

    def close(self) -> None:
        """Ends the reader."""
        self._reader.close()
