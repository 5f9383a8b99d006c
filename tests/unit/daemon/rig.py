"""A service without processes: a clock that is set by hand, a runner that does as it is told, a listener that notes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vmbackup.daemon.dispatcher import Dispatcher, Report
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.work import Kind, Outcome, Request, Run, Skip, Status, Trigger, Work

NOON = 1_790_000_000.0
SUCCESS = Outcome(Status.SUCCESS, 0)
FAILED = Outcome(Status.FAILED, 1, "it broke")
KILLED = Outcome(Status.CANCELLED, None, "the run's process was killed by signal 9")
INTERRUPTED = Outcome(Status.CANCELLED, 130, "interrupted")


def backup(domain: str, repository: str = "local", job: str = "nightly", **more: Any) -> Request:
    return request(Work(Kind.BACKUP, repository, job, domain), **more)


def copy(domain: str, target: str = "offsite", **more: Any) -> Request:
    return request(Work(Kind.COPY, "local", "nightly", domain, target), **more)


def drill(domain: str, **more: Any) -> Request:
    return request(Work(Kind.DRILL, "local", "nightly", domain), **more)


def prune(repository: str = "local", **more: Any) -> Request:
    return request(Work(Kind.PRUNE, repository), **more)


def verify(repository: str = "local", **more: Any) -> Request:
    return request(Work(Kind.VERIFY, repository), **more)


def request(
    work: Work, trigger: Trigger = Trigger.SCHEDULE, due: float = NOON, not_before: float | None = None, **more: Any
) -> Request:
    return Request(work, trigger, due, due if not_before is None else not_before, **more)


def runs(*requests: Request) -> list[Run]:
    return [Run(r.id, r, NOON) for r in requests]


class Clock:
    """Both clocks; `set` is an operator who sets only that of the wall."""

    def __init__(self) -> None:
        self.wall = NOON
        self.steady = 1000.0

    def __call__(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def wait(self, event: threading.Event, seconds: float) -> None:
        """As the event's own: nobody sets it meanwhile."""
        if not event.is_set():
            self.advance(seconds)


@dataclass
class FakeRunner:
    """Starts nothing. `on_cancel` may end a run as it is asked to."""

    report: Report | None = None
    started: list[Run] = field(default_factory=list)
    cancelled: list[tuple[str, bool]] = field(default_factory=list)
    on_start: Callable[[Run], None] = lambda run: None
    on_cancel: Callable[[str, bool], None] = lambda run_id, hard: None

    def start(self, run: Run, report: Report) -> None:
        self.report = report
        self.started.append(run)
        self.on_start(run)

    def cancel(self, run_id: str, hard: bool) -> None:
        self.cancelled.append((run_id, hard))
        self.on_cancel(run_id, hard)

    def end(self, run_id: str, outcome: Outcome = SUCCESS) -> None:
        assert self.report
        self.report.ended(run_id, outcome)


@dataclass
class Notes:
    """A listener that keeps all it hears."""

    started_: list[Run] = field(default_factory=list)
    progressed_: list[Run] = field(default_factory=list)
    ended_: list[Run] = field(default_factory=list)
    retries: list[Request] = field(default_factory=list)
    skipped_: list[tuple[Request, Skip]] = field(default_factory=list)
    dropped_: list[tuple[Request, str]] = field(default_factory=list)
    on_ended: Callable[[Run], None] = lambda run: None

    def started(self, run: Run) -> None:
        self.started_.append(run)

    def progressed(self, run: Run) -> None:
        self.progressed_.append(run)

    def ended(self, run: Run, retry: Request | None) -> None:
        self.ended_.append(run)
        if retry:
            self.retries.append(retry)
        self.on_ended(run)

    def skipped(self, request: Request, skip: Skip) -> None:
        self.skipped_.append((request, skip))

    def dropped(self, request: Request, why: str) -> None:
        self.dropped_.append((request, why))


class Rig:
    """A dispatcher with all of these."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.clock, self.runner, self.notes = Clock(), FakeRunner(), Notes()
        self.queue = Queue(limits or Limits(2))
        self.dispatcher = Dispatcher(
            self.queue, self.runner, self.notes, self.clock, self.clock.monotonic, self.clock.wait
        )

    def submit(self, *requests: Request) -> None:
        for one in requests:
            assert self.dispatcher.submit(one) is None

    def tick(self, after: float = 0.0) -> float | None:
        self.clock.advance(after)
        return self.dispatcher.tick()

    def end(self, one: Request, outcome: Outcome = SUCCESS) -> None:
        self.runner.end(one.id, outcome)
        self.tick()

    def running(self) -> list[str]:
        return [run.id for run in self.dispatcher.runs()]

    def waiting(self) -> list[str]:
        return [one.id for one in self.dispatcher.waiting()]
