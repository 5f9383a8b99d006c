"""Extents merged from contexts that are cut anywhere, and rounded to chunks: against maps of single bytes."""

import itertools
import random
import sys
import time
from array import array
from collections.abc import Iterable
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbackup.nbd import Extent, ExtentsError, Kind, align, extents
from vmbackup.nbd import protocol as p

BITMAP = "qemu:dirty-bitmap:b"
MODULE = sys.modules["vmbackup.nbd.extents"]  # the package shows the function of that name
DATA, ZERO, UNCHANGED = Kind.DATA, Kind.ZERO, Kind.UNCHANGED


class Reports:
    """Stands in for a connection: reports maps of flags, a unit each, cut at random as servers may."""

    def __init__(self, maps: dict[str, list[int]], seed: int | None = 0, unit: int = 1) -> None:
        self.contexts = tuple(maps)
        self.maps = maps
        self.rng = random.Random(seed) if seed is not None else None
        self.unit = unit
        self.asked: list[tuple[int, int]] = []

    def block_status_columns(self, offset: int, length: int) -> dict[str, tuple[array, array]]:
        self.asked.append((offset, length))
        begin, count = offset // self.unit, length // self.unit
        return {name: self._extents(flags, begin, count) for name, flags in self.maps.items()}

    def _extents(self, flags: list[int], offset: int, length: int) -> tuple[array, array]:
        length = self.rng.randint(1, length) if self.rng else length
        runs = [(len(list(g)), f) for f, g in itertools.groupby(flags[offset : offset + length])]
        if self.rng and self.rng.random() < 0.3 and runs[0][0] > 1:  # equal neighbours are allowed
            runs[:1] = [(1, runs[0][1]), (runs[0][0] - 1, runs[0][1])]
        return array("I", [n * self.unit for n, _ in runs]), array("I", [f for _, f in runs])


def flat(runs: Iterable[Extent], start: int = 0) -> list[Kind]:
    """One kind a byte; checks that runs follow each other and neighbours differ."""
    kinds: list[Kind] = []
    for run in runs:
        assert run.offset == start + len(kinds)
        assert run.length > 0
        assert not kinds or kinds[-1] is not run.kind
        kinds += [run.kind] * run.length
    return kinds


maps = st.integers(1, 120).flatmap(
    lambda n: st.tuples(
        st.lists(st.sampled_from([0, 1, 2, 3]), min_size=n, max_size=n),
        st.lists(st.sampled_from([0, 0, 1]), min_size=n, max_size=n),
    )
)


@given(maps, st.integers(), st.integers(0, 9), st.integers(1, 4), st.data())
def test_dirty_zeros_are_zero_and_clean_is_unchanged(both, seed, near, most, data) -> None:
    """However dirty runs share requests for their allocation."""
    with mock.patch.multiple(MODULE, NEAR=near, MOST_NEAR=most):
        compare(both, seed, data)


def compare(both, seed, data) -> None:
    """Only bit 1 of allocation means zeros; contexts cut at different places never shift each other."""
    allocation, dirty = both
    start = data.draw(st.integers(0, len(dirty) - 1))
    end = data.draw(st.integers(start + 1, len(dirty)))
    expected = [
        UNCHANGED if not d else ZERO if a & 2 else DATA for a, d in zip(allocation, dirty, strict=True)
    ][start:end]
    apart = Reports({p.BASE_ALLOCATION: allocation}, seed), Reports({BITMAP: dirty}, seed)
    assert flat(extents(*apart, start, end, BITMAP), start) == expected
    one = Reports({BITMAP: dirty, p.BASE_ALLOCATION: allocation}, seed)
    assert flat(extents(one, one, start, end, BITMAP), start) == expected
    full = [ZERO if a & 2 else DATA for a in allocation[start:end]]
    assert flat(extents(apart[0], None, start, end, None), start) == full


def test_allocation_is_asked_for_in_dirty_runs_only() -> None:
    """Clean areas cost no look-up; dirty runs that lie close share one."""
    mib = 16  # units of 64 KiB
    dirty = [0] * (100 * mib)
    for at in (3 * mib, 3 * mib + 4, 50 * mib):
        dirty[at] = 1
    unit = 64 << 10
    allocation = Reports({p.BASE_ALLOCATION: [0] * len(dirty)}, None, unit)
    bitmap = Reports({BITMAP: dirty}, None, unit)
    runs = list(extents(allocation, bitmap, 0, len(dirty) * unit, BITMAP))
    assert [r for r in runs if r.kind is DATA] == [
        (3 << 20, unit, DATA),
        ((3 << 20) + 4 * unit, unit, DATA),
        (50 << 20, unit, DATA),
    ]
    assert allocation.asked == [(3 << 20, 5 * unit), (50 << 20, unit)]


