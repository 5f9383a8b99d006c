"""Histories of the group whose chunks a run may use: those that have a point which is valid after the run's pin.

The run's order of docs/repository-format.md, section 10, for what lies outside of its own history. A chunk is used only
if a valid point's maps reach its pack, for just that is what a collector keeps.
"""

from collections.abc import Container, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from vmbackup.repository.catalog import Catalog
from vmbackup.repository.condemned import INDEX, ObjectName
from vmbackup.repository.crypto import DATA
from vmbackup.repository.layout import Lineage, SessionRef
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.moves import Place
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.placing import Placing
from vmbackup.repository.points import PARTIAL, Point
from vmbackup.repository.repository import PointList, Repository, newest
from vmbackup.repository.usage import load, session_of

# A run of chunks that is longer than this is followed when its first chunks hit: about a hook's reach.
_LONG = 64
# So many chunks ahead: 256 MiB of a disk, as far apart as four workers are.
_AHEAD = 4096


class PackOf(NamedTuple):
    """A pack of a session."""

    session: bytes
    pack: int


class History:
    """What one valid point reaches, with the partials since: its sessions, the packs, and the order of long runs."""

    def __init__(self, catalog: Catalog, points: Iterable[Point]) -> None:
        """Reads the maps. Raises DamageError."""
        self.refs: dict[bytes, SessionRef] = {}
        self.packs: set[PackOf] = set()
        self._runs: list[tuple[PackOf, int, int]] = []  # pack, first slot, chunks
        self._runs_of: dict[PackOf, list[int]] = {}
        for point in points:
            if point.kind == PARTIAL:
                ref = point.own_ref(0)
                self.refs[ref.session] = ref
                self.packs |= {PackOf(ref.session, n) for kind, n in catalog.root(ref).packs if kind == DATA}
            else:
                self.refs |= {ref.session: ref for ref in point.table.values()}
                self._walk(catalog, point)

    def _walk(self, catalog: Catalog, point: Point) -> None:
        for record in point.maps:
            for extent in extents(record.root, partial(load, catalog, point, record)):
                if extent.session != ZERO:
                    self._add(session_of(point, extent.session).session, extent)

    def _add(self, session: bytes, extent: Extent) -> None:
        name = PackOf(session, extent.pack)
        self.packs.add(name)
        if extent.chunks >= _LONG:
            self._runs_of.setdefault(name, []).append(len(self._runs))
            self._runs.append((name, extent.slot, extent.chunks))

    def ahead(self, name: PackOf, slot: int) -> Iterator[PackOf]:
        """The packs of the runs that follow on a slot in the order of its disk."""
        for at in self._runs_of.get(name, ()):
            _, first, chunks = self._runs[at]
            if first <= slot < first + chunks:
                left = _AHEAD
                for following, _, count in self._runs[at + 1 : at + 1 + _AHEAD // _LONG]:
                    yield following
                    left -= count
                    if left < 0:
                        return


class Others:
    """The histories of a group, each read when it is first asked for. One thread at a time.

    Made after the run's pin stands. `own`: the run's own history, which is read already; `doomed`: what the condemned
    lists name that were read since the pin (rules W2, W6). `vain` counts what was read and led to nothing.
    """

    def __init__(
        self, repository: Repository, own: tuple[Lineage, PointList], doomed: Container[ObjectName], placing: Placing
    ) -> None:
        self._repository, self._own, self._doomed, self._placing = repository, own, doomed, placing
        self._catalog = placing.catalog
        self._histories: dict[bytes, History | None] = {}
        self.vain = 0

    def history(self, lineage: bytes) -> History | None:
        """A history as it stands now (W3); None where it has no point. Raises DamageError, StoreError."""
        if lineage not in self._histories:
            self._histories[lineage] = None  # not asked again after an error
            self._histories[lineage] = self._read(lineage)
            self.vain += self._histories[lineage] is None
        return self._histories[lineage]

    def _read(self, lineage: bytes) -> History | None:
        own, found = self._own
        if lineage != own.id:
            found = self._repository.read_points(Lineage(own.group, lineage))
            self._catalog.use(point.move_table() for point in found.moves)
        point = newest(found.points)
        points = [*([point] if point else []), *found.partials]
        return History(self._catalog, points) if points else None

    def chunks(self, history: History, name: PackOf) -> Iterator[tuple[Place, int, list[bytes]]]:
        """Where the chunks of a pack lie now, piece by piece: the place, its first slot in the pack, the chunks' ids.

        Raises DamageError, StoreError.
        """
        ref = history.refs[name.session]
        header = self._catalog.header(ref, DATA, name.pack)
        places = self._catalog.places(ref, DATA, name.pack, 0, len(header))
        moved = any(place.tables for place in places)
        at = 0
        for place in places:
            # W5: what a repack left behind is not used, for the old pack goes.
            if place.tables or not moved:
                numbered = self._placing.numbered(place.ref)
                if self._placing.is_fit(numbered, DATA, place.pack) and not self._is_doomed(numbered):
                    ids = [header.id(slot) for slot in range(at, at + place.slots)]
                    yield place._replace(ref=numbered), at, ids
            at += place.slots

    def _is_doomed(self, ref: SessionRef) -> bool:
        """Whether the index that tells of a session's packs is being collected (W6)."""
        numbers = (*self._catalog.root(ref).parts, ref.root)
        return any(ObjectName(INDEX, ref.lineage, ref.session, number) in self._doomed for number in numbers)
