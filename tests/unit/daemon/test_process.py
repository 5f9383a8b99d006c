"""Runs as real processes: what is given to them, how they end, and that nothing of them is left."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.machine import kill, lives, nothing_left
from tests.unit.daemon.rig import backup
from vmbackup.daemon import child
from vmbackup.daemon.process import ProcessRunner
from vmbackup.daemon.work import Outcome, Progress, Run, Status
from vmbackup.errors import NotFoundError

CHILDREN = (sys.executable, "-IS", str(Path(__file__).with_name("children.py")))
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
CONFIG = b'[libvirt]\nuri = "test:///default"\n'


class Waiting:
    """A Report that a test waits for."""

    def __init__(self) -> None:
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.told: queue.Queue[Progress] = queue.Queue()
        self.pids: list[int] = []
        self.threads: set[str] = set()

    def progress(self, run_id: str, progress: Progress) -> None:
        self.told.put(progress)

    def pid(self, run_id: str, pid: int) -> None:
        self.pids.append(pid)

    def ended(self, run_id: str, outcome: Outcome) -> None:
        self.threads.add(threading.current_thread().name)
        self.outcomes.put(outcome)

    def ready(self) -> Progress:
        """The child says that it is where the test wants it."""
        while (told := self.told.get(timeout=60)).note != "ready":
            pass
        return told


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    with nothing_left():
        yield


def runner(*commands: tuple[str, ...]) -> ProcessRunner:
    return ProcessRunner(lambda request: list(commands), lambda: CONFIG, CHILDREN)


def started(*commands: tuple[str, ...]) -> tuple[ProcessRunner, Waiting, Run]:
    run, report, made = Run("r1", backup("web01"), time.time()), Waiting(), runner(*commands)
    made.start(run, report)
    return made, report, run


def outcome_of(*commands: tuple[str, ...]) -> Outcome:
    return started(*commands)[1].outcomes.get(timeout=60)


def eventually(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not what() and time.monotonic() < end:
        time.sleep(0.01)
    return what()


def test_a_good_run() -> None:
    """Its document is the outcome's, and it read the configuration in force."""
    _, report, _ = started(("ok",))
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.exit_code, outcome.error) == (Status.SUCCESS, 0, None)
    assert outcome.document["config"] == CONFIG.decode()
    last = list(report.told.queue)[-1]
    assert (last.task, last.done_bytes, last.total_bytes) == ("web01", 100, 100)
    assert len(report.pids) == 1
    assert report.threads == {"run-r1"}


def test_what_a_process_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two descriptors beside the three; nothing of systemd's; a session and group of its own; no input."""
    for name in ("JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    seen = outcome_of(("environment",)).document
    listed = {int(fd) for fd, target in seen["fds"].items() if not target.startswith("/proc/")}
    assert listed == {0, 1, 2, *seen["given"]}
    assert seen["stdin"] == ""
    assert seen["pid"] == seen["session"] == seen["group"]
    environment = seen["environment"]
    assert environment["NO_COLOR"] == "1"
    assert environment["CREDENTIALS_DIRECTORY"] == "/run/credentials/x"
    assert not {"JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(environment)


def test_nobody_changes_the_configuration_of_a_run() -> None:
    assert "not permitted" in outcome_of(("change-config",)).document["refused"]


def test_several_commands() -> None:
    """One after the other; the last one's document stays."""
    outcome = outcome_of(("tell", "0", "{}", ""), ("ok",))
    assert outcome.status is Status.SUCCESS
    assert outcome.document["points"]


def test_a_failed_command_is_the_last() -> None:
    _, report, _ = started(("ok",), ("tell", "4", '{"damaged": [1, 2]}', ""), ("ok",))
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, 4)
    assert outcome.error == "2 objects are damaged"
    assert len(report.pids) == 2


def test_a_warning_of_one_command_stays() -> None:
    assert outcome_of(("tell", "3", '{"points": [{}]}', ""), ("ok",)).status is Status.WARNING


def test_a_failure_with_no_document() -> None:
    """The last line on standard error is what there is to tell."""
    outcome = outcome_of(("tell", "1", "", "Traceback\n  line\nOops: all broke\n\n"))
    assert outcome.error == "the run's process ended with exit code 1: Oops: all broke"


def test_a_crash() -> None:
    outcome = outcome_of(("crash",))
    assert (outcome.status, outcome.exit_code) == (Status.FAILED, None)
    assert outcome.error == "the run's process was killed by signal 11"
    assert outcome.retriable


def test_a_soft_cancel() -> None:
    made, report, run = started(("hang",), ("ok",))
    report.ready()
    made.cancel(run.id, hard=False)
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.exit_code) == (Status.CANCELLED, 130)
    assert len(report.pids) == 1
    made.cancel(run.id, hard=True)
    made.cancel("nothing", hard=True)