class Clean:
    """A connection whose bitmap is clean."""

    contexts = (BITMAP,)
    asked = 0

    def block_status_columns(self, offset: int, length: int) -> dict[str, tuple[array, array]]:
        assert length <= 1 << 31
        self.asked += 1
        return {BITMAP: (array("I", [length]), array("I", [0]))}


def test_a_clean_tebibyte_is_one_run_of_512_calls() -> None:
    bitmap = Clean()
    began = time.process_time()
    assert list(extents(bitmap, bitmap, 0, 1 << 40, BITMAP)) == [(0, 1 << 40, UNCHANGED)]
    assert time.process_time() - began < 0.05
    assert bitmap.asked == 512


def test_replies_that_bring_next_to_nothing_are_not_waited_for() -> None:
    """A server that tells of a byte at a time would take years for a disk; small replies now and then are fine."""
    asked = 0

    class Slow:
        contexts = (p.BASE_ALLOCATION,)

        def block_status_columns(self, _offset: int, length: int) -> dict[str, tuple[list[int], list[int]]]:
            nonlocal asked
            asked += 1
            told = min(length, self.step)
            return {p.BASE_ALLOCATION: ([told], [0])}

        step = 1

    slow = Slow()
    with pytest.raises(ExtentsError, match="alone"):
        list(extents(slow, None, 0, 1 << 44, None))
    assert asked < 1100
    slow.step = 512
    assert list(extents(slow, None, 0, 1 << 20, None)) == [Extent(0, 1 << 20, DATA)]


def test_a_context_that_is_not_there_never_means_clean() -> None:
    bitmap = Reports({p.BASE_ALLOCATION: [0]})
    for name in (BITMAP, None):
        with pytest.raises(ValueError, match="lacks"):
            extents(bitmap, bitmap, 0, 1, name)
    with pytest.raises(ValueError, match="lacks"):
        list(extents(Reports({BITMAP: [0]}), None, 0, 1, None))


kinds = st.lists(st.tuples(st.sampled_from(list(Kind)), st.integers(1, 40)), max_size=12)


@given(kinds, st.integers(1, 17), st.integers(0, 3))
def test_align_rounds_as_a_map_of_bytes_would(runs, chunk, first) -> None:
    start = first * chunk
    given_runs, at = [], start
    for kind, length in runs:
        given_runs.append(Extent(at, length, kind))
        at += length
    single = [kind for kind, length in runs for _ in range(length)]
    expected: list[Kind] = []
    for i in range(0, len(single), chunk):
        inside = set(single[i : i + chunk])
        expected += [inside.pop() if len(inside) == 1 else DATA] * chunk
    assert flat(align(given_runs, chunk, at, start=start), start) == expected


def test_align_streams() -> None:
    """Runs are taken as results are asked for, however many there are."""
    endless = (Extent(n * 10, 10, Kind(n % 2)) for n in itertools.count())
    first = list(itertools.islice(align(endless, 5, 1 << 60), 3))
    assert first == [(0, 10, DATA), (10, 10, ZERO), (20, 10, DATA)]


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([], "end at 0"),
        ([(0, 8, DATA)], "end at 8, the disk at 16"),
        ([(0, 8, DATA), (9, 7, DATA)], "at 9, where 8 of 16"),
        ([(0, 8, DATA), (7, 9, DATA)], "at 7, where 8 of 16"),
        ([(1, 15, DATA)], "at 1, where 0"),
        ([(0, 17, DATA)], "17 bytes at 0"),
        ([(0, 16, DATA), (16, 1, DATA)], "1 bytes at 16"),
        ([(0, 0, DATA), (0, 16, DATA)], "0 bytes at 0"),
    ],
)
def test_runs_that_are_no_map_of_the_disk_are_refused(runs, text) -> None:
    with pytest.raises(ExtentsError, match=text):
        list(align([Extent(*r) for r in runs], 4, 16))


@pytest.mark.parametrize(("chunk", "start"), [(0, 0), (-4, 0), (4, 2)])
def test_chunks_that_cannot_be_meant_are_refused(chunk, start) -> None:
    with pytest.raises(ValueError):
        align([], chunk, 16, start=start)
