"""The history of runs: what ended how, totals that only grow, and small facts that outlive the service.

All that is asked for often is held in memory; the file (history_file.py) is what a new life begins with. So metrics
never wait for a disk, and a file that cannot be written costs nothing but what a restart would remember. It may be
deleted: restore points are known from the repository.
"""

import copy
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmbackup.daemon.digest import Counts, stages
from vmbackup.daemon.history_file import HistoryFile
from vmbackup.daemon.history_rows import Batch, Guest, Last, Row
from vmbackup.daemon.snapshot import LastRun, Totals
from vmbackup.daemon.work import DIED, Kind, Run, Skip, Status, Work

_UNSAVED_RUNS = 1000  # kept in memory until the file can be written
_FORGOTTEN_DAYS = 400  # work that was not done for so long: guests that are made and deleted by the hour, years of them
_FORGET_EVERY = 1000  # runs


class History:
    """Thread-safe. Nothing it does raises for what is wrong with the file: that is logged.

    Two locks: one for what is in memory, held for moments; one for the file's only connection, held while it writes.
    One connection, as all writes are small and in order: two threads' writes must not overtake each other.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._memory, self._saving = threading.Lock(), threading.Lock()
        self._file = HistoryFile(path, clock, monotonic)
        kept = self._file.load()
        self._lasts, self._totals, self._facts = kept.lasts, kept.totals, kept.facts
        self._running = {(row.id, row.started): row for row in kept.unfinished}
        self._dirty = Batch()
        self._ended = 0
        self._forget_old()

    def close(self) -> None:
        """Writes what could not be written so far, and closes the file."""
        self._save()
        with self._saving:
            self._file.close()

    def start(self, run: Run) -> None:
        """A run has begun."""
        row = Row.of(run)
        with self._memory:
            self._running[row.id, row.started] = self._dirty.runs[row.id, row.started] = row
        self._save()

    def end(self, run: Run) -> None:
        """A run has ended."""
        row = Row.of(run)
        if row.finished is None:
            row = replace(row, finished=self._clock(), status=Status.FAILED.value)
        with self._memory:
            self._end(row, row.last(stages(run)))
            if guest := _guest(row.work):
                self._counts(guest).count(run)
        self._save()

    def skip(self, work: Work, skip: Skip) -> None:
        """A firing made no run; counted for backups."""
        if (guest := _guest(work)) is None:
            return
        with self._memory:
            skipped = self._counts(guest).skipped
            skipped[skip] = skipped.get(skip, 0) + 1
        self._save()

    def unfinished(self) -> list[str]:
        """The ids of runs that went on when the last service died; they have failed from here on."""
        now = self._clock()
        with self._memory:
            dead = list(self._running.values())
            for row in dead:
                failed = replace(row, finished=now, status=Status.FAILED.value, error=DIED, error_kind="killed")
                self._end(failed, failed.last({}))
                if guest := _guest(row.work):
                    runs = self._counts(guest).runs
                    runs[Status.FAILED] = runs.get(Status.FAILED, 0) + 1
        self._save()
        return [row.id for row in dead]

    def last(
        self, kind: Kind, job: str | None, domain: str | None, repository: str, target: str | None = None
    ) -> LastRun | None:
        """The last run that has ended."""
        with self._memory:
            found = self._lasts.get(Work(kind, repository, job, domain, target))
        return found.run if found else None

    def last_success(
        self, kind: Kind, job: str | None, domain: str | None, repository: str, target: str | None = None
    ) -> float:
        """When one last ended well, with warnings too; 0: never."""
        with self._memory:
            found = self._lasts.get(Work(kind, repository, job, domain, target))
        return found.success if found else 0.0

    def totals(self, job: str, domain: str, repository: str) -> Totals:
        """What the backups of a guest have come to."""
        with self._memory:
            counts = self._totals.get((domain, job, repository))
            return counts.frozen() if counts else Totals()

    def known_since(self, job: str | None, domain: str | None, repository: str) -> float:
        """When this was first asked: how long this host has known a guest, or (with None) a repository.

        Written with what is written next: 300 guests that are new at once cost no 300 writes.
        """
        guest = (domain or "", job or "", repository)
        with self._memory:
            if (counts := self._totals.get(guest)) and counts.since:
                return counts.since
            since = self._counts(guest).since = self._clock()
            return since

    def guests(self) -> list[Guest]:
        """Domain, job and repository of all guests that were ever backed up."""
        with self._memory:
            return sorted(guest for guest in map(_guest, self._lasts) if guest)

    def recent(self, limit: int, domain: str | None = None) -> list[dict[str, Any]]:
        """Runs that have ended, newest first, as the control socket tells them."""
        with self._saving:
            kept = {(row.id, row.started): row for row in self._file.recent(limit, domain)}
            with self._memory:
                kept |= {key: row for key, row in self._dirty.runs.items() if domain in (None, row.domain)}
        ended = [row for row in kept.values() if row.finished is not None]
        return [row.document() for row in sorted(ended, key=lambda row: row.finished or 0.0, reverse=True)[:limit]]

    def remember(self, name: str, value: str) -> None:
        """Keeps a small fact."""
        with self._memory:
            if self._facts.get(name) == value:
                return
            self._facts[name] = self._dirty.facts[name] = value
        self._save()

    def recall(self, name: str) -> str | None:
        """A fact; None where none is kept."""
        with self._memory:
            return self._facts.get(name)

    def _end(self, row: Row, run: LastRun) -> None:
        key = (row.id, row.started)
        self._running.pop(key, None)
        self._dirty.runs[key] = row
        before = self._lasts.get(row.work)
        self._lasts[row.work] = self._dirty.lasts[row.work] = (before or Last(run)).after(run)
        self._ended += 1
        if self._ended % _FORGET_EVERY == 0:
            self._forget_old()

    def _counts(self, guest: Guest) -> Counts:
        counts = self._totals.setdefault(guest, Counts())
        self._dirty.totals[guest] = counts
        return counts

    def _forget_old(self) -> None:
        oldest = self._clock() - _FORGOTTEN_DAYS * 86400
        for work in [work for work, last in self._lasts.items() if last.run.finished < oldest]:
            del self._lasts[work]
            self._dirty.lasts[work] = None
        kept = set(filter(None, map(_guest, self._lasts)))
        for guest in [guest for guest, counts in self._totals.items() if counts.since < oldest and guest not in kept]:
            del self._totals[guest]
            self._dirty.totals[guest] = None

    def _save(self) -> None:
        with self._saving:
            with self._memory:
                batch, self._dirty = _copied(self._dirty), Batch()
            if not batch or self._file.save(batch, lambda: _joined(self._everything(), batch)):
                return
            with self._memory:
                self._dirty = _joined(batch, self._dirty)

    def _everything(self) -> Batch:
        """All that is known, for a file that was made anew: but not the runs that the old one held."""
        with self._memory:
            return _copied(Batch(dict(self._running), dict(self._lasts), dict(self._totals), dict(self._facts)))


def _guest(work: Work) -> Guest | None:
    """The guest whose backup it is; other work is not counted."""
    if work.kind is not Kind.BACKUP or work.domain is None or work.job is None:
        return None
    return work.domain, work.job, work.repository


def _copied(batch: Batch) -> Batch:
    """What another thread counts on with meanwhile."""
    return replace(batch, totals={guest: copy.deepcopy(counts) for guest, counts in batch.totals.items()})


def _joined(old: Batch, new: Batch) -> Batch:
    """What could not be written, and what has come since."""
    runs = old.runs | new.runs
    for key in list(runs)[: max(0, len(runs) - _UNSAVED_RUNS)]:
        del runs[key]
    return Batch(runs, old.lasts | new.lasts, old.totals | new.totals, old.facts | new.facts)
