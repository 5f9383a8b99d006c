"""Where two maps of one history differ, found without reading what they share."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmbackup.repository.catalog import Catalog
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import KEEP, ZERO, Node, Ref, Run
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.usage import load, session_of


@dataclass(frozen=True)
class DiskMap:
    """The map of a disk of a restore point, and where its nodes are read from."""

    catalog: Catalog
    point: Point
    disk: MapRecord

    def load(self, ref: Ref, first: int) -> Node:
        """A node. Raises DamageError."""
        return load(self.catalog, self.point, self.disk, ref, first)

    def place(self, run: Run | Extent) -> tuple[bytes, int, int] | None:
        """Session, pack and slot of a run's first chunk; None where it is zeros. Raises DamageError."""
        if run.session == ZERO:
            return None
        return session_of(self.point, run.session).session, run.pack, run.slot


class _Walk:
    """A map from its beginning on, opened no further than it is asked for."""

    def __init__(self, disk_map: DiskMap) -> None:
        self._map = disk_map
        self._waiting: list[Ref | Run] = [disk_map.disk.root]
        self.first = 0

    @property
    def top(self) -> Ref | Run | None:
        """The node or run at `first`; None at the disk's end. A node of zeros is a run."""
        if not self._waiting:
            return None
        entry = self._waiting[-1]
        if isinstance(entry, Ref) and entry.session == ZERO:
            entry = self._waiting[-1] = Run(entry.chunks, ZERO, 0, 0)
        return entry

    def open(self, ref: Ref) -> None:
        """Puts a node's entries in its place."""
        self._waiting.pop()
        self._waiting.extend(reversed(self._map.load(ref, self.first).entries))

    def skip(self, chunks: int) -> None:
        """Goes on by no more than the entry at `first` covers."""
        entry = self._waiting.pop()
        self.first += chunks
        if isinstance(entry, Run) and entry.chunks > chunks:
            slot = entry.slot + chunks if entry.session != ZERO else 0
            self._waiting.append(Run(entry.chunks - chunks, entry.session, entry.pack, slot))


def differences(old: DiskMap, new: DiskMap) -> Iterator[Extent]:
    """The runs of `new` in order of the disk; what `old` has at the same place, equally stored, has session KEEP.

    Beyond the end of `old` nothing is KEEP. Nodes that both share are not read. Both have one chunk size.
    """
    # A node's id says what its numbers of sessions are, not which sessions: two heads of a history may differ there.
    one_table = all(old.point.table.get(n, ref).session == ref.session for n, ref in new.point.table.items())
    before, after = _Walk(old), _Walk(new)
    while (b := after.top) is not None:
        a = before.top
        if isinstance(a, Ref) and isinstance(b, Ref) and one_table and (a.id, a.chunks) == (b.id, b.chunks):
            yield Extent(after.first, b.chunks, KEEP, 0, 0)
            before.skip(a.chunks)
            after.skip(b.chunks)
        elif isinstance(a, Ref) and (isinstance(b, Run) or a.level >= b.level):
            before.open(a)
        elif isinstance(b, Ref):
            after.open(b)
        elif a is None:
            yield Extent(after.first, *b)
            after.skip(b.chunks)
        elif isinstance(a, Run):
            chunks = min(a.chunks, b.chunks)
            same = old.place(a) == new.place(b)
            yield Extent(after.first, chunks, KEEP, 0, 0) if same else Extent(after.first, chunks, *b[1:])
            before.skip(chunks)
            after.skip(chunks)
