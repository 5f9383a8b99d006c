"""Collection: deletes what no restore point needs, beside any writers (docs/repository-format.md, section 11).

No locks and no clocks: the rules C1 to C9 stand in the document, each with what goes wrong without it. Time only
decides whom to take for dead, and a wrong guess costs that run, never data.
"""

import contextlib
import time
from collections.abc import Callable, Container, Iterator

from vmbackup.errors import AccessError, DamageError, UsageError
from vmbackup.progress import SILENT, Progress, told
from vmbackup.repository import condemned, damage, drills, frames, locks, stray, tombstones
from vmbackup.repository.condemned import INDEX, TABLE, ObjectName
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import ORIGIN_BYTES, Lineage
from vmbackup.repository.moves import PIN_FIELD
from vmbackup.repository.moving import Proof
from vmbackup.repository.needs import Needs
from vmbackup.repository.processes import is_alive
from vmbackup.repository.pruned import DEAD_AFTER, WAIT, PruneOptions, PruneReport
from vmbackup.repository.repack import affordable, repack, victims
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.session import read_pin
from vmbackup.storage_backends import DeleteRefused, Entry, ObjectExists, ObjectMissing, Store

__all__ = ["DEAD_AFTER", "WAIT", "PruneOptions", "PruneReport", "prune"]

_POLL = 2.0


def prune(
    repository: Repository,
    options: PruneOptions,
    *,
    progress: Progress = SILENT,
    sleep: Callable[[float], None] = time.sleep,
) -> PruneReport:
    """Collects all groups, a writer's key its own.

    Raises AccessError, and DamageError where what is needed cannot be known: then nothing is deleted.
    """
    repository.check_may_collect()
    probe = repository.store.probe()
    if not probe.put_if_absent and not options.exclusive:
        raise UsageError(
            "this store overwrites objects: while anything else writes, a prune could lose data",
            "stop all backups into it, then add --exclusive",
        )
    if not probe.deletes and not options.dry_run:
        raise AccessError(
            f"this access key may delete nothing from {repository.store.url}", "prune with an access key that may"
        )
    report = PruneReport()
    for group in repository.groups():
        cycle = _Cycle(repository, group, options, time.time() + probe.clock_skew, report, progress, sleep)
        cycle.run()
        if cycle.repack(probe.free_bytes):
            report.kept_bytes -= cycle.kept_bytes
            _Cycle(repository, group, options, time.time() + probe.clock_skew, report, progress, sleep).run()
    if not options.dry_run:
        _sweep(repository.store, time.time() + probe.clock_skew - locks.DAY)
    return report


def _sweep(store: Store, before: float) -> None:
    """Deletes what was put to try the store by who may not delete."""
    for entry in store.list("probe/"):
        if entry.modified < before:
            with contextlib.suppress(DeleteRefused):
                store.delete(entry.key)


