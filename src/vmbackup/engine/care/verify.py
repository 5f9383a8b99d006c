"""Is all there that restore points need, and is it what it was when it was written."""

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from vmbackup.engine.care.changes import Either, changed
from vmbackup.engine.care.estate import Estate, Garbage
from vmbackup.engine.care.findings import TABLE, Damage, Findings
from vmbackup.engine.care.scrub import PackReport, scrub
from vmbackup.errors import DamageError, NotFoundError, RepositoryError
from vmbackup.progress import Progress, told
from vmbackup.repository import condemned, damage
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA, digest
from vmbackup.repository.doubt import Doubtful, doubtful
from vmbackup.repository.layout import short_id
from vmbackup.repository.maps import extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.quarantine import Quarantined, quarantined
from vmbackup.repository.records import MapRecord
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.resolve import place_of
from vmbackup.repository.stock import Stock
from vmbackup.repository.stray import is_table
from vmbackup.repository.usage import DiskUsage, PackName, Reached, Usage, load, session_of
from vmbackup.storage_backends import ObjectMissing, StoreError

# Looks at what others change meanwhile: a nightly forget and prune cost one more each.
_MOST_LOOKS = 8

Reading = Literal["decoded", "checksums"]


@dataclass(frozen=True)
class VerifySummary:
    """What was checked (numbers; bytes of the objects) and found.

    `read`: how data was read, None where it was not; `share`: so much of the packs, of 1. `keys` are the objects that
    were looked at, `domains` those of the points, `quarantined` what revoked writers committed since; `doubtful` points
    may be forged; `garbage` is what somebody put under names of the realm's documents, and what costs nothing.
    """

    points: int
    objects: int
    bytes: int
    damaged: tuple[Damage, ...]
    read: Reading | None = None
    share: float | None = None
    keys: frozenset[str] = frozenset()
    domains: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    doubtful: tuple[Doubtful, ...] = ()
    garbage: tuple[Garbage, ...] = ()


def verify(
    repository: Repository,
    points: Sequence[Point] | None,
    read_data: float | None,
    progress: Progress,
    *,
    suspects: Container[str] = (),
    record: bool = True,
) -> VerifySummary:
    """Checks what `points` need, or (None) what all points and the repository itself need.

    `read_data`: None: objects exist, with their sizes, maps and indexes are whole; a share of 1: so much of the packs
    is read and authenticated too. What was found damaged before, by anyone's record or as `suspects` (keys), is always
    read. With `record` what is found is recorded in the repository. Damage is an answer, no error; raises what opening
    the store raises.

    Points may be forgotten, packs repacked and collected meanwhile: before anything is called damaged it is judged
    anew by what is valid then. Raises RepositoryError where that changes again and again, NotFoundError where `points`
    were all forgotten.
    """
    whole: set[str] = set()
    for _ in range(_MOST_LOOKS):
        check = _Verify(repository, read_data, progress, suspects, whole)
        before = check.look(points)
        if check.is_sound:
            return check.summary()
        now = repository.read_points()
        if not check.lost_sight and not changed(before, now):
            if record:
                check.record()
            return check.summary()
        progress.note("restore points were forgotten or packs rewritten meanwhile: what seems damaged is judged anew")
        suspects = Either(suspects, check.damaged)
        if points is not None and not (points := [p for p in points if p.session not in now.forgotten]):
            raise NotFoundError("the restore point was forgotten meanwhile", "'vmbackup list' shows the others")
    raise RepositoryError(
        "the repository changes too fast to tell what is damaged: nothing was recorded",
        "verify again while no 'forget' or 'prune' runs",
    )


