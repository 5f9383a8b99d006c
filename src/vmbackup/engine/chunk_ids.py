"""The ids of a map's chunks, by which a disk is compared with a restore point without decoding anything."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from vmbackup.errors import DamageError
from vmbackup.repository.crypto import DATA
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.maps import Extent
from vmbackup.repository.moves import Place
from vmbackup.repository.packs import Header
from vmbackup.repository.usage import session_of


class IdRun(NamedTuple):
    """The ids of consecutive chunks from chunk `first` on, all made with the id key of that number."""

    first: int
    key_number: int
    ids: list[bytes]


class ChunkIds:
    """Looks up the ids of a map's runs, wherever their chunks lie now."""

    def __init__(self, disk_map: DiskMap) -> None:
        self._map, self._catalog = disk_map, disk_map.catalog

    def of(self, extent: Extent) -> Iterator[IdRun]:
        """The ids of a run that has storage, in order. Raises DamageError."""
        ref = session_of(self._map.point, extent.session)
        first = extent.first
        for place, header in self._placed(ref, extent):
            yield from _runs(header, place, first)
            first += place.slots

    def key(self, number: int) -> bytes:
        """The key that ids of that number are made with."""
        return self._catalog.keys.chunk_id_key(number)

    def _placed(self, ref: SessionRef, extent: Extent) -> list[tuple[Place, Header]]:
        try:
            return self._look(ref, extent)
        except DamageError:
            if not self._catalog.learn(ref.lineage):  # moved since we looked?
                raise
            return self._look(ref, extent)

    def _look(self, ref: SessionRef, extent: Extent) -> list[tuple[Place, Header]]:
        places = self._catalog.places(ref, DATA, extent.pack, extent.slot, extent.chunks)
        return [(place, self._catalog.header(place.ref, DATA, place.pack)) for place in places]


def _runs(header: Header, place: Place, first: int) -> Iterator[IdRun]:
    ids = header.ids_of(place.slot, place.slots)
    if len(ids) != place.slots:
        raise DamageError(f"{header.name} has no slot {place.slot + len(ids)}", object_key=header.name)
    numbers = {birth.key_number for birth in header.births}
    if len(numbers) == 1:
        yield IdRun(first, numbers.pop(), ids)
        return
    at = 0
    by_slot = (header.birth_of(header.slot(place.slot + step)).key_number for step in range(place.slots))
    for number, group in groupby(by_slot):
        count = sum(1 for _ in group)
        yield IdRun(first + at, number, ids[at : at + count])
        at += count
