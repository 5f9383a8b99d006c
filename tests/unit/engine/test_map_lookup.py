"""A disk's map looked up at any place."""

from __future__ import annotations

import random
import tracemalloc
from types import SimpleNamespace
from typing import Any

from vmbackup.engine.map_lookup import MapIndex
from vmbackup.repository.nodes import ZERO, Run

RUNS = 20_000


def index_of(entries: list[Run]) -> MapIndex:
    """A map of one leaf."""
    root = SimpleNamespace(chunks=sum(run.chunks for run in entries), session=1, id=b"root")
    disk_map: Any = SimpleNamespace(disk=SimpleNamespace(root=root), load=lambda *_: SimpleNamespace(entries=entries))
    return MapIndex(disk_map)


def test_runs_are_those_that_touch_the_part() -> None:
    chance = random.Random(11)
    entries = [Run(chance.randint(1, 9), chance.choice([ZERO, 1]), number % 7, 3 * number) for number in range(300)]
    index = index_of(entries)
    whole = list(index.runs(0, index.chunks))
    assert [run[1:] for run in whole] == [tuple(entry) for entry in entries]
    for _ in range(200):
        first = chance.randrange(index.chunks)
        chunks = chance.choice([1, 4, 50, index.chunks])
        assert list(index.runs(first, chunks)) == [
            run for run in whole if run.first < first + chunks and run.first + run.chunks > first
        ]


def test_a_lookup_copies_no_leaf() -> None:
    """Each read of a served disk asks: it may not cost as much as the leaf is large."""
    index = index_of([Run(8, 1, number % 80, 8 * number) for number in range(RUNS)])
    list(index.runs(0, 1))  # the leaf is decoded once
    tracemalloc.start()
    try:
        found = list(index.runs(84, 16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 3
    assert peak < RUNS  # bytes; a copy of the rest has eight for each run
