"""24 hours of 200 domains, by a clock and a runner of the test's own: what fails, hangs and is cancelled is drawn.

The day is a list of things to come; between them nothing happens, so that a day takes seconds.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.unit.daemon.rig import FAILED, INTERRUPTED, KILLED, SUCCESS, Rig, request
from vmbackup.daemon.active import GRACE
from vmbackup.daemon.queue import Limits
from vmbackup.daemon.work import Kind, Outcome, Request, Run, Skip, Status, Trigger, Work

DOMAINS = 200
DAY = 86400.0
MAX_AGE = 5 * 3600.0  # of all domains
EVERY = 4 * 3600.0  # each is backed up, in a window of an hour
DEADLINE = 1800.0
REPOSITORIES = ("local", "offsite", "archive")
LIMITS = Limits(8, {"offsite": 3, "archive": 2})


@dataclass(frozen=True)
class Chances:
    """How often runs go wrong, and how long they take (seconds, mean)."""

    fail: float = 0.0
    hang: float = 0.0
    deaf: float = 0.0  # of those that hang
    cancel: float = 0.0
    backup: float = 300.0
    copy: float = 200.0


CALM = Chances()
ROUGH = Chances(fail=0.08, hang=0.02, deaf=0.5, cancel=0.01)
TOO_MUCH = Chances(fail=0.08, hang=0.01, cancel=0.01, backup=900.0)


class Day:
    """The world around a dispatcher: schedules, operators, processes."""

    def __init__(self, seed: int, chances: Chances) -> None:
        self.chance, self.chances = random.Random(seed), chances
        self.rig = Rig(LIMITS)
        self.clock, self.dispatcher = self.rig.clock, self.rig.dispatcher
        self.rig.runner.on_start, self.rig.runner.on_cancel = self.start, self.cancelled
        self.rig.notes.on_ended = self.follow
        self.to_come: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.submitted: list[Request] = []
        self.now_running: dict[str, Work] = {}
        self.last_success = {f"vm{i:03}": self.clock() - EVERY + EVERY * i / DOMAINS for i in range(DOMAINS)}
        self.oldest: Counter[str] = Counter()  # seconds that a domain's newest restore point was old at most
        self.troubled: dict[str, float] = {}  # when a run of the domain last went wrong
        self.deaf: set[str] = set()
        self.busiest = 0
        for i, domain in enumerate(self.last_success):
            self.at(EVERY * i / DOMAINS, lambda domain=domain, i=i: self.schedule(domain, i))  # type: ignore[misc]
        for name in REPOSITORIES:
            self.at(self.chance.uniform(0, DAY), lambda name=name: self.maintain(name))  # type: ignore[misc]

    def at(self, after: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.to_come, (self.clock.monotonic() + after, next(self.numbers), what))

    def submit(self, work: Work, trigger: Trigger, promise: float | None = None, wait: float = 0.0) -> None:
        now = self.clock()
        one = request(work, trigger, now, now + wait, promise=promise, deadline=DEADLINE, retries=2, retry_after=120.0)
        self.submitted.append(one)
        self.dispatcher.submit(one)

    def schedule(self, domain: str, i: int) -> None:
        """Now and every so often; with the window that the domain's offset lies in."""
        work = Work(Kind.BACKUP, REPOSITORIES[i % 10 // 7 + i % 10 // 9], f"job{i % 3}", domain)
        self.submit(work, Trigger.SCHEDULE, self.last_success[domain] + MAX_AGE, self.chance.uniform(0, 60))
        if self.chance.random() < 0.02:
            self.at(self.chance.uniform(0, EVERY), lambda: self.submit(work, Trigger.MANUAL))
        self.at(EVERY, lambda: self.schedule(domain, i))

    def maintain(self, name: str) -> None:
        self.submit(Work(Kind.PRUNE, name), Trigger.SCHEDULE)
        self.submit(Work(Kind.VERIFY, name), Trigger.SCHEDULE)

    def start(self, run: Run) -> None:
        """A process that ends some time, or not."""
        work, chances = run.request.work, self.chances
        assert all(work.keys.isdisjoint(other.keys) for other in self.now_running.values()), f"{work} twice"
        self.now_running[run.id] = work
        self.check_limits()
        if self.chance.random() < chances.hang:
            if self.chance.random() < chances.deaf:
                self.deaf.add(run.id)
            return
        mean = chances.copy if work.kind is Kind.COPY else chances.backup
        outcome = FAILED if self.chance.random() < chances.fail else SUCCESS
        seconds = self.chance.triangular(0.2 * mean, 2 * mean, 0.8 * mean)
        self.at(seconds, lambda: self.end(run.id, outcome))
        if self.chance.random() < chances.cancel:
            self.at(self.chance.uniform(0, mean), lambda: self.dispatcher.cancel(run.id, "an operator") and None)

    def check_limits(self) -> None:
        kinds = Counter(work.kind for work in self.now_running.values())
        domains = kinds.total() - kinds[Kind.PRUNE] - kinds[Kind.VERIFY]
        assert domains <= LIMITS.host
        assert kinds[Kind.PRUNE] + kinds[Kind.VERIFY] <= 1
        written = Counter(
            work.target if work.kind is Kind.COPY else work.repository
            for work in self.now_running.values()
            if work.kind in (Kind.BACKUP, Kind.COPY)
        )
        assert all(written[name] <= limit for name, limit in LIMITS.repositories.items())
        self.busiest = max(self.busiest, domains)

    def cancelled(self, run_id: str, hard: bool) -> None:
        """Most heed a signal, within the grace."""
        if hard:
            self.at(0.1, lambda: self.end(run_id, KILLED))
        elif run_id not in self.deaf:
            self.at(self.chance.uniform(0.1, GRACE / 2), lambda: self.end(run_id, INTERRUPTED))

    def end(self, run_id: str, outcome: Outcome) -> None:
        if self.now_running.pop(run_id, None):
            self.rig.runner.end(run_id, outcome)

    def follow(self, run: Run) -> None:
        """A copy after each third backup."""
        work = run.request.work
        assert run.outcome
        assert run.finished
        if work.kind is not Kind.BACKUP or not work.domain:
            return
        if run.outcome.status is not Status.SUCCESS:
            self.troubled[work.domain] = run.finished
            return
        self.note_age(work.domain)
        self.last_success[work.domain] = run.started
        if work.repository == "local" and int(work.domain[2:]) % 3 == 0:
            self.submit(Work(Kind.COPY, "local", work.job, work.domain, "offsite"), Trigger.FOLLOW)

    def note_age(self, domain: str) -> None:
        """How old its newest restore point is; where a run of its own went wrong since, nobody can have promised."""
        last = self.last_success[domain]
        if self.troubled.get(domain, 0.0) < last:
            self.oldest[domain] = max(self.oldest[domain], round(self.clock() - last))

    def live(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.clock.monotonic() + seconds
        while True:
            self.dispatcher.wake.clear()
            then = self.dispatcher.tick()
            if self.dispatcher.wake.is_set():
                continue
            due = self.to_come[0][0]
            if then is not None:  # the time of day is a float of a quarter of a microsecond
                due = min(due, self.clock.monotonic() + max(1e-6, then - self.clock()))
            if due >= end:
                self.clock.advance(max(0.0, end - self.clock.monotonic()))
                return
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            while self.to_come and self.to_come[0][0] <= self.clock.monotonic():
                heapq.heappop(self.to_come)[2]()

    def check_ends(self) -> None:
        """Each request and each retry has come to one end, and no run is lost."""
        notes = self.rig.notes
        ends = Counter(run.id for run in notes.ended_)
        ends.update(one.id for one, _ in (*notes.skipped_, *notes.dropped_))
        assert ends == Counter([*(r.id for r in self.submitted), *(r.id for r in notes.retries)])
        assert self.now_running == {}
        assert [run.id for run in notes.started_] == [run.id for run in self.rig.runner.started]
        assert {run.id for run in notes.started_} == {run.id for run in notes.ended_}
        for run in notes.ended_:
            assert run.finished is not None
            assert run.finished - run.started <= DEADLINE + GRACE + 1

    def finish(self) -> None:
        self.dispatcher._wait = lambda event, seconds: None if event.is_set() else self.pass_time(seconds)
        deaf = self.deaf & set(self.now_running)
        assert self.dispatcher.stop(60) == (not deaf)

    def pass_time(self, seconds: float) -> None:
        """To the next of the things to come, as `stop` waits."""
        due = self.to_come[0][0] - self.clock.monotonic() if self.to_come else seconds
        self.clock.advance(min(max(1e-6, seconds), max(0.0, due)))
        while self.to_come and self.to_come[0][0] <= self.clock.monotonic():
            heapq.heappop(self.to_come)[2]()

    @property
    def statuses(self) -> Counter[str]:
        return Counter(run.outcome.status.value for run in self.rig.notes.ended_ if run.outcome)


def lived(seed: int, chances: Chances) -> Day:
    print(f"seed {seed}")
    day = Day(seed, chances)
    day.live(DAY)
    for domain in day.last_success:
        day.note_age(domain)
    day.finish()
    day.check_ends()
    print(dict(day.statuses), f"busiest {day.busiest}, oldest {max(day.oldest.values()) / 3600:.2f} h")
    return day


def test_a_calm_day() -> None:
    """Nothing goes wrong: each promise is kept, and no firing is lost."""
    day = lived(random.randrange(1 << 32), CALM)
    assert len(day.oldest) == DOMAINS
    assert max(day.oldest.values()) <= MAX_AGE
    assert not [one for one, skip in day.rig.notes.skipped_ if (skip, one.trigger) == (Skip.QUEUED, Trigger.SCHEDULE)]
    assert day.statuses["success"] > DOMAINS * DAY / EVERY * 0.99


@pytest.mark.parametrize("_round", range(3))
def test_a_rough_day(_round: int) -> None:
    """Whose own runs went well kept its promise, whatever became of others'."""
    day = lived(random.randrange(1 << 32), ROUGH)
    assert max(day.oldest.values()) <= MAX_AGE
    assert day.deaf
    assert {"success", "failed", "cancelled"} <= set(day.statuses)
    assert any(run.outcome and run.outcome.kind == "deadline" for run in day.rig.notes.ended_)
    assert day.rig.notes.dropped_ or day.rig.notes.skipped_


def test_a_day_of_more_than_the_host_can_do() -> None:
    """Limits hold, all slots are used, nothing is lost, and all wait alike: the nearest to its promise goes first."""
    day = lived(random.randrange(1 << 32), TOO_MUCH)
    work = DOMAINS * TOO_MUCH.backup / LIMITS.host  # one round of all takes so long
    assert max(day.oldest.values()) < 1.5 * work
    assert len(day.oldest) == DOMAINS
    assert day.busiest == LIMITS.host
    assert Skip.QUEUED in {skip for _, skip in day.rig.notes.skipped_}
