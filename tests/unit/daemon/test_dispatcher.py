"""The dispatcher: from requests to runs and their ends, by a clock that is set by hand."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from tests.unit.daemon.rig import FAILED, INTERRUPTED, KILLED, NOON, SUCCESS, Rig, backup, copy
from vmbackup.daemon.active import GRACE
from vmbackup.daemon.queue import Limits
from vmbackup.daemon.work import Outcome, Progress, Run, Skip, Status, Trigger


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_request_becomes_a_run_and_ends(rig: Rig) -> None:
    a = backup("a")
    rig.submit(a)
    assert rig.waiting() == [a.id]
    assert rig.tick() is None
    [run] = rig.runner.started
    assert (run.id, run.request, run.started) == (a.id, a, NOON)
    assert rig.notes.started_ == [run]
    rig.clock.advance(60)
    rig.end(a)
    assert rig.running() == []
    assert rig.notes.ended_ == [replace(run, finished=NOON + 60, outcome=SUCCESS)]
    assert rig.notes.retries == []


def test_the_listener_hears_of_a_start_before_there_is_a_process(rig: Rig) -> None:
    """So that what a dead service left can be found out."""
    heard: list[int] = []
    rig.runner.on_start = lambda run: heard.append(len(rig.notes.started_))
    rig.submit(backup("a"))
    rig.tick()
    assert heard == [1]


def test_the_next_run_starts_as_one_ends(rig: Rig) -> None:
    a, b, c = backup("a"), backup("b"), backup("c")
    rig.submit(a, b, c)
    rig.tick()
    assert rig.running() == [a.id, b.id]
    rig.end(b)
    assert rig.running() == [a.id, c.id]


def test_progress_is_told_once_a_tick(rig: Rig) -> None:
    a = backup("a")
    rig.submit(a)
    rig.tick()
    for done in range(5):
        rig.dispatcher.progress(a.id, Progress("a", done))
    rig.dispatcher.pid(a.id, 4711)
    rig.dispatcher.progress("another", Progress("?", 1))
    rig.tick()
    [run] = rig.notes.progressed_
    assert (run.pid, run.progress) == (4711, Progress("a", 4))
    assert rig.dispatcher.runs() == [run]


def test_ticks_are_asked_for(rig: Rig) -> None:
    """`wake` is set by all that a tick must see; what lies ahead is the tick's answer."""
    later = backup("a", not_before=NOON + 30, deadline=100)
    wake = rig.dispatcher.wake
    rig.submit(later)
    assert wake.is_set()
    assert rig.tick() == NOON + 30
    assert rig.tick(30) == NOON + 130
    for stir in (
        lambda: rig.dispatcher.progress(later.id, Progress()),
        lambda: rig.dispatcher.pid(later.id, 1),
        lambda: rig.dispatcher.cancel(later.id, "why not"),
        lambda: rig.dispatcher.ended(later.id, SUCCESS),
    ):
        wake.clear()
        stir()
        assert wake.is_set()


def test_skips_are_told_to_both(rig: Rig) -> None:
    a, again, once_more = backup("a"), backup("a"), backup("a", trigger=Trigger.MANUAL)
    rig.submit(a)
    assert rig.dispatcher.submit(again) is Skip.QUEUED
    rig.tick()
    assert rig.dispatcher.submit(once_more) is Skip.RUNNING
    rig.tick()
    assert rig.notes.skipped_ == [(again, Skip.QUEUED), (once_more, Skip.RUNNING)]


def test_back_off(rig: Rig) -> None:
    """Each wait is twice the one before, and the attempts are counted."""
    first = backup("a", retries=3, retry_after=100, firing="f")
    rig.submit(first)
    rig.tick()
    attempt, waits = first, []
    while True:
        rig.end(attempt, FAILED)
        if not rig.waiting():
            break
        [attempt] = rig.dispatcher.waiting()
        waits.append(attempt.not_before - rig.clock())
        assert rig.tick(waits[-1] - 1) == attempt.not_before
        assert rig.running() == []
        rig.tick(1)
        assert rig.running() == [attempt.id]
    assert waits == [100, 200, 400]
    assert [run.request.attempt for run in rig.notes.ended_] == [1, 2, 3, 4]
    assert {run.request.firing for run in rig.notes.ended_} == {"f"}
    assert len({run.id for run in rig.notes.ended_}) == 4
    assert [one.trigger for one in rig.notes.retries] == [Trigger.RETRY] * 3


@pytest.mark.parametrize(("attempt", "retry_after", "wait"), [(60, 300, 86400), (2, 100_000, 100_000)])
def test_no_wait_is_absurd(rig: Rig, attempt: int, retry_after: float, wait: float) -> None:
    """A day at most, or what the job asks for."""
    a = backup("a", retries=100, retry_after=retry_after, attempt=attempt)
    rig.submit(a)
    rig.tick()
    rig.end(a, FAILED)
    assert rig.notes.retries[0].not_before == NOON + wait


