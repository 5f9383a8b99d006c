"""What restore points need: every pack that their maps reach, and the indexes of those packs' sessions."""

from collections.abc import Iterator

from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import INDEX, ObjectName
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.nodes import ZERO, Ref
from vmbackup.repository.points import POINT, DiskRecord, Point
from vmbackup.repository.usage import load, session_of


class Needs:
    """Objects that some points of a group need; it only grows. A node that was walked is not walked again."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._objects: dict[tuple[str, bytes, bytes], set[int]] = {}
        self._points: set[bytes] = set()
        self._nodes: set[tuple[bytes, int, int]] = set()
        self._indexed: set[bytes] = set()

    def __contains__(self, name: ObjectName) -> bool:
        return name.number in self._objects.get((name.kind, name.lineage, name.session), ())

    def add(self, point: Point) -> None:
        """All that a point or a partial needs. Raises DamageError."""
        if point.session in self._points:
            return
        own = point.own_ref(0)
        self.add_index(own)
        if point.kind == POINT:
            for ref in point.table.values():
                self.add_index(ref)
            for disk in point.disks:
                self._walk(point, disk)
        else:
            for kind, number in self._catalog.root(own).packs:
                self._add(kind, own, number)
        self._points.add(point.session)

    def _add(self, kind: str, ref: SessionRef, number: int) -> None:
        self._objects.setdefault((kind, ref.lineage, ref.session), set()).add(number)

    def names(self) -> Iterator[ObjectName]:
        """All of them."""
        for (kind, lineage, session), numbers in self._objects.items():
            yield from (ObjectName(kind, lineage, session, number) for number in numbers)

    def add_index(self, ref: SessionRef) -> None:
        """The index objects of a session. Raises DamageError."""
        if ref.session in self._indexed:
            return
        self._add(INDEX, ref, ref.root)
        for number in self._catalog.root(ref).parts:
            self._add(INDEX, ref, number)
        self._indexed.add(ref.session)

    def _walk(self, point: Point, disk: DiskRecord) -> None:
        stack: list[tuple[Ref, int]] = [(disk.root, 0)]
        while stack:
            ref, first = stack.pop()
            if ref.session == ZERO:
                continue
            place = session_of(point, ref.session)
            key = place.session, ref.pack, ref.slot
            if key in self._nodes:
                continue
            self._add(META, place, ref.pack)
            node = load(self._catalog, point, disk, ref, first)
            stack += node.children()
            for number, pack in node.data_packs():
                self._add(DATA, session_of(point, number), pack)
            self._nodes.add(key)
