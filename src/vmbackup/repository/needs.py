"""What restore points need: every slot that their maps reach, and the indexes of those slots' sessions."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import INDEX, TABLE, ObjectName
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.moves import Place
from vmbackup.repository.nodes import ZERO, Node, Ref, Runs, runs_of
from vmbackup.repository.packs import HEADER_SLOTS
from vmbackup.repository.points import POINT, Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.usage import load, session_of

_ALL = -1  # a mask of every slot there may be


class Moved(NamedTuple):
    """Slots in use that a map still names by their old place, and where they lie now."""

    kind: str
    ref: SessionRef
    pack: int
    slot: int
    place: Place


class _Last:
    """The runs of the leaves that were walked last of one history: its next point's differ in few."""

    def __init__(self) -> None:
        self._lineage: Lineage | None = None
        self._table: dict[int, SessionRef] = {}
        self._leaves: dict[int, set[bytes]] = {}  # by their first chunk, which disks may share
        self._now: set[bytes] = set()  # of the leaf that `new` was asked of

    def new(self, point: Point, node: Node) -> Iterable[tuple[int, int, int, int]]:
        """The runs with storage of a node, without those that `keep` was told of."""
        if not isinstance(node.entries, Runs):
            return node.runs()
        if point.lineage != self._lineage or any(
            self._table.get(number, ref) != ref for number, ref in _named(point, node)
        ):  # two heads may use one number for two sessions
            self._lineage, self._table, self._leaves = point.lineage, {}, {}
        self._now = node.entries.raw()
        return runs_of(self._now - self._leaves.get(node.first, set()))

    def keep(self, point: Point, node: Node) -> None:
        """All runs of the node that `new` was asked of were seen to."""
        if isinstance(node.entries, Runs):
            self._table.update(_named(point, node))
            self._leaves[node.first] = self._now


def _named(point: Point, node: Node) -> Iterator[tuple[int, SessionRef]]:
    return ((number, session_of(point, number)) for number in node.sessions)


class Needs:
    """Objects that some points of a group need; it only grows. A node that was walked is not walked again.

    `sessions`: those that lie below it, by id. `moved`: what is found through tables of moves.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # The slots in use of a pack, a bit each.
        self._packs: dict[tuple[str, bytes, bytes, int], int] = {}
        self._objects: set[ObjectName] = set()
        self._points: set[bytes] = set()
        self._nodes: set[tuple[bytes, int, int]] = set()
        self._last = _Last()
        self.sessions: dict[bytes, SessionRef] = {}
        self.moved: list[Moved] = []

    def __contains__(self, name: ObjectName) -> bool:
        if name.kind == INDEX and name.session in self.sessions and name.number > self.sessions[name.session].root:
            return True  # a repair made it again
        return name in self._packs or name in self._objects

    def add(self, point: Point) -> None:
        """All that a point or a partial needs. Raises DamageError."""
        if point.session in self._points:
            return
        own = point.own_ref(0)
        self.add_index(own)
        if point.kind == POINT:
            for ref in point.table.values():
                self.add_index(ref)
            for record in point.maps:
                self._walk(point, record)
        else:
            for kind, number in self._catalog.root(own).packs:
                self._packs[kind, own.lineage, own.session, number] = _ALL
        self._points.add(point.session)

    def walk_again(self) -> None:
        """Other tables of moves hold now: what is added leads elsewhere. What was found needed stays so."""
        self._points.clear()
        self._nodes.clear()
        self._last = _Last()
        self.moved.clear()

    def keep(self, name: ObjectName) -> None:
        """A pack that stays, whatever the maps say."""
        self._packs[name] = _ALL

    def used(self) -> Iterator[tuple[ObjectName, int]]:
        """The packs whose slots are known one by one, each with a mask of those in use."""
        return ((ObjectName(*name), mask) for name, mask in self._packs.items() if mask != _ALL)

    def names(self) -> Iterator[ObjectName]:
        """All of them."""
        yield from self._objects
        yield from (ObjectName(*name) for name in self._packs)

    def add_index(self, ref: SessionRef) -> None:
        """The index objects of a session. Raises DamageError."""
        if ref.session in self.sessions:
            return
        root = self._catalog.root(ref)
        self._objects.update(
            ObjectName(INDEX, ref.lineage, ref.session, number) for number in (ref.root, *root.parts)
        )
        self.sessions[ref.session] = ref

    def _use(self, ref: SessionRef, kind: str, pack: int, slot: int, slots: int) -> None:
        if not self._catalog.moves.concerns(ref.session):
            self._mark(ref, kind, pack, slot, slots)
            return
        for place in self._catalog.places(ref, kind, pack, slot, slots):
            if place.tables:
                self.moved.append(Moved(kind, ref, pack, slot, place))
                self.add_index(place.ref)
                self._objects.update(ObjectName(TABLE, ref.lineage, table, 0) for table in place.tables)
            self._mark(place.ref, kind, place.pack, place.slot, place.slots)
            slot += place.slots

    def _mark(self, ref: SessionRef, kind: str, pack: int, slot: int, slots: int) -> None:
        if slot + slots > HEADER_SLOTS:
            key = self._catalog.lineage(ref).pack(kind, ref.session, pack)
            raise DamageError(f"a map names slots that {key} cannot have", object_key=key)
        name = kind, ref.lineage, ref.session, pack
        self._packs[name] = self._packs.get(name, 0) | ((1 << slots) - 1) << slot

    def _walk(self, point: Point, disk: MapRecord) -> None:
        stack: list[tuple[Ref, int]] = [(disk.root, 0)]
        while stack:
            ref, first = stack.pop()
            if ref.session == ZERO:
                continue
            place = session_of(point, ref.session)
            key = place.session, ref.pack, ref.slot
            if key in self._nodes:
                continue
            self._use(place, META, ref.pack, ref.slot, 1)
            node = load(self._catalog, point, disk, ref, first)
            stack += node.children()
            self._use_all(point, node)
            self._nodes.add(key)

    def _use_all(self, point: Point, node: Node) -> None:
        """The slots that the runs of a leaf name: a pack's are put together first, for there are millions of runs."""
        concerns = self._catalog.moves.concerns
        moved = {number for number in node.sessions if concerns(session_of(point, number).session)}
        masks: dict[tuple[int, int], int] = {}
        for chunks, number, pack, slot in self._last.new(point, node):
            if number in moved or slot + chunks > HEADER_SLOTS:
                self._use(session_of(point, number), DATA, pack, slot, chunks)
            else:
                masks[number, pack] = masks.get((number, pack), 0) | ((1 << chunks) - 1) << slot
        for (number, pack), mask in masks.items():
            ref = session_of(point, number)
            name = DATA, ref.lineage, ref.session, pack
            self._packs[name] = self._packs.get(name, 0) | mask
        self._last.keep(point, node)
