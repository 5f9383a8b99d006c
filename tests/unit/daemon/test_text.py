"""The service in one line, as systemctl status shows it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from vmbackup.daemon.snapshot import GuestState, RunState, Snapshot
from vmbackup.daemon.text import status_line
from vmbackup.daemon.work import Progress

NOW = datetime(2026, 11, 28, 1, 30).astimezone().timestamp()
IDLE = Snapshot(NOW, NOW - 60, "hv1", "running", None, NOW)
GUEST = GuestState("web01", "nightly", "local", last_success=NOW - 50, max_age=100.0, next_run=NOW + 1800)
RUN = RunState("r", "backup", "running", "local", "nightly", "web01", None, "schedule", 1, NOW, NOW, NOW)


def test_nothing_to_do() -> None:
    assert status_line(IDLE) == "nothing is scheduled"


def test_a_run_with_its_progress_and_the_next_one() -> None:
    going = replace(RUN, progress=Progress("web01", 43, 100, 118e6))
    assert status_line(replace(IDLE, guests=(GUEST,), runs=(going,))) == "web01 43 % 118 MB/s, next 02:00"


def test_broken_promises_are_told() -> None:
    broken = replace(GUEST, last_success=NOW - 101, next_run=NOW + 2 * 86400)
    line = status_line(replace(IDLE, guests=(GUEST, broken)))
    assert line == "1 of 2 guests break their promise, next 02:00"


def test_more_runs_than_fit() -> None:
    runs = [replace(RUN, id=str(n), domain=f"web{n}") for n in range(4)]
    prune = replace(RUN, kind="prune", domain=None)
    assert status_line(replace(IDLE, runs=(prune, *runs))) == "local prune, web0, 3 more"


def test_what_waits_does_not_run() -> None:
    assert status_line(replace(IDLE, runs=(replace(RUN, state="queued"),))) == "nothing is scheduled"