@pytest.mark.parametrize(
    "outcome",
    [SUCCESS, Outcome(Status.WARNING, 3), INTERRUPTED, *(Outcome(Status.FAILED, code) for code in (2, 5, 6))],
)
def test_what_is_not_tried_again(rig: Rig, outcome: Outcome) -> None:
    a = backup("a", retries=5)
    rig.submit(a)
    rig.tick()
    rig.end(a, outcome)
    assert (rig.waiting(), rig.notes.retries) == ([], [])


def test_a_newer_request_takes_the_place_of_a_retry(rig: Rig) -> None:
    """The next firing comes first: the retry would only be late for it."""
    a, newer = backup("a", retries=5, retry_after=3600), backup("a", due=NOON + 900)
    rig.submit(a)
    rig.tick()
    rig.end(a, FAILED)
    [retry] = rig.notes.retries
    rig.submit(newer)
    rig.tick(900)
    assert rig.running() == [newer.id]
    assert rig.notes.dropped_ == [(retry, "a newer request took its place")]


def test_a_deadline_is_kept(rig: Rig) -> None:
    """Softly at first, by force after the grace; it counts as failed, and is tried again."""
    a = backup("a", deadline=600, retries=1)
    rig.submit(a)
    rig.tick()
    rig.tick(599)
    assert rig.runner.cancelled == []
    assert rig.tick(1) == NOON + 600 + GRACE
    assert rig.runner.cancelled == [(a.id, False)]
    assert rig.dispatcher.runs()[0].cancelling == "its deadline is over"
    rig.tick(GRACE - 1)
    assert len(rig.runner.cancelled) == 1
    assert rig.tick(1) is None
    assert rig.runner.cancelled[1:] == [(a.id, True)]
    rig.tick(100)
    assert len(rig.runner.cancelled) == 2
    rig.end(a, KILLED)
    [run] = rig.notes.ended_
    assert run.outcome
    assert (run.outcome.status, run.outcome.kind) == (Status.FAILED, "deadline")
    assert run.outcome.error == "it was ended at its deadline, after 10 min 00 s"
    assert len(rig.notes.retries) == 1


def test_a_clock_that_is_set_ends_no_run(rig: Rig) -> None:
    """A deadline is time that passes, not the time of day."""
    rig.submit(backup("a", deadline=600))
    rig.tick()
    rig.clock.wall += 86400
    rig.tick()
    assert rig.runner.cancelled == []
    rig.clock.wall -= 2 * 86400
    rig.tick(600)
    assert len(rig.runner.cancelled) == 1


def test_success_at_the_last_moment_is_success(rig: Rig) -> None:
    a = backup("a", deadline=600)
    rig.submit(a)
    rig.tick()
    rig.tick(601)
    rig.end(a, SUCCESS)
    assert rig.notes.ended_[0].outcome == SUCCESS


def test_cancel_of_a_run(rig: Rig) -> None:
    """What the operator said is what is told; a failure on the way out does not bring it back."""
    a = backup("a", retries=5, deadline=5)
    rig.submit(a)
    rig.tick()
    assert rig.dispatcher.cancel(a.id, "cancelled by root")
    assert rig.runner.cancelled == []
    rig.tick()
    rig.tick(10)
    assert rig.runner.cancelled == [(a.id, False)]
    rig.end(a, FAILED)
    [run] = rig.notes.ended_
    assert run.outcome == Outcome(Status.CANCELLED, 1, "cancelled by root", kind="interrupted")
    assert rig.notes.retries == []


def test_cancel_of_what_waits(rig: Rig) -> None:
    a = backup("a", not_before=NOON + 60)
    rig.submit(a)
    assert rig.dispatcher.cancel(a.id, "cancelled by root")
    rig.tick(60)
    assert rig.notes.dropped_ == [(a, "cancelled by root")]
    assert rig.runner.started == []
    assert not rig.dispatcher.cancel(a.id, "again")
    assert not rig.dispatcher.cancel("nothing", "")


def test_what_cannot_be_started_has_failed(rig: Rig) -> None:
    def refuse(run: Run) -> None:
        raise RuntimeError("can't start new thread")

    rig.runner.on_start = refuse
    a = backup("a", retries=1)
    rig.submit(a)
    rig.tick()
    assert rig.dispatcher.wake.is_set()
    rig.tick()
    [run] = rig.notes.ended_
    assert run.outcome
    assert run.outcome.error == "it could not be started: can't start new thread"
    assert len(rig.notes.retries) == 1


def test_a_listener_at_fault_stops_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def fail(run: Run) -> None:
        raise ValueError("a bug")

    rig.notes.on_ended = fail
    a, b, c = backup("a"), backup("b"), backup("c")
    rig.submit(a, b, c)
    rig.tick()
    rig.end(a)
    assert rig.running() == [b.id, c.id]
    assert "a fault in the service itself" in caplog.text


