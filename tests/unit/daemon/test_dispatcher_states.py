"""Any order of requests, ends, cancels, failures and clock steps: what holds of queue and dispatcher at all times."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.daemon.rig import FAILED, INTERRUPTED, KILLED, SUCCESS, Rig, request
from vmbackup.daemon.active import GRACE
from vmbackup.daemon.queue import Limits
from vmbackup.daemon.work import Kind, Outcome, Progress, Request, Run, Skip, Status, Trigger, Work

REPOSITORIES = ("local", "offsite", "third")
DOMAINS = ("a", "b", "c", "d")
OUTCOMES = (SUCCESS, FAILED, Outcome(Status.WARNING, 3), Outcome(Status.FAILED, 5))

names = st.sampled_from(REPOSITORIES)
works = st.one_of(
    st.builds(Work, st.just(Kind.BACKUP), names, st.sampled_from(("nightly", "weekly")), st.sampled_from(DOMAINS)),
    st.builds(Work, st.just(Kind.COPY), names, st.just("nightly"), st.sampled_from(DOMAINS), names),
    st.builds(Work, st.just(Kind.DRILL), names, st.just("nightly"), st.sampled_from(DOMAINS)),
    st.builds(Work, st.sampled_from((Kind.PRUNE, Kind.VERIFY)), names),
)
limits = st.builds(Limits, st.integers(1, 4), st.dictionaries(names, st.integers(1, 3)))
triggers = st.sampled_from([Trigger.SCHEDULE, Trigger.CATCH_UP, Trigger.FOLLOW, Trigger.MANUAL])


def written(work: Work) -> str | None:
    if work.kind is Kind.COPY:
        return work.target
    return work.repository if work.kind is Kind.BACKUP else None


def blocked(work: Work, running: list[Work], limits: Limits) -> bool:
    """Whether it may not start beside these: the rules once more, by counting."""
    maintenance = (Kind.PRUNE, Kind.VERIFY)
    if not all(work.keys.isdisjoint(other.keys) for other in running):
        return True
    if work.kind in maintenance:
        return any(other.kind in maintenance for other in running)
    domains = [other for other in running if other.kind not in maintenance]
    into = written(work)
    full = into in limits.repositories and Counter(map(written, domains))[into] >= limits.repositories[into]
    return len(domains) >= limits.host or full


def takes_the_place(new: Trigger, old: Trigger) -> bool:
    """Anything that of a retry, an operator's wish that of what is no other operator's."""
    return old is Trigger.RETRY or (new is Trigger.MANUAL and old is not Trigger.MANUAL)


class Service(RuleBasedStateMachine):
    """Drives a dispatcher as schedules, operators and processes would."""

    @initialize(limits=limits)
    def begin(self, limits: Limits) -> None:
        self.rig = Rig(limits)
        self.submitted: dict[str, Request] = {}
        self.deaf: set[str] = set()  # runs that do not end when they are asked to
        self.hard: set[str] = set()
        self.asked: dict[str, float] = {}
        self.rig.runner.on_cancel = self.cancelled

    def cancelled(self, run_id: str, hard: bool) -> None:
        if hard:
            assert self.rig.clock.monotonic() - self.asked[run_id] >= GRACE - 0.001
            self.hard.add(run_id)
            self.rig.runner.end(run_id, KILLED)
            return
        assert run_id not in self.asked, "asked twice"
        self.asked[run_id] = self.rig.clock.monotonic()
        if run_id not in self.deaf:
            self.rig.runner.end(run_id, INTERRUPTED)

    @rule(
        work=works,
        trigger=triggers,
        promise=st.none() | st.integers(-5000, 5000),
        wait=st.sampled_from((0, 0, 0, 60, 600)),
        deadline=st.none() | st.sampled_from((30.0, 300.0)),
        retries=st.integers(0, 2),
        deaf=st.booleans(),
    )
    def submit(
        self, work: Work, trigger: Trigger, promise: int | None, wait: int, deadline: float | None, retries: int,
        deaf: bool,
    ) -> None:  # fmt: skip
        now = self.rig.clock()
        one = request(
            work, trigger, now, now + wait, promise=None if promise is None else now + promise, deadline=deadline,
            retries=retries, retry_after=100.0,
        )  # fmt: skip
        if deaf:
            self.deaf.add(one.id)
        waiting = {other.work: other for other in self.rig.dispatcher.waiting()}
        running = [run.request.work for run in self.rig.dispatcher.runs()]
        expected = Skip.RUNNING if work in running else None
        if work in waiting and not takes_the_place(trigger, waiting[work].trigger):
            expected = Skip.QUEUED
        assert self.rig.dispatcher.submit(one) is expected
        self.submitted[one.id] = one

    @rule(seconds=st.sampled_from((0, 1, 29, 60, 300)))
    def advance(self, seconds: int) -> None:
        """Time passes, and all that is due is done."""
        self.rig.clock.advance(seconds)
        self.settle()

    @rule(seconds=st.sampled_from((-3600, 3600)))
    def clock_is_set(self, seconds: int) -> None:
        self.rig.clock.wall += seconds

    def settle(self) -> None:
        """Ticks as the service does: until nothing wakes it any more."""
        dispatcher = self.rig.dispatcher
        for _ in range(100):
            dispatcher.wake.clear()
            before = [run.request.work for run in dispatcher.runs()]
            heard, ends = len(self.rig.notes.started_), len(self.rig.notes.ended_)
            dispatcher.tick()
            self.check_order(before, self.rig.notes.started_[heard:], self.rig.notes.ended_[ends:])
            if not dispatcher.wake.is_set():
                return
        raise AssertionError("it never comes to rest")

    def check_order(self, running: list[Work], started: list[Run], ended: list[Run]) -> None:
        """Nothing started while something more urgent could have; nothing waits that could start."""
        dispatcher, limits = self.rig.dispatcher, self.rig.queue.limits
        now = self.rig.clock()
        gone = [run.request.work for run in ended]
        running = [work for work in running if work not in gone]
        left = [one for one in dispatcher.waiting() if one.not_before <= now]
        requests = [run.request for run in started]
        for place, one in enumerate(requests):
            for other in [*left, *requests[place + 1 :]]:
                assert urgency(one) <= urgency(other) or blocked(other.work, running, limits)
            assert not blocked(one.work, running, limits)
            assert one.not_before <= now
            running.append(one.work)
        for other in left:
            assert blocked(other.work, running, limits)

    @precondition(lambda self: self.rig.dispatcher.runs())
    @rule(data=st.data(), outcome=st.sampled_from(OUTCOMES))
    def end(self, data: st.DataObject, outcome: Outcome) -> None:
        run = data.draw(st.sampled_from(self.rig.dispatcher.runs()))
        self.rig.runner.end(run.id, outcome)
        self.settle()

    @precondition(lambda self: self.rig.dispatcher.runs())
    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.rig.dispatcher.runs()))
        self.rig.dispatcher.progress(run.id, Progress("x", len(self.submitted)))

    @precondition(lambda self: self.rig.dispatcher.runs() or self.rig.dispatcher.waiting())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        known = [*self.rig.running(), *self.rig.waiting()]
        assert self.rig.dispatcher.cancel(data.draw(st.sampled_from(known)), "an operator")

    @rule(limits=limits)
    def set_limits(self, limits: Limits) -> None:
        self.rig.dispatcher.set_limits(limits)
        self.settle()

    @invariant()
    def no_two_of_a_key_run(self) -> None:
        keys = Counter(key for run in self.rig.dispatcher.runs() for key in run.request.work.keys)
        assert all(number == 1 for number in keys.values())

    @invariant()
    def each_request_is_somewhere_or_has_come_to_one_end(self) -> None:
        notes = self.rig.notes
        self.settle()
        known = [*self.submitted, *(one.id for one in notes.retries)]
        places = Counter([*self.rig.running(), *self.rig.waiting(), *(run.id for run in notes.ended_)])
        places.update(one.id for one, _ in (*notes.skipped_, *notes.dropped_))
        assert places == Counter(known)

    @invariant()
    def starts_and_ends_match(self) -> None:
        notes = self.rig.notes
        started = [run.id for run in notes.started_]
        assert started == [run.id for run in self.rig.runner.started]
        assert len(started) == len(set(started))
        assert {run.id for run in notes.ended_} <= set(started)
        for run in notes.ended_:
            assert run.outcome
            assert run.request.attempt <= run.request.retries + 1

    def teardown(self) -> None:
        """Stopping ends all there is, within its time, and tells of all."""
        if not hasattr(self, "rig"):
            return
        dispatcher, began = self.rig.dispatcher, self.rig.clock.monotonic()
        self.rig.runner.on_cancel = lambda run_id, hard: self.rig.runner.end(run_id, KILLED if hard else INTERRUPTED)
        dispatcher.stop(60)
        assert self.rig.clock.monotonic() - began <= 60
        assert self.rig.running() == self.rig.waiting() == []
        notes = self.rig.notes
        ends = Counter(run.id for run in notes.ended_)
        ends.update(one.id for one, _ in (*notes.skipped_, *notes.dropped_))
        assert ends == Counter([*self.submitted, *(one.id for one in notes.retries)])


def urgency(one: Request) -> tuple[bool, bool, float, float]:
    return (one.trigger is not Trigger.MANUAL, one.promise is None, one.promise or 0.0, one.due)


TestService = Service.TestCase
TestService.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
