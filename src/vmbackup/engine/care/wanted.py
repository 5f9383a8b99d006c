"""What restore points need of damaged packs, slot by slot."""

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.nodes import ZERO, Ref
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.usage import PackName, load, session_of


class LostNode(NamedTuple):
    """A map node that cannot be read, and a disk of a point that needs it."""

    point: Point
    disk: MapRecord
    ref: Ref
    first: int


class WantedSlot(NamedTuple):
    """A slot in use, at its place now, and the chunk or map node that it should hold; `node`: one that is lost."""

    kind: str
    ref: SessionRef
    pack: int
    slot: int
    id: bytes
    node: LostNode | None = None


class Wanted:
    """Collects them. A map node that was walked, through whichever point, is not walked again.

    `unknown`: packs that are needed and of which nobody tells any more what they held.
    """

    def __init__(self, catalog: Catalog, damaged: Container[PackName]) -> None:
        self._catalog, self._damaged = catalog, damaged
        self._nodes: set[tuple[bytes, int, int]] = set()
        self.slots: dict[tuple[str, bytes, int, int], WantedSlot] = {}
        self.unknown: set[PackName] = set()

    def add(self, points: Iterable[Point]) -> None:
        """What these points need."""
        for point in points:
            for record in point.maps:
                self._walk(point, record)

    def _walk(self, point: Point, disk: MapRecord) -> None:
        stack: list[tuple[Ref, int]] = [(disk.root, 0)]
        while stack:
            ref, first = stack.pop()
            if ref.session != ZERO:
                stack += self._node(point, disk, ref, first)

    def _node(self, point: Point, disk: MapRecord, ref: Ref, first: int) -> Iterator[tuple[Ref, int]]:
        """The children of a node that can be read; one that cannot is wanted itself."""
        try:
            where = session_of(point, ref.session)
        except DamageError:
            return
        key = where.session, ref.pack, ref.slot
        if key in self._nodes:
            return
        self._nodes.add(key)
        try:
            entries = load(self._catalog, point, disk, ref, first).entries
            self._use(META, where, ref.pack, ref.slot, 1)
        except DamageError:
            self._add(WantedSlot(META, where, ref.pack, ref.slot, ref.id, LostNode(point, disk, ref, first)))
            return
        for entry in entries:
            if isinstance(entry, Ref):
                yield entry, first
            elif entry.session != ZERO:
                self._use(DATA, session_of(point, entry.session), entry.pack, entry.slot, entry.chunks)
            first += entry.chunks

    def _use(self, kind: str, ref: SessionRef, pack: int, slot: int, slots: int) -> None:
        try:
            places = self._catalog.places(ref, kind, pack, slot, slots)
        except DamageError:
            self.unknown.add(PackName(ref.session, kind, pack))
            return
        for place in places:
            name = PackName(place.ref.session, kind, place.pack)
            if name not in self._damaged:
                continue
            try:
                ids = self._catalog.header(place.ref, kind, place.pack).ids_of(place.slot, place.slots)
            except DamageError:
                self.unknown.add(name)
                continue
            for step, chunk_id in enumerate(ids):
                self._add(WantedSlot(kind, place.ref, place.pack, place.slot + step, chunk_id))

    def _add(self, slot: WantedSlot) -> None:
        self.slots[slot.kind, slot.ref.session, slot.pack, slot.slot] = slot