def test_a_soft_cancel_reaches_the_process_alone() -> None:
    """What it started to help it stays until it is needed no more."""
    made, report, run = started(("helped",))
    report.ready()
    made.cancel(run.id, hard=False)
    assert report.outcomes.get(timeout=60).exit_code == 130
    assert list(report.told.queue)[-1].task == "None"


def test_nothing_more_begins_after_a_cancel() -> None:
    """Although the first command went well all the same."""
    made, report, run = started(("stubborn", "0.5"), ("ok",))
    report.ready()
    made.cancel(run.id, hard=False)
    assert report.outcomes.get(timeout=60).status is Status.CANCELLED
    assert len(report.pids) == 1


def test_an_interrupt_that_was_not_asked_for() -> None:
    """Somebody else's kill: it has failed, and is tried again."""
    _, report, _ = started(("hang",))
    report.ready()
    os.kill(report.pids[0], signal.SIGTERM)
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.error, outcome.retriable) == (Status.FAILED, "interrupted", True)


def test_a_process_that_ignores_sigterm() -> None:
    made, report, run = started(("deaf",))
    report.ready()
    made.cancel(run.id, hard=False)
    with pytest.raises(queue.Empty):
        report.outcomes.get(timeout=0.3)
    made.cancel(run.id, hard=True)
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.exit_code) == (Status.CANCELLED, None)
    assert outcome.error == "the run's process was killed by signal 9"


def test_a_cancel_as_it_starts() -> None:
    """Before there is a process, or while it is being started: it is not lost."""
    for hard in (False, True):
        made, report, run = started(("sleep", "3600"), ("ok",))
        made.cancel(run.id, hard=hard)
        assert report.outcomes.get(timeout=60).status is Status.CANCELLED
        assert len(report.pids) <= 1


def test_a_process_that_closes_its_pipes_and_lives_on() -> None:
    """It is waited for, and can be ended."""
    assert outcome_of(("silent", "0.3")).status is Status.SUCCESS
    made, report, run = started(("silent", "3600"))
    report.ready()
    time.sleep(0.2)
    made.cancel(run.id, hard=False)
    assert report.outcomes.get(timeout=60).status is Status.CANCELLED


def test_a_flood(caplog: pytest.LogCaptureFixture) -> None:
    """All is read, little is kept; the last words are."""
    caplog.set_level(logging.INFO, "vmbackup.daemon.run")
    outcome = outcome_of(("flood", "70"))
    assert outcome.error == "the run's process ended with exit code 1: the last words"
    assert outcome.document == {}
    assert len(caplog.records) < 300
    assert max(len(record.getMessage()) for record in caplog.records) < 5000
    assert any("more lines were left out" in record.getMessage() for record in caplog.records)


def test_what_is_left_in_its_group_ends_with_it() -> None:
    """Also where it holds the pipes: nobody waits for it."""
    outcome = outcome_of(("leave", "group"))
    assert outcome.status is Status.SUCCESS
    assert eventually(lambda: not lives(outcome.document["left"]))


def test_what_leads_a_session_of_its_own_lives_on() -> None:
    """As the watchdogs that thaw guests do; that it holds the pipes keeps nobody waiting."""
    pid = outcome_of(("leave", "session")).document["left"]
    assert lives(pid)
    kill(pid)


def test_killing_a_run_spares_what_leads_a_session_of_its_own() -> None:
    made, report, run = started(("leave-and-hang",))
    watchdog = int(report.ready().task)
    made.cancel(run.id, hard=True)
    assert report.outcomes.get(timeout=60).status is Status.CANCELLED
    assert lives(watchdog)
    kill(watchdog)


