"""Does the bitmap tell the truth: a few clean chunks of an incremental, compared with the newest restore point.

Change tracking can miss what goes past it: an image that another program wrote to, or put in another's place, a
snapshot that qemu-img applied. And a disk that was shrunk and grown again is clean where it was cut, and zero.
"""

import secrets
from collections.abc import Iterator

from blake3 import blake3

from vmbackup.errors import DamageError
from vmbackup.hypervisor.source import DiskSource
from vmbackup.nbd.extents import Kind, align
from vmbackup.repository.crypto import DATA
from vmbackup.repository.maps import Extent, backwards, extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import DiskRecord
from vmbackup.repository.run import Run

# Chunks at random places, beside the last clean one. Each costs a read, and a leaf and a header of the map.
_RANDOM = 3
# Chunks that are looked through for a clean one around a random place.
_AROUND = 256


def missed_change(run: Run, source: DiskSource, disk: DiskRecord) -> int | None:
    """The offset of a chunk that is clean and differs from `disk`, the parent's record; None where none was found.

    The last clean chunk with data is always among them: a cut takes a disk's end, so if it took any clean data it took
    that, and nothing else was ever there but zeros.
    """
    for extent in _samples(run, source, disk):
        try:
            header = run.catalog.header(run.ref(extent.session), DATA, extent.pack)
        except DamageError:
            continue  # told where its chunks are used
        id_key = run.catalog.keys.chunk_id_key(header.birth_of(header.slot(extent.slot)).key_number)
        if _chunk_id(source, disk, extent.first, id_key) != header.id(extent.slot):
            return extent.first * disk.chunk_size
    return None


def _samples(run: Run, source: DiskSource, disk: DiskRecord) -> Iterator[Extent]:
    """Clean chunks that have data in the parent, one at a time: the last, then some at random."""
    load = run.load_node(disk.chunk_size)
    for extent in backwards(disk.root, load):
        if clean := _clean(source, disk, extent):
            yield _chunk(extent, clean[-1])
            break
    for _ in range(_RANDOM):
        start = secrets.randbelow(disk.root.chunks)
        found = next((e for e in extents(disk.root, load, start) if e.session != ZERO), None)
        if found is None:
            continue
        near = found._replace(chunks=min(found.chunks, _AROUND))
        if clean := _clean(source, disk, near):
            yield _chunk(found, secrets.choice(clean))


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