class _Verify:
    """One look. `whole`: packs that were read and found whole, in earlier looks too; they are not read again.

    `lost_sight`: a restore point went while it was looked at.
    """

    def __init__(
        self,
        repository: Repository,
        read_data: float | None,
        progress: Progress,
        suspects: Container[str],
        whole: set[str],
    ) -> None:
        self._repository, self._share, self._progress = repository, read_data, progress
        self._suspects, self._whole = suspects, whole
        self._store = repository.store
        self._points: Sequence[Point] = ()
        self._broken: list[tuple[str, ObjectName]] = []
        self.lost_sight = False
        self._found = Findings()
        self._objects: dict[str, int] = {}
        self._quarantined: tuple[Quarantined, ...] = ()
        self._doubtful: tuple[Doubtful, ...] = ()
        self._garbage: tuple[Garbage, ...] = ()

    def look(self, points: Sequence[Point] | None) -> PointList:
        """At these points, or at all and the repository itself; gives what was valid when it began."""
        if points is None:
            found = self._repository.survey(live=True)
            estate = Estate(self._repository, self._found, self._objects)
            estate.check()
            self._garbage = tuple(Garbage(key, problem) for key, problem in sorted(estate.garbage.items()))
            self._vanished(found)
            self._quarantined = tuple(quarantined(self._repository, found))
            self._doubtful = tuple(doubtful(self._repository, found))
            points = found.points
        else:
            found = self._repository.read_points()
            points = [point for point in points if point.session not in found.forgotten]
        self._points = points
        by_group: dict[str, list[Point]] = defaultdict(list)
        for point in points:
            by_group[point.lineage.group].append(point)
        for group, members in by_group.items():
            catalog = self._repository.new_catalog(group)  # what was whole before may be damaged now
            catalog.hold(table.move_table() for table in found.moves if table.lineage.group == group)
            self._group(catalog, members)
        return found

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged, and all was seen."""
        return not self.lost_sight and not self.damaged

    @property
    def damaged(self) -> set[str]:
        """The objects that seem so."""
        return {damage.object for damage in self._found.all()}

    def summary(self) -> VerifySummary:
        """The result."""
        points = self._points
        return VerifySummary(
            len(points),
            len(self._objects),
            sum(self._objects.values()),
            self._found.all(),
            None if self._share is None else "decoded" if self._repository.can_read else "checksums",
            self._share,
            frozenset(self._objects),
            tuple(sorted({point.domain for point in points})),
            self._quarantined,
            self._doubtful,
            self._garbage,
        )

    def _vanished(self, found: PointList) -> None:
        """Points that cannot be read or are gone: their index or their children tell of them. So of tables of moves."""
        for error in found.damaged:
            place = place_of(error)
            if place and is_table(self._repository.new_catalog(place[0].group), *place):
                self._found.add(error.object_key or "", f"{error.message}: {TABLE}")
            else:
                self._found.error(error, [short_id(place[1])] if place else [])
        known = {(p.lineage, p.session): p for p in found.points}
        for point in found.points:
            parent = point.public["parent"]
            session = point.parent
            if parent is None or session is None:
                continue
            key = point.lineage.point(session)
            place = point.lineage, session
            if place not in known:
                if not found.has_ended(point.lineage, session):
                    self._found.add(key, f"is missing: {point.id} was made from it", [short_id(session)])
            elif known[place].digest.hex() != parent["digest"]:
                self._found.add(key, f"is not the one that {point.id} was made from", [known[place].id])

    def _group(self, catalog: Catalog, points: list[Point]) -> None:
        usage = Usage(catalog, strict=True)
        needs: list[tuple[Point, MapRecord, DiskUsage]] = []
        with told(self._progress, "reading maps", sum(point.virtual_bytes for point in points)) as advance:
            for point in points:
                try:
                    self._objects[point.key] = self._store.stat(point.key).size
                except ObjectMissing:
                    self.lost_sight = True
                    continue
                self._documents(point)
                needs += ((point, record, usage.of(point, record)) for record in point.maps)
                advance(point.virtual_bytes)
        with told(self._progress, "checking indexes", None) as advance:
            self._indexes(catalog, usage, needs, advance)
        reached = Reached()
        for point, disk, need in needs if usage.errors else ():
            for error in reached.errors(need):
                self._found.error(error, [point.id], [disk.target])
        if outside := usage.outside():
            self._astray(catalog, usage, needs, outside)
        self._condemned(catalog, usage)
        broken, there = self._sizes(catalog, usage, usage.packs)
        if chosen := self._chosen(catalog, usage, there):
            sizes = {n: self._objects.get(self._key(catalog, usage, n), 0) for n in chosen}
            secrets = Secrets(self._repository, catalog.keys.group) if self._repository.can_read else None
            read = scrub(catalog, secrets, usage.sessions, sizes, self._progress)
            broken |= read
            self._whole.update(self._key(catalog, usage, name) for name in chosen if name not in read)
        self._broken += (
            (catalog.keys.group, ObjectName(n.kind, usage.sessions[n.session].lineage, n.session, n.number))
            for n, report in broken.items()
            if report.slots is None or report.slots
        )
        if broken:
            self._blame(catalog, usage, needs, broken)

    def _condemned(self, catalog: Catalog, usage: Usage) -> None:
        """Lists that nobody who collects has put there. One that cannot be read is told with what is unsigned."""
        names = {ObjectName(n.kind, usage.sessions[n.session].lineage, n.session, n.number) for n in usage.packs}
        with contextlib.suppress(DamageError):
            for text in condemned.astray(condemned.read(self._store, catalog.keys.group), names.__contains__):
                self._progress.note(text)

    def _chosen(self, catalog: Catalog, usage: Usage, names: set[PackName]) -> list[PackName]:
        """The packs to read: all or a random share, and what was found damaged before."""
        records = damage.read(self._store, catalog.keys.group).values()
        recorded = {PackName(r.session, r.kind, r.number) for r in records}
        chosen = {n for n in names if n in recorded or self._key(catalog, usage, n) in self._suspects}
        rest = sorted(names - chosen)
        if self._share is not None and rest:
            unread = [name for name in rest if self._key(catalog, usage, name) not in self._whole]
            wanted = max(1, round(len(rest) * self._share)) - (len(rest) - len(unread))
            chosen.update(random.sample(unread, min(len(unread), max(0, wanted))))
        return sorted(chosen)

    def _documents(self, point: Point) -> None:
        """The private part; its signature was checked with the point's."""
        if not self._repository.can_read:
            return
        try:
            self._repository.documents(point)
        except DamageError as error:
            self._found.error(error, [point.id])

    def _indexes(
        self,
        catalog: Catalog,
        usage: Usage,
        needs: list[tuple[Point, MapRecord, DiskUsage]],
        advance: Callable[[int], None],
    ) -> None:
        """Index roots and their parts, of every session that a table names."""
        for ref in usage.sessions.values():
            lineage = catalog.lineage(ref)
            key = lineage.index(ref.session, ref.root)
            bad: dict[str, str] = {}
            try:
                root = catalog.root(ref)
                with contextlib.suppress(ObjectMissing):  # a repair made it again
                    self._objects[key] = self._store.stat(key).size
                for number, (size, part_digest) in root.parts.items():
                    part = lineage.index(ref.session, number)
                    problem = self._part_problem(part, size, part_digest)
                    if problem and catalog.index_copy(ref, part_digest) is None:
                        bad[part] = problem
            except DamageError as error:
                bad[key] = error.message
            advance(self._objects.get(key, 0))
            for name, problem in bad.items():
                reached = Reached({n for n in usage.packs if n.session == ref.session})
                users = [(p, d) for p, d, need in needs if reached.packs(need)]
                self._found.add(name, problem, [p.id for p, _ in users], [d.target for _, d in users])

    def _part_problem(self, key: str, size: int, expected: bytes) -> str:
        try:
            found = self._store.stat(key).size
        except ObjectMissing:
            return "is missing"
        self._objects[key] = found
        if found != size:
            return f"has {found} bytes instead of {size}"
        if (self._share is not None or key in self._suspects) and digest(fetch(self._store, key)) != expected:
            return "is damaged: its digest differs"
        return ""

    def record(self) -> None:
        """So that the next backups read from the guest again what lies in damaged packs, and store it anew."""
        try:
            for group, name in self._broken:
                damage.record(self._store, group, [name])
        except StoreError as error:
            self._progress.note(f"what was found cannot be recorded, so backups go on to build on it: {error}")

    def _sizes(
        self, catalog: Catalog, usage: Usage, wanted: set[PackName]
    ) -> tuple[dict[PackName, PackReport], set[PackName]]:
        """Packs that are missing or of another size than their index says; and those that are as it says."""
        broken: dict[PackName, PackReport] = {}
        there: set[PackName] = set()
        stock = Stock(catalog)
        for name in sorted(wanted):  # a session's together: its root is read once
            ref = usage.sessions[name.session]
            try:
                entry = catalog.entry(ref, name.kind, name.number)
            except DamageError:
                continue  # told with the index
            if problem := stock.problem(ref, entry):
                broken[name] = PackReport(problem, None)
            else:
                there.add(name)
            self._objects[self._key(catalog, usage, name)] = stock.size(ref, name.kind, name.number) or 0
        return broken, there

    def _key(self, catalog: Catalog, usage: Usage, name: PackName) -> str:
        return catalog.lineage(usage.sessions[name.session]).pack(name.kind, name.session, name.number)

    def _astray(
        self,
        catalog: Catalog,
        usage: Usage,
        needs: list[tuple[Point, MapRecord, DiskUsage]],
        outside: dict[PackName, int],
    ) -> None:
        """Points whose maps name slots that packs have not: their writer lied, or its memory did."""
        reached = Reached(outside)
        for point, disk, need in needs:
            for name in sorted(reached.packs(need)):
                if _needs(catalog, point, disk, name, partial(_is_beyond, outside[name])):
                    key = self._key(catalog, usage, name)
                    self._found.add(point.key, f"has a map that points outside of {key}", [point.id], [disk.target])

    def _blame(
        self,
        catalog: Catalog,
        usage: Usage,
        needs: list[tuple[Point, MapRecord, DiskUsage]],
        broken: dict[PackName, PackReport],
    ) -> None:
        """Who suffers: a disk that needs one of the broken slots."""
        for name, report in broken.items():
            self._found.add(self._key(catalog, usage, name), report.problem)
        reached = Reached(broken)
        for point, disk, need in needs:
            for name in sorted(reached.packs(need)):
                if _suffers(catalog, point, disk, name, broken[name]):
                    self._found.add(self._key(catalog, usage, name), broken[name].problem, [point.id], [disk.target])


def _suffers(catalog: Catalog, point: Point, disk: MapRecord, name: PackName, report: PackReport) -> bool:
    """Whether a disk needs one of the slots that are damaged."""
    slots = report.slots
    if slots is None or name.kind != DATA:
        return slots is None  # of single nodes the walk of the maps has told
    return _needs(catalog, point, disk, name, lambda slot, n: any(slot <= broken < slot + n for broken in slots))


def _is_beyond(last: int, slot: int, slots: int) -> bool:
    return slot + slots > last


def _needs(catalog: Catalog, point: Point, disk: MapRecord, name: PackName, wanted: Callable[[int, int], bool]) -> bool:
    """Whether any run of a disk's map in that pack is `wanted(first slot, slots)`."""
    try:
        return any(
            (place.ref.session, place.pack) == (name.session, name.number) and wanted(place.slot, place.slots)
            for e in extents(disk.root, lambda ref, first: load(catalog, point, disk, ref, first))
            if e.session != ZERO
            for place in catalog.places(session_of(point, e.session), DATA, e.pack, e.slot, e.chunks)
        )
    except DamageError:
        return True
