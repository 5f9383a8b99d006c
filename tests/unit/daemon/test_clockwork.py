"""The clockwork: what is called when, whatever the clock, the calls and the configuration do."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers import base
from apscheduler.schedulers.background import BackgroundScheduler

from tests.unit.daemon.schedules import epoch
from vmbackup.daemon.clockwork import HEARTBEAT, Clockwork, Entry, Trigger

BERLIN = ZoneInfo("Europe/Berlin")
MONDAY = epoch("2026-05-04 12:00", BERLIN)


class Machine:
    """A machine whose clocks go as a test says, and the clockwork on it; calls are made at once, in its own thread."""

    def __init__(self, wall: float = MONDAY) -> None:
        self.wall, self.monotonic = wall, 1000.0
        self.calls: list[tuple[str, float, float]] = []  # what, when it was due, and by the wall when it was called
        self.jumps: list[float] = []
        self.spawn: Callable[[Callable[[], None]], Any] = lambda run: run()
        self.clockwork = Clockwork(self.jumps.append, lambda: self.wall, lambda: self.monotonic, self.call)

    def entry(self, name: str, schedule: str, zone: tzinfo = BERLIN) -> Entry:
        return Entry(schedule, zone, lambda due: self.calls.append((name, due, self.wall)))

    def call(self, run: Callable[[], None]) -> None:
        self.spawn(run)

    def start(self, **schedules: str) -> None:
        self.set(**schedules)
        self.clockwork.start()

    def set(self, **schedules: str) -> None:
        self.clockwork.set({name: self.entry(name, schedule) for name, schedule in schedules.items()})

    def round(self) -> float:
        """What the clockwork's thread does each time that it is awake."""
        wait: float = self.clockwork._scheduler._process_jobs()
        return wait

    def run(self, seconds: float) -> None:
        """Let it live for so long."""
        end = self.monotonic + seconds
        while self.monotonic < end:
            self.pass_by(min(max(self.round(), 0.001), end - self.monotonic))
        self.round()

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def due(self, name: str) -> list[str]:
        """When its calls were due, by the clock of Berlin."""
        return [
            datetime.fromtimestamp(due, BERLIN).strftime("%d %H:%M") for called, due, _ in self.calls if called == name
        ]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine()

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(made.wall, tz)

    monkeypatch.setattr(base, "datetime", Clock)
    monkeypatch.setattr(BackgroundScheduler, "_main_loop", lambda self: None)  # the test is its thread
    yield made
    made.clockwork.shutdown()


def test_calls_come_at_their_times(machine: Machine) -> None:
    machine.start(nightly="0 2 * * *", hours="0 */6 * * *", rare="0 0 29 2 *")
    machine.run(2 * 86400)
    assert machine.due("nightly") == ["05 02:00", "06 02:00"]
    assert machine.due("hours") == [
        "04 18:00", "05 00:00", "05 06:00", "05 12:00", "05 18:00", "06 00:00", "06 06:00", "06 12:00",
    ]  # fmt: skip
    assert all(0 <= called - due < 0.01 for _, due, called in machine.calls)
    assert machine.clockwork.next("rare") == epoch("2028-02-29", BERLIN)


@pytest.mark.parametrize(("start", "due"), [("2026-03-28 12:00", "29 03:00"), ("2026-10-24 12:00", "25 02:30")])
def test_the_missing_hour_and_the_doubled_one(machine: Machine, start: str, due: str) -> None:
    """A fixed hour once, all hours as they are."""
    machine.wall = epoch(start, BERLIN)
    machine.start(nightly="30 2 * * *", hourly="30 * * * *")
    machine.run(86400)
    assert machine.due("nightly") == [due]
    assert len(machine.due("hourly")) == 24


def test_next_is_known_before_the_start(machine: Machine) -> None:
    machine.set(nightly="0 2 * * *")
    two = epoch("2026-05-05 02:00", BERLIN)
    assert machine.clockwork.next("nightly") == two
    machine.clockwork.start()
    assert machine.clockwork.next("nightly") == two
    assert machine.clockwork.next("other") is None


def test_a_late_call_is_made_once_for_the_newest(machine: Machine) -> None:
    """However late: after five days asleep one call, for the last night; the next comes at its time."""
    machine.start(nightly="0 2 * * *", often="@every 1s")
    machine.round()
    machine.wall += 5 * 86400
    machine.run(60)
    assert machine.due("nightly") == ["09 02:00"]
    assert machine.clockwork.next("nightly") == epoch("2026-05-10 02:00", BERLIN)
    assert machine.due("often")[0] == "09 12:00"
    assert len(machine.due("often")) < 63
    assert machine.jumps == [5 * 86400]


