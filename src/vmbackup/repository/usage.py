"""Which packs restore points need: maps walked once, however many points share their nodes."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.nodes import ZERO, Node, Ref, Run
from vmbackup.repository.points import DiskRecord, Point


class PackName(NamedTuple):
    """A pack of a session, wherever it lies."""

    session: bytes
    kind: str
    number: int


@dataclass
class DiskUsage:
    """A disk of a point: the packs that it needs, and the errors of map nodes that cannot be read."""

    packs: set[PackName] = field(default_factory=set)
    errors: list[DamageError] = field(default_factory=list)


class Usage:
    """The packs of disks. One for all points of a group: a node that was walked is not walked again.

    Nodes are known by their place: equal ones of two histories name different sessions by the same numbers.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._known: dict[tuple[bytes, int, int], DiskUsage] = {}
        self.sessions: dict[bytes, SessionRef] = {}

    def of(self, point: Point, disk: DiskRecord) -> DiskUsage:
        """What a disk needs."""
        for ref in point.table.values():
            self.sessions.setdefault(ref.session, ref)
        return self._walk(point, disk, disk.root, 0)

    def _walk(self, point: Point, disk: DiskRecord, ref: Ref, first: int) -> DiskUsage:
        if ref.session == ZERO:
            return DiskUsage()
        try:
            place = session_of(point, ref.session).session, ref.pack, ref.slot
        except DamageError as error:
            return DiskUsage(errors=[error])
        known = self._known.get(place)
        if known is None:
            known = self._known[place] = self._read(point, disk, ref, first)
        return known

    def _read(self, point: Point, disk: DiskRecord, ref: Ref, first: int) -> DiskUsage:
        usage = DiskUsage()
        try:
            usage.packs.add(PackName(session_of(point, ref.session).session, META, ref.pack))
            node = load(self._catalog, point, disk, ref, first)
            for entry in node.entries:
                if isinstance(entry, Run):
                    if entry.session != ZERO:
                        usage.packs.add(PackName(session_of(point, entry.session).session, DATA, entry.pack))
                else:
                    below = self._walk(point, disk, entry, first)
                    usage.packs |= below.packs
                    usage.errors += below.errors
                first += entry.chunks
        except DamageError as error:
            usage.errors.append(error)
        return usage


def session_of(point: Point, number: int) -> SessionRef:
    """A session by its number in a point's table. Raises DamageError."""
    try:
        return point.table[number]
    except KeyError:
        raise DamageError(f"{point.key} contradicts its maps", object_key=point.key) from None


def load(catalog: Catalog, point: Point, disk: DiskRecord, ref: Ref, first: int) -> Node:
    """A node of a disk's map. Raises DamageError."""
    return catalog.node(ref, first, session_of(point, ref.session), disk.chunk_size)


def freed_bytes(catalog: Catalog, point: Point, others: list[Point]) -> int:
    """Bytes of objects that only `point` needs, of all points of its group. Raises DamageError."""
    usage = Usage(catalog)
    own = _packs(usage, point)
    for other in others:
        if other.session != point.session:
            own -= _packs(usage, other)
    return sum(catalog.entry(usage.sessions[p.session], p.kind, p.number).size for p in own)


def _packs(usage: Usage, point: Point) -> set[PackName]:
    found: set[PackName] = set()
    for disk in point.disks:
        needs = usage.of(point, disk)
        if needs.errors:
            raise needs.errors[0]
        found |= needs.packs
    return found


def disk_packs(usage: Usage, points: list[Point]) -> Iterator[tuple[Point, DiskRecord, DiskUsage]]:
    """Each disk of each point with what it needs."""
    for point in points:
        for disk in point.disks:
            yield point, disk, usage.of(point, disk)
