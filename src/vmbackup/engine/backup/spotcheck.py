"""Does the bitmap tell the truth: a few clean chunks of an incremental, compared with the newest restore point.

Change tracking can miss what goes past it: an image that another program wrote to, or put in another's place. And a
disk that was shrunk and grown again is clean where it was cut, and zero.
"""

import secrets
from collections.abc import Iterator, Sequence
from itertools import islice

from blake3 import blake3

from vmbackup.errors import DamageError
from vmbackup.hypervisor.source import DiskSource
from vmbackup.nbd.extents import Kind, align
from vmbackup.repository.crypto import DATA
from vmbackup.repository.maps import Extent, backwards, extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.run import Run

# Chunks at random places, beside the last clean one. Each costs a read, and a leaf and a header of the map.
_RANDOM = 3
# Chunks that are looked through for a clean one around a random place.
_AROUND = 256
# Chunks that tell two disks apart, and extents that are looked through for them: a map's reading is 1 s a million.
_TELLING = 4
_MOST_LOOKED = 1 << 17


def missed_change(run: Run, source: DiskSource, disk: DiskRecord, others: Sequence[DiskRecord]) -> int | None:
    """The offset of a chunk that is clean and differs from `disk`, the parent's record; None where none was found.

    The last clean chunk with data is always among them: a cut takes a disk's end, so if it took any clean data it took
    that, and nothing else was ever there but zeros. And chunks in which the parent's `others` of the same size differ
    from it: an image that was copied over another has a bitmap of the right name, and all else may be equal.
    """
    for extent in _samples(run, source, disk, others):
        try:
            header = run.catalog.header(run.ref(extent.session), DATA, extent.pack)
        except DamageError:
            continue  # told where its chunks are used
        id_key = run.catalog.keys.chunk_id_key(header.birth_of(header.slot(extent.slot)).key_number)
        if _chunk_id(source, disk, extent.first, id_key) != header.id(extent.slot):
            return extent.first * disk.chunk_size
    return None


def _samples(run: Run, source: DiskSource, disk: DiskRecord, others: Sequence[DiskRecord]) -> Iterator[Extent]:
    """Clean chunks that have data in the parent, one at a time: last, random, telling."""
    load = run.load_node(disk.chunk_size)
    for extent in backwards(disk.root, load):
        if clean := _clean(source, disk, extent):
            yield _chunk(extent, clean[-1])
            break
    for _ in range(_RANDOM if disk.root.chunks else 0):
        start = secrets.randbelow(disk.root.chunks)
        found = next((e for e in extents(disk.root, load, start) if e.session != ZERO), None)
        if found is None:
            continue
        near = found._replace(chunks=min(found.chunks, _AROUND))
        if clean := _clean(source, disk, near):
            yield _chunk(found, secrets.choice(clean))
    for other in others:
        if (other.root.chunks, other.chunk_size) == (disk.root.chunks, disk.chunk_size):
            yield from _telling(run, source, disk, other)


def _telling(run: Run, source: DiskSource, disk: DiskRecord, other: DiskRecord) -> Iterator[Extent]:
    """A few clean chunks that lie at another place in the store than those of `other` do."""
    load = run.load_node(disk.chunk_size)
    theirs = _Forward(extents(other.root, load))
    left = _TELLING
    for extent in islice(extents(disk.root, load), _MOST_LOOKED):
        at, end = extent.first, extent.first + extent.chunks
        while at < end and extent.session != ZERO and left:
            there = theirs.at(at)
            step = min(end, there.first + there.chunks) - at
            ours, its = _chunk(extent, at), _chunk(there, at)
            if (ours.session, ours.pack, ours.slot) != (its.session, its.pack, its.slot):
                near = ours._replace(chunks=min(step, _AROUND))
                if clean := _clean(source, disk, near):
                    left -= 1
                    yield _chunk(extent, clean[0])
            at += step
        if not left:
            return


class _Forward:
    """A map's extents, asked for ever later chunks."""

    def __init__(self, found: Iterator[Extent]) -> None:
        self._found = found
        self._extent = next(found)

    def at(self, chunk: int) -> Extent:
        """The extent that holds a chunk."""
        while self._extent.first + self._extent.chunks <= chunk:
            self._extent = next(self._found)
        return self._extent


def _clean(source: DiskSource, disk: DiskRecord, extent: Extent) -> range:
    """The last run of clean chunks of an extent; empty where none is clean."""
    start, end = extent.first * disk.chunk_size, (extent.first + extent.chunks) * disk.chunk_size
    end = min(end, source.size)
    last = range(0)
    for run in align(source.extents(start, end), disk.chunk_size, end, start=start):
        if run.kind == Kind.UNCHANGED:
            first = run.offset // disk.chunk_size
            last = range(first, first + run.length // disk.chunk_size)
    return last


def _chunk(extent: Extent, chunk: int) -> Extent:
    return extent._replace(first=chunk, chunks=1, slot=extent.slot + chunk - extent.first)


def _chunk_id(source: DiskSource, disk: DiskRecord, chunk: int, id_key: bytes) -> bytes:
    buffer = bytearray(disk.chunk_size)
    offset = chunk * disk.chunk_size
    reader = source.open_reader()
    try:
        reader.submit(offset, memoryview(buffer)[: min(disk.chunk_size, source.size - offset)])
        reader.wait()
    finally:
        reader.close()
    return blake3(buffer, key=id_key).digest()
