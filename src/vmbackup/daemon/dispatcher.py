"""The dispatcher: turns requests into runs, and sees each to its end.

Every request that is submitted comes to exactly one end, of which the listener is told: `ended` of its run, `skipped`,
or `dropped`. A run that failed may be followed by a retry, which is a request of its own, with ends of its own.

All that happens is gathered under a lock, and done by `tick`: it alone calls the runner and the listener, never with
the lock held, so that both may call back. Listeners must be quick: nothing starts meanwhile.
"""

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from vmbackup.daemon.active import GRACE, Active, Signal
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.work import STOPPED, SUPERSEDED, Outcome, Progress, Request, Run, Skip, Status, Trigger

# Seconds between two attempts at most, unless the job asks for more: a doubled wait soon outlasts any schedule.
LONGEST_RETRY = 86400.0
# Of the seconds that `stop` has, those that are left for what must be killed.
_LAST_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Listener(Protocol):
    """Is told of everything, in order, by one thread at a time."""

    def started(self, run: Run) -> None:
        """The run is about to start."""

    def progressed(self, run: Run) -> None:
        """Its process or its progress is known better."""

    def ended(self, run: Run, retry: Request | None) -> None:
        """It has ended; `retry` waits to try again, None where that was the last attempt."""

    def skipped(self, request: Request, skip: Skip) -> None:
        """The request was not taken in, or lost its place as the service stops."""

    def dropped(self, request: Request, why: str) -> None:
        """A request that waited was cancelled, or was a retry whose place a newer request took."""


class Report(Protocol):
    """What a runner tells of its runs, from any thread."""

    def progress(self, run_id: str, progress: Progress) -> None:
        """How far the run is."""

    def pid(self, run_id: str, pid: int) -> None:
        """Its process has started."""

    def ended(self, run_id: str, outcome: Outcome) -> None:
        """Nothing of it is left. Called once for each run that was started."""


class Runner(Protocol):
    """Carries out runs."""

    def start(self, run: Run, report: Report) -> None:
        """Start the run, and return at once."""

    def cancel(self, run_id: str, hard: bool) -> None:
        """Ask the run to end, or end it (`hard`). Returns at once; a run that has ended is no error."""


