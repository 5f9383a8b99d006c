"""Which packs restore points need: maps walked once, however many points share their nodes."""

import contextlib
from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.nodes import ZERO, Node, Ref
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord


class PackName(NamedTuple):
    """A pack of a session, wherever it lies."""

    session: bytes
    kind: str
    number: int


@dataclass(eq=False)
class DiskUsage:
    """What a node of a map needs: its own pack and those that its runs name, the nodes below, its own errors.

    A disk's is that of its root. Nodes are shared by disks and points, so what hangs together is asked of Usage.
    """

    packs: set[PackName] = field(default_factory=set)
    below: list["DiskUsage"] = field(default_factory=list)
    errors: list[DamageError] = field(default_factory=list)


class Usage:
    """The packs of disks. One for all points of a group: a node that was walked is not walked again.

    Nodes are known by their place: equal ones of two histories name different sessions by the same numbers.
    `packs` are those of all disks asked for so far, `errors` what kept their nodes from being read.
    """

    def __init__(self, catalog: Catalog, *, strict: bool = False) -> None:
        """`strict`: for `outside` too."""
        self._catalog, self._strict = catalog, strict
        self._ends: dict[PackName, int] = {}
        self._known: dict[tuple[bytes, int, int], DiskUsage] = {}
        self.sessions: dict[bytes, SessionRef] = {}
        self.packs: set[PackName] = set()
        self.errors: list[DamageError] = []

    def of(self, point: Point, disk: MapRecord) -> DiskUsage:
        """What a disk needs."""
        for ref in point.table.values():
            self.sessions.setdefault(ref.session, ref)
        return self._walk(point, disk, disk.root, 0)

    def _walk(self, point: Point, disk: MapRecord, ref: Ref, first: int) -> DiskUsage:
        if ref.session == ZERO:
            return DiskUsage()
        try:
            place = session_of(point, ref.session).session, ref.pack, ref.slot
        except DamageError as error:
            self.errors.append(error)
            return DiskUsage(errors=[error])
        known = self._known.get(place)
        if known is None:
            known = self._known[place] = self._read(point, disk, ref, first)
            self.packs |= known.packs
            self.errors += known.errors
        return known

    def _read(self, point: Point, disk: MapRecord, ref: Ref, first: int) -> DiskUsage:
        usage = DiskUsage()
        try:
            usage.packs |= self._places(point, META, ref.session, ref.pack, ref.slot, 1)
            node = load(self._catalog, point, disk, ref, first)
            if self._catalog.moves:
                for chunks, number, pack, slot in node.runs():
                    usage.packs |= self._places(point, DATA, number, pack, slot, chunks)
            else:
                for number, pack in node.data_packs():
                    usage.packs.add(PackName(session_of(point, number).session, DATA, pack))
            for (number, pack), end in node.ends().items() if self._strict else ():
                name = PackName(session_of(point, number).session, DATA, pack)
                self._ends[name] = max(end, self._ends.get(name, 0))
            for child, at in node.children():
                usage.below.append(self._walk(point, disk, child, at))
        except DamageError as error:
            usage.errors.append(error)
        return usage

    def outside(self) -> dict[PackName, int]:
        """The packs of which runs name slots that, by the index, they have not; with the slots that they have."""
        found: dict[PackName, int] = {}
        for name in sorted(self._ends):  # a session's together: its root is read once
            if self._catalog.moves.concerns(name.session):
                continue  # the old packs, and what told of them, may be gone
            with contextlib.suppress(DamageError):  # told with the index
                entry = self._catalog.root(self.sessions[name.session]).packs.get((name.kind, name.number))
                slots = entry.slots if entry else 0
                if self._ends[name] > slots:
                    found[name] = slots
        return found

    def _places(self, point: Point, kind: str, session: int, pack: int, slot: int, slots: int) -> set[PackName]:
        """Where slots that a map names lie now."""
        places = self._catalog.places(session_of(point, session), kind, pack, slot, slots)
        for place in places:
            self.sessions.setdefault(place.ref.session, place.ref)
        return {PackName(place.ref.session, kind, place.pack) for place in places}


class Reached:
    """Which of some packs, and which errors, disks reach: each shared node is looked into once."""

    def __init__(self, packs: Container[PackName] = ()) -> None:
        self._asked = packs
        self._known: dict[int, tuple[frozenset[PackName], tuple[DamageError, ...]]] = {}

    def packs(self, usage: DiskUsage) -> frozenset[PackName]:
        """Those of the packs that a disk needs."""
        return self._of(usage)[0]

    def errors(self, usage: DiskUsage) -> tuple[DamageError, ...]:
        """What keeps nodes of its map from being read."""
        return self._of(usage)[1]

    def _of(self, usage: DiskUsage) -> tuple[frozenset[PackName], tuple[DamageError, ...]]:
        found = self._known.get(id(usage))
        if found is None:
            below = [self._of(node) for node in usage.below]
            packs = frozenset(name for name in usage.packs if name in self._asked).union(*(b[0] for b in below))
            errors = dict.fromkeys(error for part in (usage.errors, *(b[1] for b in below)) for error in part)
            found = self._known[id(usage)] = packs, tuple(errors)
        return found


def session_of(point: Point, number: int) -> SessionRef:
    """A session by its number in a point's table. Raises DamageError."""
    try:
        return point.table[number]
    except KeyError:
        raise DamageError(f"{point.key} contradicts its maps", object_key=point.key) from None


def load(catalog: Catalog, point: Point, disk: MapRecord, ref: Ref, first: int) -> Node:
    """A node of a disk's map. Raises DamageError."""
    return catalog.node(ref, first, session_of(point, ref.session), disk.chunk_size)


def freed_bytes(catalog: Catalog, point: Point, others: list[Point]) -> int:
    """Bytes of objects that only `point` needs, of all points of its group. Raises DamageError."""
    own, kept = Usage(catalog), Usage(catalog)
    _walk_all(own, [point])
    _walk_all(kept, [other for other in others if other.session != point.session])
    freed = own.packs - kept.packs
    return sum(catalog.entry(own.sessions[p.session], p.kind, p.number).size for p in freed)


def _walk_all(usage: Usage, points: list[Point]) -> None:
    for point in points:
        for record in point.maps:
            usage.of(point, record)
    if usage.errors:
        raise usage.errors[0]