def test_killing_a_run_spares_the_watchdog_of_its_guest() -> None:
    """The real one: its run was killed while the guest was frozen, so it goes on and thaws."""
    pytest.importorskip("libvirt")
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # so that its end can be told apart
    try:
        program = (sys.executable, "-P", str(Path(__file__).with_name("freezing.py")))
        made, report = ProcessRunner(lambda request: [("run",)], lambda: CONFIG, program), Waiting()
        made.start(Run("r1", backup("web01"), time.time()), report)
        watchdog = int(report.ready().task)
        made.cancel("r1", hard=True)
        assert report.outcomes.get(timeout=60).error == "the run's process was killed by signal 9"
        time.sleep(0.5)
        found, status = os.waitpid(watchdog, os.WNOHANG)
        assert found == 0 or status == 0, "it was killed too"
        if not found:
            kill(watchdog)
            os.waitpid(watchdog, 0)
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def test_all_that_was_written_before_the_end_counts() -> None:
    """As much as a pipe can hold, of a process that has long ended when it is read."""
    program = "import fcntl, os; os.write(1, b'x' * fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20))"
    pieces: list[bytes] = []

    def read(data: bytes) -> None:
        if not pieces:
            time.sleep(1)
        pieces.append(data)

    made = child.Child((sys.executable, "-ISc", program), {})
    assert made.wait(read, pieces.append, {}, lambda: None) == 0
    assert len(b"".join(pieces)) == 1 << 20


def test_a_pipe_that_never_ends_is_left() -> None:
    """Whatever another process goes on to write into it."""
    pieces: list[bytes] = []
    with open("/dev/zero", "rb") as endless:
        child._drain(endless.fileno(), pieces.append)
    assert len(pieces) == 16


def test_a_noisy_heir_keeps_nobody_waiting() -> None:
    outcome = outcome_of(("chatter",))
    assert outcome.status is Status.SUCCESS
    kill(outcome.document["left"])


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each line with the run and its domain, at the level that it gives itself."""
    caplog.set_level(logging.DEBUG, "vmbackup.daemon.run")
    dated = "2026-11-28 10:00:00,123 WARNING vmbackup.engine: slow store"
    lines = f"<3>disk gone\n<7>detail\n{dated}\nwarning: half done\nplain \x1b[31mred\n\nno end"
    outcome_of(("tell", "0", "", lines))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "r1 web01: disk gone"),
        ("DEBUG", "r1 web01: detail"),
        ("WARNING", "r1 web01: vmbackup.engine: slow store"),
        ("WARNING", "r1 web01: warning: half done"),
        ("INFO", "r1 web01: plain ?[31mred"),
        ("INFO", "r1 web01: no end"),
    ]
    assert {record.name for record in caplog.records} == {"vmbackup.daemon.run"}


def fail(error: Exception) -> Callable[..., Any]:
    def do(*_: object) -> Any:
        raise error

    return do


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [(NotFoundError("there is no job"), "there is no job", 5), (ValueError("a bug"), "ValueError: a bug", None)],
)
def test_a_run_that_cannot_begin(error: Exception, told: str, code: int | None) -> None:
    report = Waiting()
    ProcessRunner(fail(error), lambda: CONFIG, CHILDREN).start(Run("r1", backup("web01"), 0), report)
    outcome = report.outcomes.get(timeout=60)
    assert (outcome.status, outcome.error, outcome.exit_code) == (Status.FAILED, told, code)


def test_no_file_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they run out, the run has failed, and those that it had are closed."""
    for name in ("memfd_create", "pipe", "pidfd_open"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail(OSError(24, "Too many open files")))
            outcome = outcome_of(("sleep", "3600"))
        assert outcome.error == "it could not be started: Too many open files", name


def test_no_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", fail(RuntimeError("can't start new thread")))
    with pytest.raises(RuntimeError):
        started(("ok",))


def test_the_kernel_ends_it_only_with_the_service() -> None:
    """A child that asked to be told of its parent's death is told too early where another thread started it."""
    program = (
        "import ctypes, time; ctypes.CDLL(None).prctl(1, 15); time.sleep(1); print('{}')"
    )
    report = Waiting()
    made = ProcessRunner(lambda _: [("ok",)], lambda: CONFIG, (sys.executable, "-ISc", program))
    made.start(Run("r1", backup("web01"), time.time()), report)
    assert report.outcomes.get(timeout=60).exit_code == 0
