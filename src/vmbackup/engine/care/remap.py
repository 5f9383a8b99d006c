"""Lost map nodes made again: a replica's own map tells the chunks, the indexes here tell where those lie.

A node comes out as it was if each of its chunks was stored once, or where its neighbours were: its id proves it, and
the checksum of its slot that it was sealed again byte by byte.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator

from blake3 import blake3

from vmbackup.engine.care.wanted import LostNode
from vmbackup.errors import DamageError
from vmbackup.repository import packs
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.maps import coalesce, extents, join_zeros
from vmbackup.repository.nodes import LEAF_ENTRIES, LEAF_SPAN, ZERO, Node, Ref, Run, zero_ref
from vmbackup.repository.packs import Birth, Slot
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.repository import PointList
from vmbackup.repository.usage import load, session_of

_Place = tuple[int, int, int]  # session number, pack, slot
_Choose = Callable[[list[_Place]], _Place]


class Remap:
    """Makes nodes of the points here again, out of the copies of those points in a replica."""

    def __init__(self, catalog: Catalog, away: Catalog, replica: PointList) -> None:
        self._catalog, self._away = catalog, away
        self._copies = {(p.original or p).digest: p for p in (*replica.twins, *replica.points)}

    def make(self, lost: LostNode) -> tuple[Slot, Birth, bytes] | None:
        """The slot as it was stored; None where that is not to be had."""
        copy = self._copies.get((lost.point.original or lost.point).digest)
        disk = next((m for m in copy.maps if m.name == lost.disk.name), None) if copy else None
        if copy is None or disk is None or disk.chunk_size != lost.disk.chunk_size or lost.ref.level > 1:
            return None
        try:
            where = session_of(lost.point, lost.ref.session)
            header = self._catalog.header(where, META, lost.ref.pack)
            slot = header.slot(lost.ref.slot)
            birth = header.birth_of(slot)
            for data in self._candidates(lost, copy, disk):
                if blake3(data, key=self._catalog.keys.chunk_id_key(birth.key_number)).digest() == lost.ref.id:
                    stored = packs.stored_again(META, self._catalog.keys, slot, birth, data)
                    return (slot, birth, stored) if stored else None
        except DamageError:
            return None
        return None

    def _candidates(self, lost: LostNode, copy: Point, disk: MapRecord) -> Iterator[bytes]:
        """Nodes that may be the one, encoded."""
        ids = list(self._ids(copy, disk, lost.first, lost.ref.chunks))
        known = self._places(lost.point, DATA, {chunk_id for chunk_id in ids if chunk_id})
        size = disk.chunk_size
        if lost.ref.level == 0:
            for choose in (max, min):
                yield Node.leaf(size, lost.first, list(coalesce(_chosen(ids, known, choose)))).encode()
            return
        nodes = self._places(lost.point, META)
        refs: list[Ref] = []
        span, end = LEAF_SPAN // size, lost.first + len(ids)
        for at in range(lost.first, end, span):
            part = ids[at - lost.first : at - lost.first + span]
            tries = (_leaves(size, at, coalesce(_chosen(part, known, choose))) for choose in (max, min))
            found = next(filter(None, (self._refs(leaves, nodes) for leaves in tries)), None)
            if found is None:
                return
            refs += found
        yield Node.inner(size, lost.first, join_zeros(refs)).encode()

    def _refs(self, leaves: Iterable[Node], nodes: dict[bytes, list[_Place]]) -> list[Ref] | None:
        """References to leaves that lie here; None where one does not."""
        refs = []
        for leaf in leaves:
            name = blake3(leaf.encode(), key=self._catalog.keys.chunk_id_key()).digest()
            if leaf.sessions and name not in nodes:
                return None
            refs.append(Ref(0, leaf.chunks, *max(nodes[name]), name) if leaf.sessions else zero_ref(0, leaf.chunks))
        return refs

    def _ids(self, copy: Point, disk: MapRecord, first: int, chunks: int) -> Iterator[bytes]:
        """The ids of chunks of a disk, as its copy has them; none for zeros. Raises DamageError."""
        away = self._away
        for run in extents(disk.root, lambda ref, at: load(away, copy, disk, ref, at), first, first + chunks):
            if run.session == ZERO:
                yield from (b"" for _ in range(run.chunks))
                continue
            for place in away.places(session_of(copy, run.session), DATA, run.pack, run.slot, run.chunks):
                yield from away.header(place.ref, DATA, place.pack).ids_of(place.slot, place.slots)

    def _places(self, point: Point, kind: str, ids: Container[bytes] | None = None) -> dict[bytes, list[_Place]]:
        """Where the sessions of a point hold these (all for None), as their indexes tell."""
        found: dict[bytes, list[_Place]] = defaultdict(list)
        for number, ref in point.table.items():
            with contextlib.suppress(DamageError):
                for of_kind, pack in self._catalog.root(ref).packs:
                    if of_kind == kind:
                        for slot, name in enumerate(self._catalog.header(ref, kind, pack).ids()):
                            if ids is None or name in ids:
                                found[name].append((number, pack, slot))
        return found


def _chosen(ids: list[bytes], known: dict[bytes, list[_Place]], choose: _Choose) -> Iterator[Run]:
    """A run a chunk: behind its neighbour where it lies there too. Raises DamageError where one lies nowhere."""
    last = (ZERO, 0, 0)
    for chunk_id in ids:
        if not chunk_id:
            yield Run(1, ZERO, 0, 0)
            continue
        places = known.get(chunk_id)
        if not places:
            raise DamageError("a chunk of the map is not known here")
        behind = last[0], last[1], last[2] + 1
        last = behind if behind in places else choose(places)
        yield Run(1, *last)


def _leaves(chunk_size: int, first: int, runs: Iterable[Run]) -> Iterator[Node]:
    """The leaves of one span."""
    waiting = iter(runs)
    while entries := list(itertools.islice(waiting, LEAF_ENTRIES)):
        leaf = Node.leaf(chunk_size, first, entries)
        yield leaf
        first += leaf.chunks
