"""Where the chunks of a disk lie, looked up at any place; for many threads."""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, cast

from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import ZERO, Ref, Run

# Decoded nodes that are held: the path to where one reads. A leaf covers up to 16 GiB and takes half a MB at most.
PATH = 16


class _Spread(NamedTuple):
    """A node with the first chunk of each entry, and behind them its end."""

    starts: list[int]
    entries: Sequence[Run] | Sequence[Ref]


class MapIndex:
    """The map of one disk. Its nodes are read when they are needed; so many are held decoded."""

    def __init__(self, disk_map: DiskMap, nodes: int = PATH) -> None:
        self._map, self._most = disk_map, nodes
        self.chunks = disk_map.disk.root.chunks
        self._nodes: OrderedDict[tuple[bytes, int], _Spread] = OrderedDict()
        self._lock = threading.Lock()

    def runs(self, first: int, chunks: int) -> Iterator[Extent]:
        """The whole runs that touch a part of the disk, in order; the first may begin before it, the last end behind.

        Raises DamageError.
        """
        end = min(first + chunks, self.chunks)
        while first < end:
            ref, at = self._map.disk.root, 0
            while True:
                if ref.session == ZERO:
                    yield Extent(at, ref.chunks, ZERO, 0, 0)
                    first = at + ref.chunks
                    break
                spread = self._spread(ref, at)
                number = bisect_right(spread.starts, first) - 1
                entry = spread.entries[number]
                if isinstance(entry, Ref):
                    ref, at = entry, spread.starts[number]
                    continue
                starts, entries = spread.starts, spread.entries
                while number < len(entries) and first < end:  # no slice: it would copy the rest of a leaf for each read
                    yield Extent(starts[number], *entries[number])
                    number += 1
                    first = starts[number]
                break

    def extents(self, first: int, chunks: int) -> Iterator[Extent]:
        """The runs of a part of the disk, clipped to it. Raises DamageError."""
        end = first + chunks
        for run in self.runs(first, chunks):
            skip = max(0, first - run.first)
            count = min(run.first + run.chunks, end) - run.first - skip
            slot = run.slot if run.session == ZERO else run.slot + skip
            yield Extent(run.first + skip, count, run.session, run.pack, slot)

    def _spread(self, ref: Ref, first: int) -> _Spread:
        key = ref.id, first
        with self._lock:
            found = self._nodes.get(key)
            if found is not None:
                self._nodes.move_to_end(key)
                return found
        node = self._map.load(ref, first)
        entries = cast("Sequence[Run] | Sequence[Ref]", tuple(node.entries))
        found = _Spread(list(accumulate((entry.chunks for entry in entries), initial=first)), entries)
        with self._lock:
            self._nodes[key] = found
            while len(self._nodes) > self._most:
                self._nodes.popitem(last=False)
        return found
