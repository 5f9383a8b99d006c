"""Ranges of chunks against a plain set."""

from __future__ import annotations

import itertools
import random

import pytest

from vmbackup.engine.chunk_ranges import ChunkRanges


def test_they_are_what_was_added() -> None:
    """Joined where they touch or overlap, in order, each chunk once."""
    chance = random.Random(1)
    for _ in range(200):
        added = sorted((chance.randrange(100), chance.randrange(1, 6)) for _ in range(chance.randrange(12)))
        ranges = ChunkRanges(added)
        wanted = {first + n for first, chunks in added for n in range(chunks)}
        assert [first + n for first, chunks in ranges for n in range(chunks)] == sorted(wanted)
        assert {chunk for chunk in range(110) if chunk in ranges} == wanted
        assert ranges.chunks == len(wanted)
        assert bool(ranges) == bool(wanted)
        ends = [(first, first + chunks) for first, chunks in ranges]
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(ends))


def test_order_is_asked_for() -> None:
    """A range before the last one cannot be added."""
    with pytest.raises(ValueError, match="chunk 3 after 5"):
        ChunkRanges([(5, 1), (3, 1)])
