"""Is all there that restore points need, and is it what it was when it was written."""

import contextlib
import random
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vmbackup.engine import marks
from vmbackup.engine.findings import Damage, Findings
from vmbackup.engine.scrub import PackReport, scrub
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.progress import Progress, told
from vmbackup.repository import damage, frames, keys
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA, digest
from vmbackup.repository.layout import short_id
from vmbackup.repository.maps import extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import DiskRecord, Point
from vmbackup.repository.quarantine import Quarantined, quarantined
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.stock import Stock
from vmbackup.repository.usage import DiskUsage, PackName, Reached, Usage, load, session_of
from vmbackup.storage_backends import ObjectMissing, StoreError

Reading = Literal["decoded", "checksums"]


@dataclass(frozen=True)
class VerifySummary:
    """What was checked (numbers; bytes of the objects) and found.

    `read`: how data was read, None where it was not; `share`: so much of the packs, of 1. `keys` are the objects that
    were looked at, `domains` those of the points, `quarantined` what revoked writers committed since.
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
    """
    check = _Verify(repository, read_data, progress, suspects, record=record)
    if points is None:
        found = repository.survey(live=True)
        check.repository_itself()
        check.vanished(found)
        check.quarantined(found)
        points = found.points
    else:
        check.learn(points)
    check.points(points)
    return check.summary(points)


