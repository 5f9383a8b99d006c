"""The clockwork: calls what comes due by schedules, on APScheduler 3.11 with our own timetable as its trigger.

What APScheduler would do by itself, and must not: drop a firing that is late (`misfire_grace_time`), count all missed
firings one by one, sleep on after the wall clock was set or the machine slept, lose its thread to an exception, join
the threads of calls that hang as the interpreter ends, ask for the machine's time zone and fail.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any

from vmbackup.daemon.calls import Calls, Spawn, spawn_thread
from vmbackup.daemon.timetable import last_due, next_run
from vmbackup.daemon.wallclock import WallClock

# Seconds that the clockwork sleeps at most. Its sleep is by a clock that stands still while the machine is suspended
# and knows nothing of the wall clock being set: so late may it notice either.
HEARTBEAT = 60.0
# Seconds that the wall clock may be set back without anything being called twice: a time server's correction. Set back
# by more, a time that comes again is due again.
_SET_BACK = 300.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is called when, by the calendar of `zone`. The call gets the time it was due, in a thread of its own."""

    schedule: str
    zone: tzinfo
    call: Callable[[float], None]


class Trigger:
    """APScheduler's question for the next time, answered by the timetable."""

    def __init__(self, entry: Entry) -> None:
        self.schedule = entry.schedule
        self.zone = entry.zone

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        """The next time after the previous one; of those that were missed meanwhile, only the newest is due."""
        present = now.timestamp()
        after = previous.timestamp() if previous is not None else present
        missed = last_due(self.schedule, self.zone, 0, after, present) if after < present else None
        return _moment(missed if missed is not None else self.after(after))

    def after(self, time: float) -> float | None:
        """The next time after that one."""
        return next_run(self.schedule, self.zone, time)


class Clockwork:
    """Calls entries when they come due, until `shutdown`. May be used from any thread.

    `beat`: when the clockwork last gave a sign of life, by `monotonic`; every HEARTBEAT seconds or sooner, and calls
    that hang do not stop it. `overruns`: how often an entry came due while its former call went on; that firing is
    skipped. `jumped` is told of jumps of the wall clock, by the clockwork's thread, with seconds.
    """

    def __init__(
        self,
        jumped: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        spawn: Spawn = spawn_thread,
    ) -> None:
        self._jumped = jumped
        self._clock = clock
        self._monotonic = monotonic
        self._wall = WallClock(clock, monotonic)
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._calls = Calls(self._call, spawn)
        self._scheduler = _scheduler(self._tick, self._calls, self._overrun)
        self.overruns: Counter[str] = Counter()
        self.beat = monotonic()

    def start(self) -> None:
        """From now on entries come due."""
        self._scheduler.start()
        with self._lock:
            self._apply({})

    def set(self, entries: Mapping[str, Entry]) -> None:
        """Exactly these, by their ids. What stays the same keeps its next time, and what is due already is called."""
        with self._lock:
            former, self._entries = self._entries, dict(entries)
            if self._scheduler.running:
                self._apply(former)

    def next(self, key: str) -> float | None:
        """When that entry comes due next; None where there is no such entry."""
        entry = self._entries.get(key)
        if entry is None or self._scheduler.running:
            job = self._scheduler.get_job(key)
            return _seconds(job.next_run_time) if job is not None else None
        return next_run(entry.schedule, entry.zone, self._clock())

    def shutdown(self, within: float = 0.0) -> bool:
        """Nothing is called any more; calls that go on get so many seconds to end. Whether they have."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        return self._calls.wait(within)

    def _apply(self, former: Mapping[str, Entry]) -> None:
        """Bring the scheduler from the former entries to these."""
        for key in former.keys() - self._entries.keys():
            with suppress(LookupError):  # one that never comes due is gone by itself
                self._scheduler.remove_job(key)
        for key, entry in self._entries.items():
            known = former.get(key)
            if known is None or (known.schedule, known.zone) != (entry.schedule, entry.zone):
                self._put(key, entry)

    def _put(self, key: str, entry: Entry) -> None:
        trigger, now, due = Trigger(entry), self._clock(), self.next(key)
        soon = due if due is not None and due <= now else trigger.after(now)
        moment = _moment(soon)
        self._scheduler.add_job(_nothing, trigger, id=key, name=key, next_run_time=moment, replace_existing=True)

    def _call(self, key: str, due: float) -> None:
        """In a thread of its own. Whatever goes wrong, the next firing comes."""
        entry = self._entries.get(key)
        if entry is None:  # removed as it came due
            return
        try:
            entry.call(due)
        except BaseException as error:
            _log.error("schedule=%s due=%.0f failed: %s: %s", key, due, type(error).__name__, error)
            _log.debug("schedule=%s traceback", key, exc_info=True)

    def _overrun(self, event: Any) -> None:
        self.overruns[event.job_id] += 1
        _log.warning("schedule=%s skipped: its former call goes on", event.job_id)

    def _tick(self, process: Callable[[], float | None]) -> float:
        """One round of the scheduler's thread: what is due is called. Gives the seconds to sleep."""
        wait: float | None = None
        for step in (self._look, process):
            try:
                wait = step()
            except Exception as error:
                _log.error("the clockwork failed, and goes on: %s: %s", type(error).__name__, error)
                _log.debug("clockwork traceback", exc_info=True)
        self.beat = self._monotonic()
        return HEARTBEAT if wait is None else min(wait, HEARTBEAT)

    def _look(self) -> None:
        """See whether the wall clock was set, and whether an entry would wait too long because of that."""
        with self._lock:
            for job in self._scheduler.get_jobs():
                due, soon = _seconds(job.next_run_time), job.trigger.after(self._clock() + _SET_BACK)
                if due is not None and soon is not None and soon < due:
                    self._scheduler.modify_job(job.id, next_run_time=_moment(soon))
        seconds = self._wall.jump()
        if seconds:
            _log.warning("the clock jumped by %+.0f s", seconds)
            self._jumped(seconds)


_Tick = Callable[[Callable[[], float | None]], float]


def _scheduler(tick: _Tick, calls: Calls, overrun: Callable[[Any], None]) -> Any:
    """APScheduler's, whose rounds go through `tick`."""
    from apscheduler.events import EVENT_JOB_MAX_INSTANCES
    from apscheduler.executors.base import BaseExecutor
    from apscheduler.schedulers.background import BackgroundScheduler
    from apscheduler.triggers.base import BaseTrigger

    class Scheduler(BackgroundScheduler):  # type: ignore[misc]
        def _process_jobs(self) -> float:
            return tick(super()._process_jobs)

    BaseTrigger.register(Trigger)
    BaseExecutor.register(Calls)
    logger = logging.getLogger(f"{__name__}.apscheduler")
    logger.setLevel(logging.ERROR)  # it tells of each job that is added and due
    scheduler = Scheduler(
        logger=logger,
        timezone=UTC,  # not the machine's, which it may be unable to find
        executors={"default": calls},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
    )
    scheduler.add_listener(overrun, EVENT_JOB_MAX_INSTANCES)
    return scheduler


def _nothing() -> None:
    """Stands for what Calls calls: APScheduler asks for a function, and would not tell it when it was due."""


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
