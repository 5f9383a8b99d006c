"""A worker of a copy to a replica: slots are taken over as they are stored, and nothing is decoded."""

from vmbackup.engine.map_lookup import MapIndex
from vmbackup.engine.pipeline.encoder import Counts, Encoder
from vmbackup.engine.pipeline.packing import Pack, PackWriter
from vmbackup.engine.pipeline.units import Unit
from vmbackup.engine.point_disk import PointDisk, SourceDamageError
from vmbackup.errors import DamageError
from vmbackup.hypervisor.source import ReadableDisk
from vmbackup.nbd.extents import Kind
from vmbackup.repository.chunks import StoredReader, StoredSlot, Wanted
from vmbackup.repository.crypto import DATA
from vmbackup.repository.dedup import Place, Window
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import ZERO, Run
from vmbackup.repository.run import Run as WriterRun
from vmbackup.repository.usage import session_of


class SlotWorker:
    """Like Worker, for a PointDisk. Not shared between threads."""

    def __init__(self, run: WriterRun, packs: PackWriter, window: Window, chunk_size: int) -> None:
        self._run, self._packs, self._window, self._chunk_size = run, packs, window, chunk_size
        self._pack: Pack | None = None
        self._map: DiskMap
        self._stored = 0

    def attach(self, source: ReadableDisk) -> None:
        """The disk whose units come next."""
        if not isinstance(source, PointDisk):
            raise TypeError("only a restore point's slots can be taken over")
        self._map, self._extents = source.map, MapIndex(source.map)
        self._slots = StoredReader(source.map.catalog)

    def detach(self) -> None:
        """Nothing is held but the pack in the making."""

    def flush(self) -> None:
        """Hands the pack in the making over."""
        if self._pack is not None:
            self._packs.put(self._pack)
            self._pack = None

    def process(self, unit: Unit) -> tuple[list[Run], Counts]:
        """The unit's runs for the map, in order, and what it took. Raises SourceDamageError."""
        encoder = Encoder(self._run, self._window, self._chunk_size, unit, _never)
        self._stored = 0
        for first, chunks, kind in unit.parts:
            if kind == Kind.DATA:
                try:
                    extents = list(self._extents.extents(first, chunks))
                except DamageError as error:
                    raise SourceDamageError.of(error) from error
                for extent in extents:
                    self._take(encoder, extent)
            elif kind == Kind.ZERO:
                encoder.zero(first, chunks)
            else:
                encoder.keep(chunks)
        encoder.counts.stored = self._stored
        return encoder.runs, encoder.counts

    def _take(self, encoder: Encoder, extent: Extent) -> None:
        """Chunks that lie in one pack: found in the target by their ids, else taken over."""
        if extent.session == ZERO:
            encoder.zero(extent.first, extent.chunks)
            return
        places = [encoder.find(extent.first + n, chunk_id) for n, chunk_id in enumerate(self._ids(extent))]
        missing = [Wanted(extent.slot + n, 1, n) for n, place in enumerate(places) if place is None]
        for n, stored in self._read(extent, missing) if missing else ():
            places[n] = self._window.get(stored.slot.id) or self._store(stored)
            encoder.counts.read += stored.slot.stored
        for place in places:
            if place is None:
                raise RuntimeError("a slot was not read")
            encoder.put(place)

    def _ids(self, extent: Extent) -> list[bytes]:
        disk_map = self._map
        try:
            header = disk_map.catalog.header(session_of(disk_map.point, extent.session), DATA, extent.pack)
            return [header.slot(extent.slot + n).id for n in range(extent.chunks)]
        except DamageError as error:
            raise SourceDamageError.of(error) from error

    def _read(self, extent: Extent, wanted: list[Wanted]) -> list[tuple[int, StoredSlot]]:
        disk_map = self._map
        try:
            found = list(self._slots.read(session_of(disk_map.point, extent.session), extent.pack, wanted))
            if any(stored.slot.plain != self._chunk_size for _, stored in found):
                raise DamageError(f"a chunk of {disk_map.point.id} has another length than its map says")
        except DamageError as error:
            raise SourceDamageError.of(error) from error
        return found

    def _store(self, stored: StoredSlot) -> Place:
        pack = self._pack
        if pack is None or not pack.builder.fits_stored(stored.slot, stored.birth):
            self.flush()
            pack = self._pack = self._packs.take()
        slot = pack.builder.add_stored(*stored)
        place = pack.session_number, pack.builder.number, slot
        self._stored += stored.slot.stored
        self._window.put(stored.slot.id, place)
        return place


def _never(_chunk_id: bytes, _plain: memoryview) -> Place:
    raise RuntimeError("a slot was to be encoded")