class _Verify:
    def __init__(
        self,
        repository: Repository,
        read_data: float | None,
        progress: Progress,
        suspects: Container[str],
        *,
        record: bool,
    ) -> None:
        self._repository, self._share, self._progress = repository, read_data, progress
        self._suspects, self._records = suspects, record
        self._store = repository.store
        self._found = Findings()
        self._objects: dict[str, int] = {}
        self._quarantined: tuple[Quarantined, ...] = ()

    def summary(self, points: Sequence[Point]) -> VerifySummary:
        """The result."""
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
        )

    def repository_itself(self) -> None:
        """Config, copies, key slots, groups, enrolments; pins, tombstones, lists, records."""
        verify_key = self._repository.verify_key
        documents = {"config/": b"CONF", "config.copy/": b"CONF", "groups/": b"GRUP"}
        for prefix, kind in documents.items():
            for key, data in self._read_all(prefix):
                self._try(key, lambda k=key, d=data, t=kind: check_place(frames.open_document(d, t, k, verify_key), k))
        for key, data in self._read_all("writers/"):
            self._try(key, lambda k=key, d=data: self._repository.check_enrolment(k, d))
        for error in self._repository.unjudged():
            self._found.error(error)
        for key, data in self._read_all("keys/"):
            self._try(key, lambda k=key, d=data: keys.read_slot(d, k))
        self._pairs()
        for entry, problem in marks.checked(self._repository):
            self._objects[entry.key] = entry.size
            if problem:
                self._found.add(entry.key, problem.message)

    def _pairs(self) -> None:
        """What is written twice, or must be there."""
        for number in range(1, self._repository.config.version + 1):
            for key in (f"config/{number}", f"config.copy/{number}"):
                self._must_exist(key)
        for group in {*self._repository.groups(), "default"}:
            self._must_exist(f"groups/{group}/1")
            self._must_exist(f"groups/{group}/2")
        self._must_exist(f"writers/{self._repository.writer.id.hex()}")
        for slot in self._repository.config.slots:
            self._must_exist(f"keys/{slot}")

    def _must_exist(self, key: str) -> None:
        if key not in self._objects:
            self._found.add(key, "is missing")

    def _read_all(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        for entry in self._store.list(prefix):
            self._objects[entry.key] = entry.size
            yield entry.key, fetch(self._store, entry.key)

    def _try(self, key: str, check: object) -> None:
        try:
            check()  # type: ignore[operator]
        except DamageError as error:
            self._found.error(error)
        except VmbackupError as error:
            self._found.add(key, error.message)

    def vanished(self, found: PointList) -> None:
        """Points that cannot be read or are gone: their index or their children tell of them."""
        for error in found.damaged:
            name = (error.object_key or "").rsplit("/", 1)[-1]
            self._found.error(error, [name[12:20]])
        known = {p.session: p for p in found.points}
        for point in found.points:
            parent = point.public["parent"]
            session = point.parent
            if parent is None or session is None:
                continue
            key = point.lineage.point(session)
            if session not in known:
                if session not in found.ended:
                    self._found.add(key, f"is missing: {point.id} was made from it", [short_id(session)])
            elif known[session].digest.hex() != parent["digest"]:
                self._found.add(key, f"is not the one that {point.id} was made from", [known[session].id])

    def _catalog(self, group: str) -> Catalog:
        """With nothing cached yet: what was whole before may be damaged now."""
        catalog = self._repository.new_catalog(group)
        catalog.use(self._repository.catalog(group).moves.tables)
        return catalog

    def quarantined(self, found: PointList) -> None:
        """What does not count, and is no damage."""
        self._quarantined = tuple(quarantined(self._repository, found))

    def learn(self, points: Sequence[Point]) -> None:
        """The tables of moves that may concern these points."""
        for group, lineage in {(p.lineage.group, ref.lineage) for p in points for ref in p.table.values()}:
            self._repository.catalog(group).learn(lineage)

    def points(self, points: Sequence[Point]) -> None:
        """All that these points need."""
        by_group: dict[str, list[Point]] = defaultdict(list)
        for point in points:
            by_group[point.lineage.group].append(point)
        for group, members in by_group.items():
            self._group(self._catalog(group), members)

    def _group(self, catalog: Catalog, points: list[Point]) -> None:
        usage = Usage(catalog, strict=True)
        needs: list[tuple[Point, DiskRecord, DiskUsage]] = []
        with told(self._progress, "reading maps", sum(point.virtual_bytes for point in points)) as advance:
            for point in points:
                self._objects[point.key] = self._store.stat(point.key).size
                self._documents(point)
                needs += ((point, disk, usage.of(point, disk)) for disk in point.disks)
                advance(point.virtual_bytes)
        with told(self._progress, "checking indexes", None) as advance:
            self._indexes(catalog, usage, needs, advance)
        reached = Reached()
        for point, disk, need in needs if usage.errors else ():
            for error in reached.errors(need):
                self._found.error(error, [point.id], [disk.target])
        if outside := usage.outside():
            self._astray(catalog, usage, needs, outside)
        broken, there = self._sizes(catalog, usage, usage.packs)
        if chosen := self._chosen(catalog, usage, there):
            sizes = {n: self._objects.get(self._key(catalog, usage, n), 0) for n in chosen}
            secrets = Secrets(self._repository, catalog.keys.group) if self._repository.can_read else None
            read = scrub(catalog, secrets, usage.sessions, sizes, self._progress)
            broken |= read
        if self._records:
            self._record(catalog, usage, broken)
        if broken:
            self._blame(catalog, usage, needs, broken)

    def _chosen(self, catalog: Catalog, usage: Usage, names: set[PackName]) -> list[PackName]:
        """The packs to read: all or a random share, and what was found damaged before."""
        records = damage.read(self._store, catalog.keys.group).values()
        recorded = {PackName(r.session, r.kind, r.number) for r in records}
        chosen = {n for n in names if n in recorded or self._key(catalog, usage, n) in self._suspects}
        rest = sorted(names - chosen)
        if self._share is not None and rest:
            chosen.update(rest if self._share >= 1 else random.sample(rest, max(1, round(len(rest) * self._share))))
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
        needs: list[tuple[Point, DiskRecord, DiskUsage]],
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

    def _record(self, catalog: Catalog, usage: Usage, broken: dict[PackName, PackReport]) -> None:
        """So that the next backups read from the guest again what lies in them, and store it anew."""
        packs = [
            ObjectName(n.kind, usage.sessions[n.session].lineage, n.session, n.number)
            for n, report in broken.items()
            if report.slots is None or report.slots
        ]
        try:
            damage.record(self._store, catalog.keys.group, packs)
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
        needs: list[tuple[Point, DiskRecord, DiskUsage]],
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
        needs: list[tuple[Point, DiskRecord, DiskUsage]],
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


def check_place(document: dict[str, Any], key: str) -> None:
    """Whether a signed document is the one of its name. Raises DamageError."""
    told = document.get("writer", document.get("number", document.get("version")))
    if str(told) != key.rpartition("/")[2]:
        raise DamageError(f"{key} does not belong where it lies", object_key=key)


def _suffers(catalog: Catalog, point: Point, disk: DiskRecord, name: PackName, report: PackReport) -> bool:
    """Whether a disk needs one of the slots that are damaged."""
    slots = report.slots
    if slots is None or name.kind != DATA:
        return slots is None  # of single nodes the walk of the maps has told
    return _needs(catalog, point, disk, name, lambda slot, n: any(slot <= broken < slot + n for broken in slots))


def _is_beyond(last: int, slot: int, slots: int) -> bool:
    return slot + slots > last


def _needs(
    catalog: Catalog, point: Point, disk: DiskRecord, name: PackName, wanted: Callable[[int, int], bool]
) -> bool:
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
