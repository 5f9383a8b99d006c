"""Chunks of one unit of work: each found again, or stored, and put into the unit's runs."""

from collections.abc import Callable
from dataclasses import dataclass

from blake3 import blake3

from vmbackup.engine.pipeline.units import Unit
from vmbackup.errors import DamageError
from vmbackup.repository.crypto import DATA
from vmbackup.repository.dedup import Place, Window
from vmbackup.repository.maps import Extent
from vmbackup.repository.nodes import KEEP, ZERO, Run
from vmbackup.repository.packs import Header
from vmbackup.repository.run import Run as WriterRun

_NO_HEADER = Header([], b"", "")


@dataclass
class Counts:
    """Bytes: read from the source, differing from the parent, stored anew (compressed and sealed)."""

    read: int = 0
    changed: int = 0
    stored: int = 0

    def add(self, other: "Counts") -> None:
        """Sums up."""
        self.read += other.read
        self.changed += other.changed
        self.stored += other.stored


class Encoder:
    """Takes the parts of a unit in order; `runs` are what the map says of them, `counts` what it took.

    `store(id, plain)` puts a chunk into a pack and gives its place.
    """

    def __init__(
        self,
        run: WriterRun,
        window: Window,
        chunk_size: int,
        unit: Unit,
        store: Callable[[bytes, memoryview], Place],
    ) -> None:
        self._run, self._window, self._chunk_size, self._store = run, window, chunk_size, store
        self._id_key = run.catalog.keys.chunk_id_key()
        self._zeros = bytes(chunk_size)
        self._old = iter(unit.old)
        self._extent = next(self._old, None)
        self._headers: dict[tuple[int, int], Header] = {}
        self._last: Run | None = None
        self._done: list[Run] = []
        self.counts = Counts()

    @property
    def runs(self) -> list[Run]:
        """The runs so far, neighbours joined."""
        return [*self._done, self._last] if self._last else self._done

    def keep(self, chunks: int) -> None:
        """A part that is as the parent has it."""
        self._emit(chunks, KEEP, 0, 0)

    def zero(self, first: int, chunks: int) -> None:
        """A part of zeros."""
        end, at = first + chunks, first
        while at < end and (old := self._old_at(at, end)) is not None:
            at = max(at, old.first)
            count = min(end, old.first + old.chunks) - at
            if old.session != ZERO:
                self.counts.changed += count * self._chunk_size
            at += count
        self._emit(chunks, ZERO, 0, 0)

    def data(self, first: int, chunks: int, buffer: bytearray, view: memoryview) -> None:
        """A part that was read: `view` is of `buffer`, whose first bytes are the chunks."""
        size, zeros, id_key = self._chunk_size, self._zeros, self._id_key
        window, sparse, counts = self._window, self._run.sparse, self.counts
        for number in range(chunks):
            at = number * size
            if buffer.startswith(zeros, at):
                self.zero(first + number, 1)
                continue
            plain = view[at : at + size]
            chunk_id = blake3(plain, key=id_key).digest()
            place = self._same_place(first + number, chunk_id)
            if place is None:
                counts.changed += size
                place = window.get(chunk_id) or sparse.get(chunk_id)
                if place is None:
                    place = self._store(chunk_id, plain)
                    window.put(chunk_id, place)
            self._emit(1, *place)

    def find(self, chunk: int, chunk_id: bytes) -> Place | None:
        """Where a chunk that is not zero is stored already, as far as that is found; asked for in order."""
        place = self._same_place(chunk, chunk_id)
        if place is None:
            self.counts.changed += self._chunk_size
            place = self._window.get(chunk_id) or self._run.sparse.get(chunk_id)
        return place

    def put(self, place: Place) -> None:
        """The next chunk lies there."""
        self._emit(1, *place)

    def _emit(self, chunks: int, session: int, pack: int, slot: int) -> None:
        last = self._last
        if last is not None:
            joins = session <= ZERO or (last.pack == pack and last.slot + last.chunks == slot)
            if last.session == session and joins:
                self._last = Run(last.chunks + chunks, session, last.pack, last.slot)
                return
            self._done.append(last)
        self._last = Run(chunks, session, pack, slot)

    def _old_at(self, chunk: int, end: int) -> Extent | None:
        """The parent's extent at `chunk`, or the next one before `end`; chunks are asked for in order."""
        extent = self._extent
        while extent is not None and extent.first + extent.chunks <= chunk:
            extent = self._extent = next(self._old, None)
        return extent if extent is not None and extent.first < end else None

    def _same_place(self, chunk: int, chunk_id: bytes) -> Place | None:
        old = self._old_at(chunk, chunk + 1)
        if old is None or old.session == ZERO:
            return None
        slot = old.slot + chunk - old.first
        header = self._headers.get((old.session, old.pack))
        if header is None:
            header = self._headers[old.session, old.pack] = self._header(old)
        return (old.session, old.pack, slot) if header.id(slot) == chunk_id else None

    def _header(self, old: Extent) -> Header:
        if self._run.lost.problem(old.session, DATA, old.pack):
            return _NO_HEADER  # engine.lost has told of it
        try:
            return self._run.catalog.header(self._run.ref(old.session), DATA, old.pack)
        except DamageError as error:
            self._run.warnings.append(f"{error.message}; what the guest still has of it was stored anew")
            return _NO_HEADER
