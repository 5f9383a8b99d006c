"""Whether the map of a file covers what should be in it."""

from __future__ import annotations

import pytest

from vmbackup.engine.boot.proof import Run, lacks

THERE = [(0, 10), (20, 30), (40, 50)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], False),
        ([(0, 10), (20, 30), (40, 50)], False),
        ([(2, 5), (5, 10), (25, 26), (49, 50)], False),
        ([(0, 11)], True),
        ([(10, 20)], True),
        ([(19, 21)], True),
        ([(0, 3), (30, 31)], True),
        ([(0, 3), (29, 41)], True),
        ([(45, 51)], True),
        ([(60, 61)], True),
        ([(0, 30)], True),
        ([(20, 30), (22, 24), (41, 42)], False),  # the point and the overlay may hold the same part
        ([(20, 30), (22, 34)], True),
    ],
)
def test_all_that_is_wanted_is_there(wanted: list[Run], *, expected: bool) -> None:
    assert lacks(THERE, wanted) is expected


def test_nothing_is_in_an_empty_file() -> None:
    assert lacks([], [(0, 1)])
    assert not lacks([], [])
