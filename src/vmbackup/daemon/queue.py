"""The queue: which of the requests that wait may start now, and in which order.

Pure: it is told the time and what runs. What counts against which limit:
- Backups, copies and drills are domain work, and share the host's limit: each moves a whole guest's data through this
  host, or boots it here, so that each takes a share of its disks, cores and links.
- A repository's own limit is for what writes to it: a backup to its repository, a copy to its target.
- Prune and verify take no domain's turn, so that they can hold back no backup; but only one of them goes on at a time
  on this host, for each may read all that a repository holds.

The same work is asked for once at a time. Different work of one key (a domain's backups by two jobs) waits its turn.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from vmbackup.daemon.work import Kind, Request, Run, Skip, Trigger, Work

DOMAIN_WORK = frozenset({Kind.BACKUP, Kind.COPY, Kind.DRILL})


@dataclass(frozen=True)
class Limits:
    """How many runs of domain work may go on at once: on this host, and of those that write to one repository.

    A repository that is not named has no limit of its own.
    """

    host: int
    repositories: Mapping[str, int] = field(default_factory=dict)


class Queue:
    """Requests that wait, one for each work. Not thread-safe: its owner sees to that.

    `limits` may be set at any time; what runs is never ended by that.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: dict[Work, tuple[int, Request]] = {}
        self._arrivals = itertools.count()

    def add(self, request: Request, running: Collection[Run] = ()) -> Skip | None:
        """Take the request in; or say why not: the same work runs, or waits already."""
        if any(run.request.work == request.work for run in running):
            return Skip.RUNNING
        if request.work in self._waiting:
            return Skip.QUEUED
        self._waiting[request.work] = (next(self._arrivals), request)
        return None

    def supersede(self, request: Request) -> Request | None:
        """Take out what waits and whose place a newer request of the same work takes; None where nothing does.

        Any takes a retry's place, and an operator's that of what the schedule lets wait for its moment.
        """
        _, waiting = self._waiting.get(request.work, (0, None))
        if waiting is None or waiting.trigger is Trigger.MANUAL:
            return None
        if waiting.trigger is not Trigger.RETRY and request.trigger is not Trigger.MANUAL:
            return None
        return self.remove(waiting.id)

    def take(self, now: float, running: Collection[Run]) -> list[Request]:
        """Take out what is to start now, the most urgent first.

        What has no room is passed over: a full repository holds back nothing that goes elsewhere.
        """
        room = _Room(self.limits, (run.request.work for run in running))
        taken = [r for r in self.waiting() if r.not_before <= now and room.take(r.work)]
        for request in taken:
            del self._waiting[request.work]
        return taken

    def waiting(self) -> list[Request]:
        """All that wait, the most urgent first."""
        return [request for _, request in sorted(self._waiting.values(), key=_urgency)]

    def remove(self, id: str) -> Request | None:  # noqa: A002 (the name that it has everywhere)
        """Take out the request of that id; None where there is none."""
        found = next((request for _, request in self._waiting.values() if request.id == id), None)
        if found:
            del self._waiting[found.work]
        return found

    def next_start(self, now: float) -> float | None:
        """The next time at which one of them that may not start yet may; None where all may, as far as time goes."""
        return min((r.not_before for _, r in self._waiting.values() if r.not_before > now), default=None)


def _urgency(waiting: tuple[int, Request]) -> tuple[bool, float, float, int]:
    """An operator's wish first; then the promise that breaks first; then what was due first; then what came first."""
    arrival, request = waiting
    promise = math.inf if request.promise is None else request.promise
    return (request.trigger is not Trigger.MANUAL, promise, request.due, arrival)


class _Room:
    """What may still start beside `works`."""

    def __init__(self, limits: Limits, works: Iterable[Work]) -> None:
        self._host = limits.host
        self._repositories = dict(limits.repositories)
        self._maintenance = 1
        self._keys: set[tuple[str, ...]] = set()
        for work in works:
            self._occupy(work)

    def take(self, work: Work) -> bool:
        """Whether it may start; its room is taken then."""
        fits = self._fits(work)
        if fits:
            self._occupy(work)
        return fits

    def _fits(self, work: Work) -> bool:
        if not self._keys.isdisjoint(work.keys):
            return False
        if work.kind not in DOMAIN_WORK:
            return self._maintenance > 0
        return self._host > 0 and self._repositories.get(_written(work) or "", 1) > 0

    def _occupy(self, work: Work) -> None:
        self._keys |= work.keys
        if work.kind not in DOMAIN_WORK:
            self._maintenance -= 1
            return
        self._host -= 1
        written = _written(work)
        if written in self._repositories:
            self._repositories[written] -= 1


def _written(work: Work) -> str | None:
    """The repository whose limit domain work counts against; None for a drill, which writes to none."""
    return {Kind.BACKUP: work.repository, Kind.COPY: work.target}.get(work.kind)