class _Cycle:
    """One cycle of one group."""

    def __init__(
        self,
        repository: Repository,
        group: str,
        options: PruneOptions,
        now: float,
        report: PruneReport,
        progress: Progress,
        sleep: Callable[[float], None],
    ) -> None:
        self._repository, self._store, self._group = repository, repository.store, group
        self._options, self._now, self._report = options, now, report
        self._progress, self._sleep = progress, sleep
        self._catalog = repository.new_catalog(group)
        self._needs = Needs(self._catalog)
        self._tables: set[bytes] = set()
        self._proof = Proof(repository, self._catalog)
        self._present: dict[ObjectName, int] = {}
        self._drills: list[Entry] = []
        self.kept_bytes = 0
        self._lock_seconds = locks.seconds(repository.config.object_lock_days)
        self._locked: dict[ObjectName, float] = {}

    def run(self) -> None:
        """C1 to C9."""
        if not self._options.dry_run:
            self._end_dead()
        stale = condemned.read(self._store, self._group)
        self._drills = list(self._store.list(f"drills/{self._group}/"))  # before the points that they are of
        listed = self._list()
        found = self._read()
        self._refuse_unknown(listed, found)
        for text in condemned.astray(stale, self._needs.__contains__):
            self._progress.note(text)
        listed |= {ObjectName(TABLE, t.lineage.id, t.session, 0): len(t.moved) for t in found.moves}
        over = {n: size for n, size in listed.items() if found.has_ended(n.place(self._group), n.session)}
        candidates = {name: size for name, size in over.items() if name not in self._needs}
        if not self._options.dry_run:
            for name in self._unproved(candidates):
                candidates.pop(name, None)
        for name in (healers := stray.healers(self._catalog, self._needs, listed, candidates)):
            self._needs.keep(name)
            candidates.pop(name, None)
        if healers:
            self._progress.note(f"{len(healers)} objects are kept, for they hold what is lost: run 'vmbackup repair'")
        for name in candidates.keys() & self._locked.keys():  # nobody waits for that: the next cycle decides anew
            self._report.locked[name.key(self._group)] = candidates.pop(name), self._locked[name]
        taken = dict(sorted(candidates.items())[: condemned.MOST])
        self._count(listed, candidates, found)
        if self._options.dry_run:
            self._present = {name: size for name, size in listed.items() if name not in candidates}
            return
        deleted = self._collect(taken) if taken else set()
        present = listed.keys() - deleted
        self._present = {name: size for name, size in listed.items() if name in present}
        records = damage.read(self._store, self._group)
        spent = [key for key, name in records.items() if name not in present and name not in self._needs]
        self._tidy(found, spent + [key for key, names in stale.items() if names.isdisjoint(present)])

    def _read(self) -> PointList:
        """C2 and C6: the valid points, and what they need. Raises DamageError where one cannot be read."""
        found = self._repository.read_points(group=self._group)
        for error in (*found.damaged, *self._repository.unjudged()):
            raise self._blind(error)
        tables = {table.session for table in found.moves}
        if tables != self._tables:
            self._tables = tables
            self._catalog.hold(table.move_table() for table in found.moves)
            self._needs.walk_again()
        self._trash_partials(found)
        by_history = sorted(found.committed, key=lambda p: (p.lineage.id, p.session))  # they share most of their maps
        with told(self._progress, "reading maps", sum(point.virtual_bytes for point in by_history)) as advance:
            for point in by_history:
                try:
                    self._needs.add(point)
                except DamageError as error:
                    if not self._was_forgotten(point.session):
                        raise self._blind(error) from error
                    found.forgotten.add(point.session)
                advance(point.virtual_bytes)
        return found

    def _unproved(self, names: Container[ObjectName]) -> set[ObjectName]:
        """Old packs among `names` whose moved slots are not what they were where they lie now: they stay."""
        kept = set()
        for kind, ref, pack, slot, place in self._needs.moved:
            left = {ObjectName(kind, was.lineage, was.session, number) for was, number in place.left}
            if any(name in names for name in left) and not self._proof.holds(ref, kind, pack, slot, place):
                kept |= left
                key = self._catalog.lineage(place.ref).pack(kind, place.ref.session, place.pack)
                self._progress.note(f"{key} does not hold what was moved into it: the old packs are kept")
        for name in kept:
            self._needs.keep(name)
        return kept

    def repack(self, free_bytes: int | None) -> bool:
        """Rewrites packs that are mostly dead, in the reading of `run`. Whether any was."""
        options = self._options
        if not options.repack_below or self._report.waited_for:
            return False
        sizes = {name: size for name, size in self._present.items() if name not in self._locked}
        found = victims(self._needs, sizes, self._catalog, options.repack_below)
        found = affordable(found, None if free_bytes is None else free_bytes // 2)
        report = self._report.repacked
        if options.dry_run or not found:
            live, dead = sum(victim.live_bytes for victim in found), sum(victim.dead_bytes for victim in found)
            report.add(len(found), live, dead)
            return False

        def read_needs() -> Needs:
            self._read()
            return self._needs

        done = repack(self._repository, self._group, found, read_needs, options.host, self._progress)
        report.add(done.packs, done.copied_bytes, done.freed_bytes)
        return done.packs > 0

    def _was_forgotten(self, session: bytes) -> bool:
        """Whether another one forgot it, and collected it, since it was read."""
        return session in self._repository.read_points(group=self._group).forgotten

    def _blind(self, error: DamageError) -> DamageError:
        return DamageError(
            f"nothing was collected, for what is still needed cannot be known: {error.message}",
            "repair it, or forget the restore points that suffer ('vmbackup verify' names them)",
            object_key=error.object_key,
        )

    def _list(self) -> dict[ObjectName, int]:
        listed: dict[ObjectName, int] = {}
        for folder in (DATA, META, INDEX):
            for entry in self._store.list(f"{folder}/{self._group}/"):
                name = ObjectName.parse(entry.key)
                listed[name] = entry.size
                until = entry.modified + self._lock_seconds  # at least: points that are made later extend it
                if self._lock_seconds and until > self._now:
                    self._locked[name] = until
        return listed

    def _refuse_unknown(self, listed: dict[ObjectName, int], found: PointList) -> None:
        """A session with an index, no commit and no pin has lost its restore point: what that needed is not known.

        But of a copy whose point stands here as another copy: it is ended, so that it can never commit any more.
        """
        pinned = {(lineage, session) for session, lineage, _ in self._pins()}
        copied = found.copied
        for name in listed:
            lineage = name.place(self._group)
            ended = found.has_ended(lineage, name.session) or (lineage, name.session) in pinned
            if name.kind == INDEX and not ended:
                key = lineage.point(name.session)
                if self._repository.exists(key) or self._was_forgotten(name.session):
                    continue
                if (lineage, name.session[:ORIGIN_BYTES]) in copied:
                    if not self._options.dry_run:
                        with contextlib.suppress(ObjectExists):
                            self._store.put(key, frames.preamble(b"ABRT"))
                            found.ended.add((lineage, name.session))
                else:
                    raise self._blind(DamageError(f"{key} is missing: its index is there", object_key=key))

    def _pins(self) -> Iterator[tuple[bytes, Lineage, Entry]]:
        for entry in self._store.list(f"sessions/{self._group}/"):
            _, _, lineage, session = entry.key.split("/")
            yield bytes.fromhex(session), Lineage(self._group, bytes.fromhex(lineage)), entry

    def _open(self) -> dict[bytes, tuple[Lineage, Entry]]:
        """The pinned sessions that may still commit."""
        dead = tombstones.dead(self._repository, self._group)
        return {
            session: (lineage, entry)
            for session, lineage, entry in self._pins()
            if session not in dead and not self._repository.exists(lineage.point(session))
        }

    def _end_dead(self) -> None:
        """C1: also where nothing may go, or the packs of a dead first run would never be candidates."""
        for session, (lineage, entry) in self._open().items():
            self._end_if_dead(session, lineage, entry)

    def _end_if_dead(self, session: bytes, lineage: Lineage, entry: Entry) -> None:
        age = self._now - entry.modified
        if age <= self._options.dead_after and not self._is_dead_mover(session, lineage):
            return
        try:
            self._store.put(lineage.point(session), frames.preamble(b"ABRT"))
        except ObjectExists:
            return  # it has committed
        self._report.ended_sessions += 1
        self._progress.note(f"ended a session that was open for {age / 3600:.0f} h: {entry.key}")

    def _is_dead_mover(self, session: bytes, lineage: Lineage) -> bool:
        """Whether it is a repacking of this host whose process is gone."""
        try:
            pin = read_pin(self._repository, lineage, session, self._store.get(lineage.pin(session)))
        except (ObjectMissing, DamageError):
            return False
        return pin["host"] == self._options.host and PIN_FIELD in pin and not is_alive(pin[PIN_FIELD])

    def _trash_partials(self, found: PointList) -> None:
        """Forgets partials whose history has a later restore point: that run found their chunks again."""
        newest: dict[Lineage, bytes] = {}
        for point in found.points:
            newest[point.lineage] = max(point.session, newest.get(point.lineage, b""))
        for partial in [p for p in found.partials if p.session < newest.get(p.lineage, b"")]:
            if not self._options.dry_run:
                tombstones.forget(self._repository, partial.lineage, partial.session)
            found.partials.remove(partial)
            found.forgotten.add(partial.session)

    def _count(self, listed: dict[ObjectName, int], candidates: dict[ObjectName, int], found: PointList) -> None:
        report = self._report
        report.points += len(found.forgotten & {name.session for name in listed})
        report.objects += len(candidates)
        report.bytes += sum(candidates.values())
        self.kept_bytes = sum(listed.values()) - sum(candidates.values())
        report.kept_bytes += self.kept_bytes

    def _collect(self, names: dict[ObjectName, int]) -> set[ObjectName]:
        """Deletes these objects, but those that have come to be needed; gives what is gone."""
        key = condemned.put(self._store, self._group, names)  # C3
        try:
            waiting = self._wait(self._open())  # C4, C5: sessions are listed only after the list stands
            if waiting:
                self._report.waited_for += waiting
                self._leave(names)
                return set()
            self._read()  # C6
            self._unproved(names)
            kept = [name for name in names if name in self._needs]
            self._leave({name: names.pop(name) for name in kept})
            tables = [name for name in names if name.kind == TABLE]
            for name in tables:  # C7
                tombstones.forget(self._repository, name.place(self._group), name.session)
            self._delete(names)
            return set(names)
        finally:
            self._store.delete(key)  # C8: nothing is deleted after it, whatever happened

    def _delete(self, names: dict[ObjectName, int]) -> None:
        """All but tables; takes out what is locked longer than since it was put, for a later point needed it."""
        with told(self._progress, "deleting", sum(names.values())) as advance:
            for name in [name for name in names if name.kind != TABLE]:
                key = name.key(self._group)
                advance(names[name])
                try:
                    self._store.delete(key)
                except DeleteRefused as error:
                    if error.until is None:
                        raise
                    self._keep({name: names[name]})
                    self._report.locked[key] = names.pop(name), error.until

    def _leave(self, names: dict[ObjectName, int]) -> None:
        self._keep(names)
        report, size = self._report, sum(names.values())
        report.left_objects, report.left_bytes = report.left_objects + len(names), report.left_bytes + size

    def _keep(self, names: dict[ObjectName, int]) -> None:
        """Counts what was to go as kept."""
        report, size = self._report, sum(names.values())
        report.objects, report.bytes = report.objects - len(names), report.bytes - size
        report.kept_bytes, self.kept_bytes = report.kept_bytes + size, self.kept_bytes + size

    def _wait(self, waiting: dict[bytes, tuple[Lineage, Entry]]) -> list[str]:
        """Until these sessions have ended; gives the pins of those that have not in time."""
        waited = 0.0
        while True:
            dead = tombstones.dead(self._repository, self._group) if waiting else set()
            waiting = {
                session: (lineage, entry)
                for session, (lineage, entry) in waiting.items()
                if session not in dead and not self._repository.exists(lineage.point(session))
            }
            if not waiting or waited >= self._options.wait:
                return sorted(entry.key for _, entry in waiting.values())
            if waited == 0:
                self._progress.note(f"waiting for {len(waiting)} running backups to end")
            self._sleep(_POLL)
            waited, self._now = waited + _POLL, self._now + _POLL
            for session, (lineage, entry) in waiting.items():
                self._end_if_dead(session, lineage, entry)

    def _tidy(self, found: PointList, stale: list[str]) -> None:
        """C9: pins of ended sessions, forgotten points, lists and records whose objects are gone, old drills."""
        for key in stale:
            self._store.delete(key)
        for session, lineage, entry in self._pins():
            if found.has_ended(lineage, session):
                self._store.delete(entry.key)
        for (lineage, session), may_go in tombstones.bury(self._repository, self._group).items():
            with contextlib.suppress(DeleteRefused):  # locked: its trash stays, so that it is tried again
                self._store.delete(lineage.point(session))
                if may_go:
                    self._store.delete(lineage.trash(session))
        points = {(point.lineage, point.session) for point in (*found.points, *found.twins)}
        drills.collect(self._repository, self._drills, points)
