"""Lines, progress and rates out of what a process writes, in pieces of any size."""

from __future__ import annotations

import itertools
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbackup.daemon.gauge import Gauge
from vmbackup.daemon.lines import Lines
from vmbackup.daemon.run_log import RunLog
from vmbackup.daemon.work import Progress


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)), st.integers(1, 20))
def test_lines_are_the_same_however_they_come(data: bytes, cuts: list[int], limit: int) -> None:
    """Each cut to the limit, none lost, none made up."""
    lines = Lines(limit)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    found = [line for a, b in itertools.pairwise(edges) for line in lines.feed(data[a:b])]
    *whole, rest = data.split(b"\n")
    assert found == [line[:limit] for line in whole]
    assert lines.rest() == rest[:limit]
    assert lines.rest() == b""


def test_a_line_without_an_end_takes_no_memory() -> None:
    lines = Lines(10)
    for _ in range(1000):
        assert lines.feed(b"x" * 1000) == []
    assert len(lines.rest()) == 10


class Ticking:
    """A gauge or log with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.told: list[Progress] = []
        self.notes: list[str] = []
        self.gauge = Gauge(self.told.append, self.notes.append, lambda: self.now)

    def line(self, after: float = 0.0, **document: object) -> None:
        self.now += after
        self.gauge.feed(json.dumps(document).encode() + b"\n")

    @property
    def rate(self) -> float:
        return self.told[-1].bytes_per_second


def test_progress() -> None:
    t = Ticking()
    t.line(task="vda", done_bytes=0, total_bytes=1000)
    t.line(1, task="vda", done_bytes=100, total_bytes=1000)
    assert t.told == [Progress("vda", 0, 1000), Progress("vda", 100, 1000, 100.0)]
    t.line(task="x", done_bytes=0, total_bytes=None)
    assert t.told[-1].total_bytes is None


def test_notes_are_kept_and_told() -> None:
    t = Ticking()
    t.line(note="waiting for \x07 the store")
    t.line(task="vda", done_bytes=1)
    assert t.notes == ["waiting for ? the store"]
    assert t.told[-1].note == "waiting for ? the store"


def test_the_rate_is_smooth() -> None:
    """A burst moves it a little, a new pace becomes its own within a minute."""
    t = Ticking()
    done = 0
    for _ in range(100):
        t.line(0.25, task="a", done_bytes=(done := done + 250))
    assert t.rate == pytest.approx(1000)
    t.line(0.25, task="a", done_bytes=(done := done + 2500))
    assert 1000 < t.rate < 1300
    for _ in range(240):
        t.line(0.25, task="a", done_bytes=(done := done + 500))
    assert t.rate == pytest.approx(2000, rel=0.01)


def test_a_new_task_goes_on_at_the_same_rate() -> None:
    """Its first bytes count from nothing, also where a task begins anew."""
    t = Ticking()
    done = 0
    for task in ("a", "b", "b"):
        for done in range(0, 10_000, 500):
            t.line(0.5, task=task, done_bytes=done)
    assert done == 9500
    assert t.rate == pytest.approx(950, rel=0.06)


def test_a_run_that_stands_still_has_no_rate() -> None:
    t = Ticking()
    t.line(task="a", done_bytes=0)
    t.line(1, task="a", done_bytes=10**6)
    for _ in range(10):
        t.now += 1
        t.gauge.idle()
    assert 0 < t.rate < 10**6
    for _ in range(300):
        t.now += 1
        t.gauge.idle()
    assert t.rate == 0.0
    told = len(t.told)
    t.now += 60
    t.gauge.idle()
    assert len(t.told) == told


@pytest.mark.parametrize("line", [
    b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"task": 1, "done_bytes": 2}', b'{"task": "a"}', b'{"note": 3}',
    b'{"task": "a", "done_bytes": -1}', b'{"task": "a", "done_bytes": true}', b'{"task": "a", "done_bytes": 1e3}',
    b"[" * 16000,
])  # fmt: skip
def test_what_is_no_progress_is_passed_over(line: bytes) -> None:
    t = Ticking()
    t.gauge.feed(line + b"\n")
    assert t.told == []
    t.line(task="a", done_bytes=1, total_bytes="many")
    assert t.told == [Progress("a", 1)]


def test_only_the_newest_of_a_piece_is_told() -> None:
    t = Ticking()
    t.gauge.feed(b"".join(b'{"task": "a", "done_bytes": %d}\n' % done for done in range(1000)))
    assert [told.done_bytes for told in t.told] == [999]


def test_a_log_that_is_flooded(caplog: pytest.LogCaptureFixture) -> None:
    """So many lines in a while, the number of the others, then more again; the last are always kept."""
    now = 0.0
    caplog.set_level(logging.INFO, "vmbackup.daemon.run")
    log = RunLog("r1", "web01", lambda: now)
    for number in range(1000):
        log.feed(b"%d\n" % number)
    log.feed(b"".join(b"%d\n" % number for number in range(1000, 5000)))
    assert len(caplog.records) == 200
    assert list(log.last) == ["4995", "4996", "4997", "4998", "4999"]
    now += 10
    log.feed(b"again\n")
    assert [record.getMessage() for record in caplog.records[200:]] == [
        "r1 web01: 4800 more lines were left out",
        "r1 web01: again",
    ]
    log.close()
    assert len(caplog.records) == 202