def test_what_was_missed_is_not_counted_one_by_one(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year of seconds would keep the clockwork busy for minutes."""
    asked = []
    monkeypatch.setattr(Trigger, "after", lambda _self, after: asked.append(after) or after // 1 + 1)
    machine.start(often="@every 1s")
    machine.wall += 365 * 86400
    machine.round()
    assert len(machine.calls) == 1
    assert len(asked) < 10


def test_it_never_sleeps_longer_than_a_heartbeat(machine: Machine) -> None:
    """So neither a machine that slept nor a clock that was set keeps a call waiting for more than that."""
    machine.start(rare="0 0 29 2 *")
    assert machine.round() == HEARTBEAT
    machine.set()
    assert machine.round() == HEARTBEAT
    machine.pass_by(30)
    assert machine.clockwork.beat == 1000.0
    machine.round()
    assert machine.clockwork.beat == 1030.0


def test_a_clock_that_was_a_year_ahead(machine: Machine) -> None:
    """Set right, calls come by the right time, not in a year."""
    right = machine.wall
    machine.wall += 365 * 86400
    machine.start(nightly="0 2 * * *", hourly="@hourly")
    machine.run(3600)
    machine.calls.clear()
    machine.jumps.clear()
    machine.wall = right
    machine.run(86400)
    assert machine.due("nightly") == ["05 02:00"]
    assert len(machine.due("hourly")) == 24
    assert machine.jumps == [-365 * 86400 - 3600]


def test_a_clock_that_is_corrected_calls_nothing_twice(machine: Machine) -> None:
    machine.wall = epoch("2026-05-05 01:59:50", BERLIN)
    machine.start(nightly="0 2 * * *")
    machine.run(20)
    machine.jumps.clear()
    machine.wall -= 240
    machine.run(3600)
    assert machine.due("nightly") == ["05 02:00"]
    assert machine.jumps == [-240]


def test_a_slewed_clock_is_no_jump(machine: Machine) -> None:
    machine.start(nightly="0 2 * * *")
    for _ in range(100):
        machine.pass_by(60)
        machine.wall += 0.03
        machine.round()
    assert machine.jumps == []


def test_a_call_that_fails_comes_again(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """One sentence, and the traceback for those who debug; SystemExit too ends nothing."""
    caplog.set_level(logging.INFO, "vmbackup")
    failures: list[BaseException] = [ValueError("no such guest"), SystemExit(3)]

    def call(due: float) -> None:
        machine.calls.append(("bad", due, machine.wall))
        if failures:
            raise failures.pop(0)

    machine.clockwork.set({"bad": Entry("@hourly", UTC, call), "good": machine.entry("good", "@hourly")})
    machine.clockwork.start()
    machine.run(3 * 3600)
    assert len(machine.due("bad")) == len(machine.due("good")) == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"schedule=bad due={MONDAY + 3600:.0f} failed: ValueError: no such guest",
        f"schedule=bad due={MONDAY + 7200:.0f} failed: SystemExit: 3",
    ]
    caplog.clear()
    caplog.set_level(logging.DEBUG, "vmbackup")
    failures.append(ValueError("again"))
    machine.run(3600)
    assert [record.exc_info is not None for record in caplog.records] == [False, True]


def test_the_clockwork_outlives_its_own_failures(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Of a listener, and of a round: the thread goes on, and what is due is called."""
    machine.start(hourly="@hourly")
    machine.clockwork._jumped = lambda _: 1 / 0
    machine.wall += 3600
    machine.run(60)
    assert machine.due("hourly") == ["04 13:00"]
    assert "the clockwork failed, and goes on: ZeroDivisionError: division by zero" in caplog.text
    stores, machine.clockwork._scheduler._jobstores = machine.clockwork._scheduler._jobstores, None
    assert machine.round() == HEARTBEAT
    machine.clockwork._scheduler._jobstores = stores
    machine.run(3600)
    assert machine.due("hourly") == ["04 13:00", "04 14:00"]


def test_a_call_that_hangs_skips_its_own_firings_only(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    hanging: list[Callable[[], None]] = []
    machine.spawn = hanging.append
    machine.start(slow="@hourly")
    machine.run(3600)
    machine.spawn = lambda run: run()
    machine.set(slow="@hourly", good="@hourly")
    machine.run(2 * 3600)
    assert machine.due("slow") == []
    assert len(machine.due("good")) == 2
    assert machine.clockwork.overruns == {"slow": 2}
    assert caplog.messages == ["schedule=slow skipped: its former call goes on"] * 2
    hanging.pop()()
    machine.run(3600)
    assert machine.due("slow") == ["04 13:00", "04 16:00"]


def test_no_thread_to_be_had(machine: Machine) -> None:
    """The firing is lost, and the next one comes."""

    def fail(_run: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    machine.start(hourly="@hourly")
    machine.spawn = fail
    machine.run(3600)
    machine.spawn = lambda run: run()
    machine.run(3600)
    assert machine.due("hourly") == ["04 14:00"]


def test_a_reload_changes_what_differs(machine: Machine) -> None:
    machine.start(same="*/7 * * * *", changed="0 2 * * *", gone="30 12 * * *")
    machine.run(60)
    machine.set(same="*/7 * * * *", changed="0 3 * * *", new="0 4 * * *")
    assert machine.clockwork.next("same") == epoch("2026-05-04 12:07", BERLIN)
    assert machine.clockwork.next("changed") == epoch("2026-05-05 03:00", BERLIN)
    assert machine.clockwork.next("new") == epoch("2026-05-05 04:00", BERLIN)
    assert machine.clockwork.next("gone") is None
    machine.run(86400)
    assert machine.due("gone") == []
    assert machine.due("changed") == ["05 03:00"]
    assert machine.due("new") == ["05 04:00"]


def test_a_reload_touches_no_entry_that_stays(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.start(same="*/7 * * * *")
    touched: list[object] = []
    monkeypatch.setattr(machine.clockwork._scheduler, "add_job", lambda *_, **__: touched.append(1))
    machine.set(same="*/7 * * * *")
    assert touched == []
    machine.clockwork.set({"same": machine.entry("same", "*/7 * * * *", UTC)})
    assert touched == [1]


def test_a_reload_loses_nothing_that_is_due(machine: Machine) -> None:
    """Neither an unchanged entry, nor one with another zone object, schedule or call, comes due just then in vain."""
    machine.start(same="0 13 * * *", changed="0 13 * * *", zone="0 13 * * *")
    machine.round()
    machine.pass_by(3600)
    entries = {
        "same": machine.entry("renewed", "0 13 * * *"),
        "changed": machine.entry("changed", "0 18 * * *"),
        "zone": machine.entry("zone", "0 13 * * *", ZoneInfo.no_cache("Europe/Berlin")),
    }
    machine.clockwork.set(entries)
    machine.round()
    assert sorted((name, due) for name, due, _ in machine.calls) == [
        ("changed", MONDAY + 3600), ("renewed", MONDAY + 3600), ("zone", MONDAY + 3600),
    ]  # fmt: skip
    assert machine.clockwork.next("changed") == MONDAY + 6 * 3600


def test_an_entry_that_is_removed_as_it_comes_due(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """It is not called, and that is no failure."""
    started: list[Callable[[], None]] = []
    machine.spawn = started.append
    machine.start(gone="@hourly")
    machine.run(3600)
    machine.set()
    started.pop()()
    assert machine.calls == []
    assert caplog.messages == []


def test_the_zone_of_the_machine_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """APScheduler would, and fail on a machine whose files contradict each other."""

    def fail() -> None:
        raise LookupError("multiple conflicting time zone configurations")

    monkeypatch.setattr(base, "get_localzone", fail)
    clockwork = Clockwork()
    clockwork.start()
    assert clockwork.shutdown(within=5)


def test_nothing_is_called_after_the_shutdown(machine: Machine) -> None:
    machine.start(hourly="@hourly")
    assert machine.clockwork.shutdown()
    assert machine.clockwork.shutdown()
    machine.set(hourly="@hourly", more="@hourly")
    machine.run(7200)
    assert machine.calls == []


def test_real_threads_and_clocks() -> None:
    """Each call with the time it was due; one that reloads from inside is no deadlock."""
    calls: list[float] = []
    enough = threading.Event()
    clockwork = Clockwork()

    def call(due: float) -> None:
        calls.append(due)
        clockwork.set({"a": Entry("@every 1s", UTC, call), f"b{len(calls)}": Entry("@hourly", UTC, call)})
        if len(calls) >= 2:
            enough.set()

    before = time.time()
    clockwork.set({"a": Entry("@every 1s", UTC, call)})
    clockwork.start()
    assert enough.wait(60)
    assert clockwork.shutdown(within=30)
    assert all(due % 1 == 0 and due > before for due in calls)
    assert calls == sorted(set(calls))
    assert clockwork.beat >= time.monotonic() - 60


def test_a_shutdown_waits_no_longer_than_it_may() -> None:
    hanging, release = threading.Event(), threading.Event()

    def hang(_due: float) -> None:
        hanging.set()
        release.wait()

    clockwork = Clockwork()
    clockwork.set({"a": Entry("@every 1s", UTC, hang)})
    clockwork.start()
    assert hanging.wait(60)
    assert not clockwork.shutdown()
    assert not clockwork.shutdown(within=0.1)
    release.set()
    assert clockwork.shutdown(within=60)


def test_a_call_that_hangs_does_not_keep_the_process() -> None:
    """APScheduler's own pool is joined as the interpreter ends: such a service would wait for systemd's SIGKILL."""
    script = (
        "import threading\nfrom datetime import UTC\nfrom vmbackup.daemon.clockwork import Clockwork, Entry\n"
        "hanging = threading.Event()\n"
        "def hang(due):\n    hanging.set()\n    threading.Event().wait()\n"
        "clockwork = Clockwork()\nclockwork.set({'a': Entry('@every 1s', UTC, hang)})\nclockwork.start()\n"
        "assert hanging.wait(60)\nassert not clockwork.shutdown()\nprint('done')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