class Dispatcher:
    """Runs what the queue lets start. `wake` is set whenever `tick` should be called.

    `grace`: seconds between asking a run to end and killing it.
    """

    def __init__(
        self,
        queue: Queue,
        runner: Runner,
        listener: Listener,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
        grace: float = GRACE,
    ) -> None:
        self._queue, self._runner, self._listener = queue, runner, listener
        self._clock, self._monotonic, self._wait, self._grace = clock, monotonic, wait, grace
        self._lock = threading.Lock()  # of the queue and all below
        self._turn = threading.Lock()  # of tick: who holds it may take the other, never the other way round
        self._active: dict[str, Active] = {}
        self._reports: deque[tuple[str, Progress | int | Outcome]] = deque()
        self._news: deque[Callable[[], None]] = deque()
        self._stopping = False
        self._killed = 0
        self._stirred = threading.Event()  # as `wake`, for `stop`
        self.wake = threading.Event()
        self.beat = monotonic()

    def submit(self, request: Request) -> Skip | None:
        """Take a request in; or say why not (the listener is told too)."""
        with self._lock:
            skip = self._admit(request)
            if skip is not None:
                self._news.append(partial(self._listener.skipped, request, skip))
        self._stir()
        return skip

    def _admit(self, request: Request) -> Skip | None:
        if self._stopping:
            return Skip.STOPPING
        if old := self._queue.supersede(request):
            self._news.append(partial(self._listener.dropped, old, SUPERSEDED))
        return self._queue.add(request, self._runs())

    def cancel(self, id: str, why: str) -> bool:  # noqa: A002 (the name that it has everywhere)
        """End a run, or take a request out. False where nothing of that id runs or waits."""
        with self._lock:
            active = self._active.get(id)
            request = None if active else self._queue.remove(id)
            if active:
                active.cancel(why)
            if request:
                self._news.append(partial(self._listener.dropped, request, why))
        self._stir()
        return bool(active or request)

    def runs(self) -> list[Run]:
        """What runs now, the oldest first."""
        with self._lock:
            return self._runs()

    def _runs(self) -> list[Run]:
        return [active.run for active in self._active.values()]

    def waiting(self) -> list[Request]:
        """What waits, the most urgent first."""
        with self._lock:
            return self._queue.waiting()

    def set_limits(self, limits: Limits) -> None:
        """The limits that hold from now on; what runs goes on."""
        with self._lock:
            self._queue.limits = limits
        self._stir()

    def tick(self) -> float | None:
        """Move everything on. Returns when it is to be called next (seconds since the epoch) unless `wake` is set."""
        with self._turn:
            with self._lock:
                self._read_reports()
                starting = self._take()
                news, self._news = self._news, deque()
            for tell in news:
                self._guarded(tell)
            for run in starting:
                self._start(run)
            self._send_signals()
            self.beat = self._monotonic()
            with self._lock:
                return self._next_tick()

    def stop(self, within: float) -> bool:
        """Start nothing more and end all runs, softly at first; returns after `within` seconds at the latest.

        True if all ended softly. What waits is skipped.
        """
        end = self._monotonic() + within
        with self._lock:
            self._stopping, killed = True, self._killed
            for request in self._queue.waiting():
                self._queue.remove(request.id)
                self._news.append(partial(self._listener.skipped, request, Skip.STOPPING))
            for active in self._active.values():
                active.cancel(STOPPED)
                hard_at = end - min(_LAST_SECONDS, within / 4)
                active.hard_at = hard_at if active.hard_at is None else min(active.hard_at, hard_at)
        while True:
            self._stirred.clear()
            then = self.tick()
            left = end - self._monotonic()
            if not self.runs() or left <= 0:
                break
            self._wait(self._stirred, left if then is None else max(0.0, min(left, then - self._clock())))
        self.tick()  # tells of what the listener did as it was told of the last run
        return not self.runs() and self._killed == killed

    # What runners report; they hold no lock, and none is taken.

    def progress(self, run_id: str, progress: Progress) -> None:
        """As Report says."""
        self._reports.append((run_id, progress))
        self._stir()

    def pid(self, run_id: str, pid: int) -> None:
        """As Report says."""
        self._reports.append((run_id, pid))
        self._stir()

    def ended(self, run_id: str, outcome: Outcome) -> None:
        """As Report says."""
        self._reports.append((run_id, outcome))
        self._stir()

    def _stir(self) -> None:
        self.wake.set()
        self._stirred.set()

    def _read_reports(self) -> None:
        """Take over what was reported; of progress only the last counts."""
        changed: dict[str, None] = {}
        for _ in range(len(self._reports)):
            run_id, what = self._reports.popleft()
            active = self._active.get(run_id)
            if active is None:
                continue
            if isinstance(what, Outcome):
                self._end(active, what)
                continue
            named = {"progress": what} if isinstance(what, Progress) else {"pid": what}
            active.run = replace(active.run, **named)
            changed[run_id] = None
        for run_id in changed:
            if run_id in self._active:
                self._news.append(partial(self._listener.progressed, self._active[run_id].run))

    def _end(self, active: Active, outcome: Outcome) -> None:
        del self._active[active.run.id]
        run = replace(active.run, finished=self._clock(), outcome=active.judge(outcome))
        retry = self._retry_of(run)
        self._news.append(partial(self._listener.ended, run, retry))
        if retry is not None:
            self._queue.add(retry)

    def _retry_of(self, run: Run) -> Request | None:
        request = run.request
        assert run.outcome
        assert run.finished is not None
        if self._stopping or not run.outcome.retriable or request.attempt > request.retries:
            return None
        wait = min(request.retry_after * 2 ** (request.attempt - 1), max(request.retry_after, LONGEST_RETRY))
        return replace(
            request,
            trigger=Trigger.RETRY,
            attempt=request.attempt + 1,
            not_before=run.finished + wait,
            id=secrets.token_hex(4),
        )

    def _take(self) -> list[Run]:
        """What is to start now, noted as running."""
        if self._stopping:
            return []
        now, began = self._clock(), self._monotonic()
        starting = [Run(r.id, r, started=now) for r in self._queue.take(now, self._runs())]
        for run in starting:
            deadline = run.request.deadline
            self._active[run.id] = Active(run, None if deadline is None else began + deadline, self._grace)
            self._news.append(partial(self._listener.started, run))
        return starting

    def _start(self, run: Run) -> None:
        try:
            self._runner.start(run, self)
        except Exception as error:
            _log.exception("run %s could not be started", run.id)
            self.ended(run.id, Outcome(Status.FAILED, error=f"it could not be started: {error}", kind="system"))

    def _send_signals(self) -> None:
        with self._lock:
            now = self._monotonic()
            due = [(id_, signal) for id_, active in self._active.items() if (signal := active.signal(now))]
            self._killed += sum(signal is Signal.HARD for _, signal in due)
        for id_, signal in due:
            self._guarded(partial(self._runner.cancel, id_, signal is Signal.HARD))

    def _next_tick(self) -> float | None:
        now = self._clock()
        signals = [at for active in self._active.values() if (at := active.next_signal()) is not None]
        times = [now + max(0.0, at - self._monotonic()) for at in signals]
        start = self._queue.next_start(now)
        return min([*times, start] if start is not None else times, default=None)

    def _guarded(self, call: Callable[[], None]) -> None:
        """A fault of one listener's must not end all runs."""
        try:
            call()
        except Exception:
            _log.exception("a fault in the service itself")
