"""What a disk of one restore point has that an earlier one has not: just that, wherever both are stored."""

from collections.abc import Iterator

from vmbackup.engine.chunk_ids import ChunkIds
from vmbackup.engine.map_lookup import MapIndex
from vmbackup.engine.point_disk import PointReader
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.differences import DiskMap, differences
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import KEEP, ZERO

_BATCH = 1 << 20  # bytes that are compared at a time where chunk sizes differ


def changed_runs(old: DiskMap, new: DiskMap, secrets: Secrets) -> Iterator[Extent]:
    """The runs of `new` in order, KEEP where `old` reads the same; beyond its end `old` reads as zeros.

    Chunks that were stored again, or moved by a prune, are KEEP if they are equal. Raises DamageError.
    """
    if old.disk.chunk_size == new.disk.chunk_size:
        return _by_id(old, new)
    return _by_content(old, new, secrets)


def _by_id(old: DiskMap, new: DiskMap) -> Iterator[Extent]:
    before, old_ids, new_ids = MapIndex(old), ChunkIds(old), ChunkIds(new)
    for extent in differences(old, new):
        common = min(extent.first + extent.chunks, old.disk.root.chunks) - extent.first
        if extent.session == ZERO and common < extent.chunks:
            if common > 0:
                yield extent._replace(chunks=common)
            yield _keep(extent, max(common, 0), extent.chunks)
        elif extent.session in (KEEP, ZERO) or common <= 0:
            yield extent
        else:
            for part in before.extents(extent.first, common):
                yield from _compared(part, _cut(extent, part.first, part.chunks), old_ids, new_ids)
            if common < extent.chunks:
                yield _cut(extent, extent.first + common, extent.chunks - common)


def _compared(old: Extent, new: Extent, old_ids: ChunkIds, new_ids: ChunkIds) -> Iterator[Extent]:
    """Two runs of the same chunks that have storage in `new`, cut where they begin or cease to be equal."""
    if old.session == ZERO:
        yield new
        return
    theirs = [(run.key_number, chunk) for run in old_ids.of(old) for chunk in run.ids]
    ours = [(run.key_number, chunk) for run in new_ids.of(new) for chunk in run.ids]
    same = [one == other for one, other in zip(theirs, ours, strict=True)]
    yield from _split(new, same)


def _split(extent: Extent, same: list[bool]) -> Iterator[Extent]:
    start = 0
    for at in range(1, len(same) + 1):
        if at == len(same) or same[at] != same[start]:
            yield _keep(extent, start, at) if same[start] else _cut(extent, extent.first + start, at - start)
            start = at


def _keep(extent: Extent, start: int, end: int) -> Extent:
    return Extent(extent.first + start, end - start, KEEP, 0, 0)


def _cut(extent: Extent, first: int, chunks: int) -> Extent:
    slot = extent.slot + first - extent.first if extent.session > ZERO else 0
    return extent._replace(first=first, chunks=chunks, slot=slot)


def _by_content(old: DiskMap, new: DiskMap, secrets: Secrets) -> Iterator[Extent]:
    """For chunks of different sizes, whose ids tell nothing of one another: both are read."""
    size = new.disk.chunk_size
    readers = (PointReader(old, secrets), PointReader(new, secrets))
    for extent in extents(new.disk.root, new.load):
        step = max(1, _BATCH // size)
        for first in range(extent.first, extent.first + extent.chunks, step):
            part = _cut(extent, first, min(step, extent.first + extent.chunks - first))
            if part.session == ZERO and _is_hole(old, part.first * size, part.chunks * size):
                yield _keep(part, 0, part.chunks)
                continue
            before, after = (_read(reader, disk, part.first * size, part.chunks * size)
                             for reader, disk in zip(readers, (old, new), strict=True))  # fmt: skip
            cuts = range(0, part.chunks * size, size)
            yield from _split(part, [before[at : at + size] == after[at : at + size] for at in cuts])


def _is_hole(old: DiskMap, offset: int, length: int) -> bool:
    size = old.disk.chunk_size
    first, end = offset // size, min(-(-(offset + length) // size), old.disk.root.chunks)
    return first >= end or all(run.session == ZERO for run in MapIndex(old).extents(first, end - first))


def _read(reader: PointReader, disk: DiskMap, offset: int, length: int) -> bytes:
    """The bytes of a part, with zeros beyond the disk's end."""
    buffer = bytearray(length)
    inside = max(0, min(length, disk.disk.virtual_size - offset))
    if inside:
        reader.submit(offset, memoryview(buffer)[:inside])
        reader.wait()
    return bytes(buffer)
