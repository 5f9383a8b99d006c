"""The history: what it remembers over restarts and deaths, and that nothing wrong with its file stops the service."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.rig import NOON, Clock, backup, copy, prune, verify
from vmbackup.daemon import history_sql
from vmbackup.daemon.history import History
from vmbackup.daemon.snapshot import Totals
from vmbackup.daemon.work import DIED, Kind, Outcome, Request, Run, Skip, Status, moment

DISK = {
    "target": "vda", "mode": "incremental", "reason": None,
    "read_bytes": 300, "changed_bytes": 200, "stored_bytes": 100,
}  # fmt: skip
POINT = {"id": "p1", "domain": "a", "disks": [DISK], "freeze_seconds": 0.05, "seal_seconds": 0.5, "secret": "s3cr3t"}
GOOD = Outcome(Status.SUCCESS, 0, document={"points": [POINT], "failed": []})
BAD = Outcome(Status.FAILED, 1, "the scratch space is full", "free some", "scratch_full")
PLACE = ("nightly", "a", "local")

Open = Callable[[], History]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


@pytest.fixture
def opened(file: Path, clock: Clock) -> Iterator[Open]:
    """Opens the history, as a new life of the service does; the former life has closed it."""
    lives: list[History] = []

    def life() -> History:
        if lives:
            lives[-1].close()
        lives.append(History(file, clock, clock.monotonic))
        return lives[-1]

    yield life
    if lives:
        lives[-1].close()


def both(history: History, opened: Open) -> Iterator[History]:
    """This life, then the next."""
    yield history
    yield opened()


def done(history: History, request: Request, outcome: Outcome = GOOD, at: float = NOON, took: float = 60.0) -> Run:
    run = Run(request.id, request, started=at)
    history.start(run)
    ended = replace(run, finished=at + took, outcome=outcome)
    history.end(ended)
    return ended


def test_the_last_run_and_totals_outlive_the_service(opened: Open) -> None:
    """The same before and after a restart."""
    history = opened()
    done(history, backup("a"))
    failed = done(history, backup("a", attempt=2), BAD, at=NOON + 100)
    history.skip(backup("a").work, Skip.RUNNING)
    for life in both(history, opened):
        last = life.last(Kind.BACKUP, *PLACE)
        assert last is not None
        assert (last.id, last.status, last.attempt, last.started) == (failed.id, "failed", 2, NOON + 100)
        assert (last.finished, last.error, last.hint) == (NOON + 160, "the scratch space is full", "free some")
        assert life.last_success(Kind.BACKUP, *PLACE) == NOON + 60
        assert life.totals(*PLACE) == Totals({"success": 1, "failed": 1}, {"still_running": 1}, 300, 200, 100)
        assert life.guests() == [("a", "nightly", "local")]


def test_stages_are_those_of_the_restore_point(opened: Open) -> None:
    """Seconds of the whole, of the freeze, of the seal; only what is known."""
    history = opened()
    done(history, backup("a"))
    done(history, backup("b"), BAD)
    assert history.last(Kind.BACKUP, *PLACE).stages == {"total": 60.0, "freeze": 0.05, "seal": 0.5}  # type: ignore[union-attr]
    assert history.last(Kind.BACKUP, "nightly", "b", "local").stages == {"total": 60.0}  # type: ignore[union-attr]


def test_what_never_happened_is_nothing(opened: Open) -> None:
    history = opened()
    assert history.last(Kind.BACKUP, *PLACE) is None
    assert history.last_success(Kind.DRILL, *PLACE) == 0.0
    assert history.totals(*PLACE) == Totals()
    assert (history.guests(), history.recent(10), history.unfinished(), history.recall("x")) == ([], [], [], None)


def test_each_work_has_a_last_run_of_its_own(opened: Open) -> None:
    """A copy is not a backup, another target not the same; and only backups are counted."""
    history = opened()
    done(history, copy("a"), at=NOON + 1)
    done(history, copy("a", "third"), BAD)
    done(history, prune(), at=NOON + 2)
    done(history, verify(), BAD)
    history.skip(copy("a").work, Skip.QUEUED)
    assert history.last_success(Kind.COPY, *PLACE, "offsite") == NOON + 61
    assert history.last(Kind.COPY, *PLACE, "third").status == "failed"  # type: ignore[union-attr]
    assert history.last_success(Kind.PRUNE, None, None, "local") == NOON + 62
    assert history.last_success(Kind.VERIFY, None, None, "local") == 0
    assert history.last(Kind.BACKUP, *PLACE) is None
    assert history.totals(*PLACE) == Totals()


def test_warnings_are_successes_and_cancels_are_not(opened: Open) -> None:
    history = opened()
    done(history, backup("a"), Outcome(Status.WARNING, 3, "left out: vdb"))
    done(history, backup("a"), Outcome(Status.CANCELLED, 130, "interrupted"), at=NOON + 1000)
    assert history.last_success(Kind.BACKUP, *PLACE) == NOON + 60
    assert history.totals(*PLACE).runs == {"warning": 1, "cancelled": 1}


def test_runs_are_told_newest_first_with_what_they_made(opened: Open) -> None:
    """Times as ISO 8601; of the document only what is needed."""
    history = opened()
    for number, domain in enumerate("abab"):
        done(history, backup(domain), at=NOON + number)
    last = done(history, backup("a"), BAD, at=NOON + 9)
    for life in both(history, opened):
        found = life.recent(3)
        assert [run["domain"] for run in found] == ["a", "b", "a"]
        assert [run["domain"] for run in life.recent(9, "b")] == ["b", "b"]
        first = found[0]
        assert first["id"] == last.id
        assert first["error"] == "the scratch space is full"
        assert (first["started"], first["finished"]) == (moment(NOON + 9), moment(NOON + 69))
        assert (first["duration_seconds"], first["status"], first["points"]) == (60.0, "failed", [])
        point = found[1]["points"][0]
        assert (point["id"], point["stored_bytes"]) == ("p1", 100)
        assert point["disks"] == [{"target": "vda", "mode": "incremental", "reason": None}]
        assert "s3cr3t" not in str(found)


def test_numbers_are_kept_of_other_runs(opened: Open) -> None:
    history = opened()
    done(history, prune(), Outcome(Status.SUCCESS, 0, document={"pruned": {"objects": 3, "x": "y"}, "left": 7}))
    done(
        history, verify(), Outcome(Status.FAILED, 4, document={"checked": {"bytes": 9}, "damaged": [{}, {}]}), NOON + 1
    )
    done(history, copy("a"), Outcome(Status.SUCCESS, 0, document={"copied": [POINT]}), NOON + 2)
    copied, verified, pruned = history.recent(3)
    assert copied["copied"] == 1
    assert (verified["checked"], verified["damaged"]) == ({"bytes": 9}, 2)
    assert pruned["pruned"] == {"objects": 3}


@pytest.mark.parametrize(
    "document",
    [{"points": 7}, {"points": [7, None]}, {"points": [{"disks": [{"read_bytes": "many", "mode": 3}]}]},
     {"points": [{"disks": [{"read_bytes": -5, "mode": "reread", "reason": None}], "freeze_seconds": True}]},
     {"points": [{"id": "\ud800", "disks": [{"read_bytes": 1e400, "reason": "\x1b[2J"}]}]}],
    ids=["no list", "no points", "no numbers", "nonsense", "no text"],
)  # fmt: skip
def test_any_document_can_be_kept(opened: Open, document: dict[str, Any]) -> None:
    history = opened()
    done(history, backup("a"), Outcome(Status.SUCCESS, 0, "\ud800", document=document))
    assert history.totals(*PLACE).read_bytes == 0
    assert len(opened().recent(2)) == 1
    assert "\x1b" not in str(opened().recent(2))


def test_since_when_something_is_known(opened: Open, clock: Clock) -> None:
    """From the first question on, over restarts and runs; a guest under another job is another."""
    history = opened()
    assert history.known_since(*PLACE) == NOON
    clock.advance(100)
    assert history.known_since(None, None, "local") == NOON + 100
    done(history, backup("a"))
    clock.advance(-100)
    assert history.known_since("nightly", "never", "local") == NOON
    clock.advance(100)
    for life in both(history, opened):
        assert life.known_since(*PLACE) == NOON
        assert life.known_since("nightly", "never", "local") == NOON
        assert life.known_since(None, None, "local") == NOON + 100
        assert life.totals(*PLACE).runs == {"success": 1}
        assert life.known_since("weekly", "a", "local") == NOON + 100


def test_facts_outlive_the_service(opened: Open) -> None:
    history = opened()
    for value in ("1", "2", "2"):
        history.remember("alive", value)
    assert history.recall("alive") == "2"
    assert opened().recall("alive") == "2"


def test_what_is_known_is_not_written_again(opened: Open, file: Path) -> None:
    """The service says every few minutes what it sees, and mostly that is the same."""
    history = opened()
    history.remember("domains", "x" * 10_000)
    before = file.with_name("history.sqlite-wal").stat().st_size
    history.remember("domains", "x" * 10_000)
    assert file.with_name("history.sqlite-wal").stat().st_size == before


def test_what_was_told_outlives_a_power_loss(opened: Open) -> None:
    """As SQLite promises it for these settings."""
    connection = opened()._file._connection
    assert connection is not None
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.unit.daemon.test_history import NOON, History, Run, backup, done
history = History(Path(sys.argv[1]))
done(history, backup("b"))
history.start(Run("deadbeef", backup("a", id="deadbeef"), NOON + 5))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_service_killed_in_a_run(opened: Open, file: Path) -> None:
    """The run has failed, once; what had ended before is there."""
    root = Path(__file__).parents[3]
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, file], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert killed.returncode == -signal.SIGKILL
    history = opened()
    assert history.last(Kind.BACKUP, *PLACE) is None
    assert history.unfinished() == ["deadbeef"]
    for life in both(history, opened):
        last = life.last(Kind.BACKUP, *PLACE)
        assert last is not None
        assert (last.status, last.error) == ("failed", DIED)
        assert life.totals(*PLACE).runs == {"failed": 1}
        assert life.unfinished() == []
        assert [run["id"] for run in life.recent(9, "a")] == ["deadbeef"]
        assert life.totals("nightly", "b", "local").runs == {"success": 1}


def spoil_bytes(file: Path) -> None:
    with file.open("r+b") as raw:
        raw.seek(100)
        raw.write(os.urandom(4096 * 8))


def spoil_end(file: Path) -> None:
    """Where a run is kept that nobody asks for."""
    with file.open("r+b") as raw:
        raw.seek(-4096, os.SEEK_END)
        raw.write(os.urandom(4096))


def spoil_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version=2")


def spoil_owner(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (mine TEXT)")


def spoil_rows(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE lasts SET run = '[]'")


def spoil_table(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DROP TABLE totals")


def spoil_kind(file: Path) -> None:
    file.unlink()
    file.mkdir()


def spoil_head(file: Path) -> None:
    file.write_bytes(b"not a database" * 400)


SPOILS = [spoil_bytes, spoil_end, spoil_version, spoil_owner, spoil_rows, spoil_table, spoil_kind, spoil_head]


@pytest.mark.parametrize("spoil", SPOILS, ids=[spoil.__name__ for spoil in SPOILS])
def test_a_file_of_no_use_is_moved_aside(
    opened: Open, file: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, kept under another name, and a new one is begun."""
    history = opened()
    for number in range(50):
        done(history, backup("a"), at=NOON + number)
    history.close()
    spoil(file)
    history = opened()
    assert history.totals(*PLACE) == Totals()
    assert "moved aside to history.sqlite.aside-" in caplog.text
    done(history, backup("b"))
    assert opened().totals("nightly", "b", "local").runs == {"success": 1}
    assert len(list(file.parent.glob("history.sqlite.aside-*Z"))) == 1
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_breaks_meanwhile(opened: Open, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is known goes into the new one: counters do not go down, nobody is forgotten."""
    history = opened()
    done(history, backup("b"), BAD)
    history.remember("alive", "7")
    for number in range(50):
        done(history, backup("a"), at=NOON + number)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spoil_head(file)
    done(history, backup("a"), at=NOON + 100)
    assert "is made anew" in caplog.text
    for life in both(history, opened):
        assert life.totals(*PLACE).runs == {"success": 51}
        assert life.totals("nightly", "b", "local").runs == {"failed": 1}
        assert life.last(Kind.BACKUP, "nightly", "b", "local").status == "failed"  # type: ignore[union-attr]
        assert life.recall("alive") == "7"
        assert life.recent(1)[0]["started"] == moment(NOON + 100)


def test_only_a_few_spoilt_files_are_kept(opened: Open, file: Path, clock: Clock) -> None:
    for _ in range(6):
        opened().close()
        spoil_head(file)
        clock.advance(10)
    opened()
    assert len(list(file.parent.glob("history.sqlite.aside-*Z"))) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "small", place], capture_output=True).returncode:
        pytest.skip("a file system of its own needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(small_disk: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """It is told once, the service goes on; when there is room again all is written."""
    file, ballast = small_disk / "history.sqlite", small_disk / "ballast"
    with closing(History(file, clock, clock.monotonic)) as history:
        done(history, backup("a"))
        with ballast.open("wb", buffering=0) as filling, pytest.raises(OSError, match="No space"):
            while True:
                filling.write(bytes(4096))
        for number in range(100):
            done(history, backup("a"), at=NOON + number + 1)
        assert caplog.text.count("cannot be used") == 1
        assert history.totals(*PLACE).runs == {"success": 101}
        assert len(history.recent(500)) == 101
        ballast.unlink()
        clock.advance(100)
        history.remember("alive", "1")
        assert "can be written again" in caplog.text
    with closing(History(file, clock, clock.monotonic)) as history:
        assert history.totals(*PLACE).runs == {"success": 101}
        assert len(history.recent(500)) == 101
    assert list(small_disk.glob("*aside*")) == []


def test_a_disk_that_is_full_at_the_start(small_disk: Path, clock: Clock) -> None:
    """A sound file stays where it is."""
    file, ballast = small_disk / "history.sqlite", small_disk / "ballast"
    with closing(History(file, clock, clock.monotonic)) as history:
        done(history, backup("a"))
    with ballast.open("wb", buffering=0) as filling, pytest.raises(OSError, match="No space"):
        while True:
            filling.write(bytes(512))
    with closing(History(file, clock, clock.monotonic)) as history:
        done(history, backup("b"))
        assert history.totals("nightly", "b", "local").runs == {"success": 1}
        ballast.unlink()
        clock.advance(100)
    with closing(History(file, clock, clock.monotonic)) as history:
        assert history.totals("nightly", "b", "local").runs == {"success": 1}
    assert list(small_disk.glob("*aside*")) == []


def test_a_folder_that_is_not_there(file: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The service goes on without; the file is made when it can be."""
    with closing(History(file.parent / "late" / "h.sqlite", clock, clock.monotonic)) as history:
        done(history, backup("a"))
        assert "cannot be used" in caplog.text
        assert history.recent(5)[0]["domain"] == "a"
        (file.parent / "late").mkdir()
        history.remember("x", "1")
        assert list((file.parent / "late").iterdir()) == []
        clock.advance(100)
        done(history, backup("b"))
        assert len(history.recent(5)) == 2


def test_runs_are_bounded_and_totals_are_not(
    opened: Open, file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old runs go, and those that are too many; counters stay."""
    monkeypatch.setattr(history_sql, "RUN_ROWS", 100)
    history = opened()
    history.start(Run("deadbeef", backup("b"), NOON))
    for number in range(150):
        done(history, backup("a"), at=NOON + number)
    history = opened()
    history.remember("a", "write")
    assert len(history.recent(1000)) == 100
    assert opened().unfinished() == ["deadbeef"]
    clock.advance(91 * 86400)
    history = opened()
    history.remember("b", "write")
    assert history.recent(1000) == []
    assert history.totals(*PLACE).runs == {"success": 150}


def test_guests_of_long_ago_are_forgotten(opened: Open, clock: Clock) -> None:
    """Guests that are made and deleted by the hour must not add up for ever."""
    done(opened(), backup("a"))
    clock.advance(401 * 86400)
    history = opened()
    assert history.guests() == []
    history.remember("x", "1")
    clock.advance(-400 * 86400)
    assert opened().totals(*PLACE) == Totals()


def test_many_threads(opened: Open) -> None:
    """No count is lost, in memory or in the file."""
    history = opened()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                done(history, backup("a"))
                history.remember(f"fact{number}", "x")
                history.recent(5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert history.totals(*PLACE).runs == {"success": 160}
    assert opened().totals(*PLACE).runs == {"success": 160}
    assert len(opened().recent(1000)) == 160


def test_metrics_do_not_wait_for_the_disk(opened: Open, file: Path, clock: Clock) -> None:
    """While another process holds the file, what is known is told at once."""
    history = opened()
    done(history, backup("a"))
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=done, args=(history, backup("a")))
        writer.start()
        for _ in range(1000):
            assert history.totals(*PLACE).runs["success"] >= 1
        assert writer.is_alive()
        other.execute("COMMIT")
        writer.join()
    assert opened().totals(*PLACE).runs == {"success": 2}


def test_it_may_be_deleted(opened: Open, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A new file is begun without a word."""
    done(opened(), backup("a"))
    opened().close()
    shutil.rmtree(file.parent)
    file.parent.mkdir()
    assert opened().recent(5) == []
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
