"""One worker of a backup: reads its units of the disk and fills packs of its own."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from vmbackup.engine.pipeline.encoder import Counts, Encoder
from vmbackup.engine.pipeline.pace import Pacer
from vmbackup.engine.pipeline.packing import Pack, PackWriter
from vmbackup.engine.pipeline.units import Unit
from vmbackup.hypervisor.source import DiskReader, ReadableDisk
from vmbackup.nbd.extents import Kind
from vmbackup.repository.dedup import Place, Window
from vmbackup.repository.nodes import Run
from vmbackup.repository.run import Run as WriterRun

# Reads of 1 MiB, four in flight: as fast as deeper queues, and a buffer fits the cache (docs/adr/0003-pipeline.md).
READ_BYTES = 1 << 20
DEPTH = 4
# Seconds: who waits for longer to keep a limit takes the replies to its reads first.
_LONG_WAIT = 0.05


class _Piece(NamedTuple):
    """A part of a unit that one read takes: into buffer number `buffer`, None where nothing is read."""

    first: int
    chunks: int
    kind: Kind
    buffer: int | None = None
    cookie: int | None = None


class UnitWorker(Protocol):
    """What takes units of a disk and fills packs of its own. Not shared between threads."""

    def attach(self, source: ReadableDisk) -> None:
        """The disk whose units come next."""

    def detach(self) -> None:
        """Lets go of the disk; the pack in the making is kept."""

    def flush(self) -> None:
        """Hands the pack in the making over."""

    def process(self, unit: Unit) -> tuple[list[Run], Counts]:
        """The unit's runs for the map, in order, and what it took."""


class Worker:
    """Not shared between threads; `attach` gives it a disk, then `process` units of it."""

    def __init__(
        self, run: WriterRun, packs: PackWriter, window: Window, chunk_size: int, pacer: Pacer | None = None
    ) -> None:
        """`pacer`: a limit that the reads are kept to."""
        self._pacer, self._allowed = pacer, 0
        self._arrived: set[int] = set()
        self._run, self._packs, self._window, self._chunk_size = run, packs, window, chunk_size
        self._per_read = max(1, READ_BYTES // chunk_size)
        buffers = [bytearray(self._per_read * chunk_size) for _ in range(DEPTH)]
        self._buffers = [(buffer, memoryview(buffer)) for buffer in buffers]
        self._pack: Pack | None = None
        self._reader: DiskReader | None = None
        self._size = 0
        self._stored = 0

    def attach(self, source: ReadableDisk) -> None:
        """A connection of its own to the disk."""
        self.detach()
        self._reader, self._size = source.open_reader(), source.size

    def detach(self) -> None:
        """Closes the connection; the pack in the making is kept."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def flush(self) -> None:
        """Hands the pack in the making over."""
        if self._pack is not None:
            self._packs.put(self._pack)
            self._pack = None

    def process(self, unit: Unit) -> tuple[list[Run], Counts]:
        """The unit's runs for the map, in order, and what it took."""
        encoder = Encoder(self._run, self._window, self._chunk_size, unit, self._store)
        self._stored = 0
        for piece in self._completed(unit, encoder.counts):
            if piece.buffer is not None:
                encoder.data(piece.first, piece.chunks, *self._buffers[piece.buffer])
            elif piece.kind == Kind.ZERO:
                encoder.zero(piece.first, piece.chunks)
            else:
                encoder.keep(piece.chunks)
        encoder.counts.stored = self._stored
        return encoder.runs, encoder.counts

    def _pieces(self, unit: Unit) -> Iterator[_Piece]:
        for first, chunks, kind in unit.parts:
            if kind == Kind.DATA:
                for at in range(0, chunks, self._per_read):
                    yield _Piece(first + at, min(self._per_read, chunks - at), kind)
            else:
                yield _Piece(first, chunks, kind)

    def _completed(self, unit: Unit, counts: Counts) -> Iterator[_Piece]:
        """The pieces in order; the buffer of one is its own until the next step."""
        reader = self._reader
        if reader is None:
            raise RuntimeError("no disk attached")
        free = list(range(DEPTH))
        waiting: deque[_Piece] = deque()
        arrived = self._arrived
        arrived.clear()
        pieces = self._pieces(unit)
        upcoming = next(pieces, None)
        while upcoming or waiting:
            while upcoming and (free or upcoming.kind != Kind.DATA):
                if upcoming.kind == Kind.DATA:
                    upcoming = self._submit(reader, upcoming, free.pop(), counts)
                waiting.append(upcoming)
                upcoming = next(pieces, None)
            piece = waiting.popleft()
            while piece.cookie is not None and piece.cookie not in arrived:
                arrived.add(reader.wait())
            yield piece
            if piece.buffer is not None and piece.cookie is not None:
                arrived.discard(piece.cookie)
                free.append(piece.buffer)

    def _submit(self, reader: DiskReader, piece: _Piece, number: int, counts: Counts) -> _Piece:
        buffer, view = self._buffers[number]
        offset, length = piece.first * self._chunk_size, piece.chunks * self._chunk_size
        wanted = min(length, self._size - offset)
        if wanted < length:
            buffer[wanted:length] = bytes(length - wanted)  # the last chunk is padded with zeros
        counts.read += wanted
        if self._pacer is not None:
            self._keep_pace(self._pacer, reader, wanted)
        return piece._replace(buffer=number, cookie=reader.submit(offset, view[:wanted]))

    def _keep_pace(self, pacer: Pacer, reader: DiskReader, wanted: int) -> None:
        """Waits until so much may be read; small reads claim a MiB for several of them.

        QEMU stands still while replies are not taken, so none may be under way meanwhile.
        """
        if self._allowed < wanted:
            claimed = max(wanted, READ_BYTES)
            seconds = pacer.claim(claimed)
            if seconds > _LONG_WAIT:
                while reader.outstanding:
                    self._arrived.add(reader.wait())
            pacer.wait(seconds)
            self._allowed += claimed
        self._allowed -= wanted

    def _store(self, chunk_id: bytes, plain: memoryview) -> Place:
        pack = self._pack
        if pack is None or not pack.builder.fits(len(plain)):
            self.flush()
            pack = self._pack = self._packs.take()
        builder = pack.builder
        before = builder.position
        slot = builder.add(chunk_id, plain)
        self._stored += builder.position - before
        return pack.session_number, builder.number, slot