def test_a_listener_may_ask_for_more(rig: Rig) -> None:
    """As the service does with copies after a backup."""
    a, follow = backup("a"), copy("a", trigger=Trigger.FOLLOW)
    rig.notes.on_ended = lambda run: rig.submit(follow)
    rig.submit(a)
    rig.tick()
    rig.runner.end(a.id)
    rig.dispatcher.wake.clear()
    rig.tick()
    assert rig.dispatcher.wake.is_set()
    rig.tick()
    assert rig.running() == [follow.id]


def test_an_end_told_twice_is_one_end(rig: Rig) -> None:
    a = backup("a", retries=1)
    rig.submit(a)
    rig.tick()
    rig.runner.end(a.id, FAILED)
    rig.end(a, FAILED)
    assert len(rig.notes.ended_) == len(rig.notes.retries) == 1


def test_new_limits(rig: Rig) -> None:
    rig.submit(*(backup(name) for name in "abcd"))
    rig.tick()
    rig.dispatcher.set_limits(Limits(4))
    rig.tick()
    assert len(rig.running()) == 4


def test_stop(rig: Rig) -> None:
    """All are asked at once, nothing starts any more, what waits is told of."""
    a, b, c, late = backup("a"), backup("b", retries=3), backup("c"), backup("d")
    rig.submit(a, b, c)
    rig.tick()
    rig.runner.on_cancel = lambda run_id, hard: rig.runner.end(run_id, INTERRUPTED)
    assert rig.dispatcher.stop(50)
    assert sorted(rig.runner.cancelled) == sorted([(a.id, False), (b.id, False)])
    assert rig.notes.skipped_ == [(c, Skip.STOPPING)]
    assert [run.outcome.status for run in rig.notes.ended_ if run.outcome] == [Status.CANCELLED] * 2
    assert rig.dispatcher.submit(late) is Skip.STOPPING
    rig.tick()
    assert rig.notes.skipped_[1:] == [(late, Skip.STOPPING)]
    assert rig.running() == rig.waiting() == rig.notes.retries == []
    assert rig.clock() == NOON


@pytest.mark.parametrize(("within", "hard_after"), [(50, 45), (300, 45), (8, 6)])
def test_stop_kills_what_does_not_listen(rig: Rig, within: float, hard_after: float) -> None:
    """After the grace, or as long before its time is over as is needed."""
    a, b = backup("a"), backup("b")
    rig.submit(a, b)
    rig.tick()

    def obey(run_id: str, hard: bool) -> None:
        if hard or run_id == b.id:
            rig.runner.end(run_id, KILLED if hard else INTERRUPTED)

    rig.runner.on_cancel = obey
    assert not rig.dispatcher.stop(within)
    assert rig.clock() == NOON + hard_after
    assert rig.runner.cancelled[-1] == (a.id, True)
    assert rig.running() == []


def test_stop_does_not_wait_for_ever(rig: Rig) -> None:
    """A process that hangs in the kernel is beyond any signal."""
    rig.submit(backup("a"))
    rig.tick()
    assert not rig.dispatcher.stop(60)
    assert rig.clock() == NOON + 60
    assert len(rig.running()) == 1


def test_stop_of_an_idle_service(rig: Rig) -> None:
    assert rig.dispatcher.stop(60)
    assert rig.clock() == NOON


def test_a_run_that_is_being_cancelled_is_stopped_too(rig: Rig) -> None:
    """Its reason stays, its time gets shorter."""
    a = backup("a")
    rig.submit(a)
    rig.tick()
    rig.dispatcher.cancel(a.id, "cancelled by root")
    rig.tick()
    rig.runner.on_cancel = lambda run_id, hard: rig.runner.end(run_id, KILLED)
    assert not rig.dispatcher.stop(20)
    assert rig.clock() == NOON + 15
    assert rig.notes.ended_[0].outcome
    assert rig.notes.ended_[0].outcome.error == "cancelled by root"


def test_many_threads() -> None:
    """Requests, cancels and ends from everywhere, ticks from two threads: each request comes to one end."""
    rig = Rig(Limits(3))
    rig.runner.on_start = lambda run: rig.runner.end(run.id)
    requests = [backup(f"{number}-{i}") for number in range(4) for i in range(100)]
    done = threading.Event()

    def tick() -> None:
        while not done.is_set():
            rig.dispatcher.tick()

    def submit(share: int) -> None:
        for one in requests[share::4]:
            rig.dispatcher.submit(one)
            rig.dispatcher.submit(replace(one, id=f"{one.id}-again"))
            if share % 2:
                rig.dispatcher.cancel(one.id, "enough")

    tickers = [threading.Thread(target=tick) for _ in range(2)]
    submitters = [threading.Thread(target=submit, args=(share,)) for share in range(4)]
    for thread in (*tickers, *submitters):
        thread.start()
    for thread in submitters:
        thread.join()
    assert rig.dispatcher.stop(60)
    done.set()
    for thread in tickers:
        thread.join()
    rig.dispatcher.tick()
    ends = [run.id for run in rig.notes.ended_]
    ends += [one.id for one, _ in (*rig.notes.skipped_, *rig.notes.dropped_)]
    assert sorted(ends) == sorted([*(r.id for r in requests), *(f"{r.id}-again" for r in requests)])
