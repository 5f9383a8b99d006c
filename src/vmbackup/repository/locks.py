"""Object lock: what a restore point needs cannot be deleted for the days that were promised, whatever key one has.

Each object is locked when it is stored, for the days and a generation (`Objects`). A point that builds on older
objects extends their locks where they would end too early: once in a generation, not with each run
(docs/repository-format.md, section 14).
"""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA
from vmbackup.repository.needs import Needs
from vmbackup.repository.nodes import Node
from vmbackup.repository.points import Point
from vmbackup.storage_backends import ObjectMissing, Store

MOST_DAYS = 3650  # a typing error must not lock for centuries: nobody could undo it
DAY = 86400.0
_MOST_GENERATION = 30  # days
_GENERATIONS = 4  # in the promised days: each costs a request an object, and keeps garbage for as long
# What no lineage owns and everything needs.
_COMMON = ("config/", "config.copy/", "keys/", "groups/", "writers/", "envelopes/")
_AT_A_TIME = 8  # requests; the store bounds them too


def generation(days: int) -> int:
    """For how many days longer than promised objects are locked, so that not every run must extend them."""
    return max(1, min(_MOST_GENERATION, days // _GENERATIONS))


def seconds(days: int | None) -> float:
    """For how long an object is locked from now on; 0 where nothing is."""
    return (days + generation(days)) * DAY if days else 0.0


class RunLocks:
    """What one run must lock, gathered while it goes. `started`: the store's time when its session was pinned."""

    def __init__(self, store: Store, catalog: Catalog, days: int, started: float) -> None:
        self._store, self._catalog, self._days = store, catalog, days
        self._began, self._started = time.monotonic(), started
        self._used: set[tuple[int, int]] = set()
        self._known: set[tuple[int, int]] = set()

    def read(self, node: Node) -> None:
        """A node of the parent's map: what it names was locked when the parent was made."""
        self._known.update((run.session, run.pack) for run in node.runs())

    def stored(self, node: Node) -> None:
        """A node of the new map."""
        self._used.update((run.session, run.pack) for run in node.runs())

    def extend(self, point: Point, parent: Point | None, own: Iterable[bytes]) -> datetime:
        """Lock what the point, not yet committed, needs; gives until when all of it is.

        `own` are the sessions of this run. Raises DamageError where something is missing, and as Store.lock does.
        """
        now = self._started + time.monotonic() - self._began
        enough = now + self._days * DAY
        until = self._started + seconds(self._days)
        fresh = set(own) if until >= enough else set()
        before = self._promised(parent, now)
        if before >= enough and parent is not None:
            keys = set(self._reused(point, parent, fresh))
            until = min(until, before)
        else:
            keys = set(self._all(point, fresh))
            until = until if fresh else now + seconds(self._days)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            for _ in pool.map(self._lock, sorted(keys)):
                pass
        return datetime.fromtimestamp(int(until), UTC)

    def _promised(self, parent: Point | None, now: float) -> float:
        """Until when all that the parent needs is locked, as its writer says; more than can be counts for nothing."""
        until = parent.locked_until if parent else None
        return until.timestamp() if until and until.timestamp() <= now + seconds(self._days) else 0.0

    def _lock(self, key: str) -> None:
        try:
            self._store.lock(key, seconds(self._days))
        except ObjectMissing as error:
            raise DamageError(f"{key} is missing", object_key=key) from error

    def _reused(self, point: Point, parent: Point, fresh: set[bytes]) -> Iterator[str]:
        """What the point needs and neither its parent did nor this run stored: chunks found elsewhere."""
        there = {ref.session for ref in parent.table.values()}
        needs = Needs(self._catalog)
        for number, pack in self._used - self._known:
            ref = point.table.get(number)  # none for what was stored and is not named in the end
            if ref and ref.session not in fresh:
                yield ObjectName(DATA, ref.lineage, ref.session, pack).key(point.lineage.group)
        for ref in point.table.values():
            if ref.session not in there and ref.session not in fresh:
                needs.add_index(ref)
        yield from (name.key(point.lineage.group) for name in needs.names())

    def _all(self, point: Point, fresh: set[bytes]) -> Iterator[str]:
        """Everything that the point needs and this run did not store."""
        needs = Needs(self._catalog)
        needs.add(point)
        yield from (name.key(point.lineage.group) for name in needs.names() if name.session not in fresh)
        for folder in _COMMON:
            yield from (entry.key for entry in self._store.list(folder))
