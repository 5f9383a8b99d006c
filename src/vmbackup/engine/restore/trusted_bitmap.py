"""Where a disk can differ from a restore point, told by a bitmap in its image: asked instead of reading all of it."""

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from vmbackup.engine.chunk_ranges import ChunkRanges, Range
from vmbackup.engine.identity import host_identity
from vmbackup.engine.map_lookup import MapIndex
from vmbackup.hypervisor.images import ImageInfo
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.extents import Kind, extents
from vmbackup.repository.differences import DiskMap, differences
from vmbackup.repository.maps import backwards
from vmbackup.repository.nodes import KEEP, ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord

# Chunks at random places that the bitmap calls unchanged and that are compared all the same.
_SAMPLES = 64
_SOUND = ("auto",)  # recording, and not left open by a QEMU that died


@dataclass(frozen=True)
class Base:
    """What the disk was when its bitmap began: a disk of a restore point."""

    point: Point
    disk: DiskRecord
    bitmap: str

    @property
    def context(self) -> str:
        """The bitmap's name over NBD."""
        return f"qemu:dirty-bitmap:{self.bitmap}"


def find_base(points: Sequence[Point], wanted: DiskRecord, image: ImageInfo, inode: int | None) -> Base | str:
    """The newest restore point that a sound bitmap of the image begins at; else why there is none.

    Sound is what was recorded by a QEMU that ended in order, in the very file that this host backed up.
    """
    if image.format != "qcow2":
        return f"a {image.format} image has no bitmap"
    if image.backing:
        return "its image has a backing file, which may have changed too"
    why = "its image has no bitmap of a restore point"
    for point in sorted(points, key=lambda p: (p.seq, p.session), reverse=True):
        anchor = point.public["anchor"]
        disk = next((d for d in point.disks if d.target == wanted.target), None)
        if not anchor or disk is None or anchor["checkpoint"] not in image.bitmaps:
            continue
        if image.bitmaps[anchor["checkpoint"]] != _SOUND:
            why = "its bitmap is broken: QEMU, or a restore, ended without saving it"
        elif point.public.get("host") != host_identity() or disk.attributes.get("inode") != str(inode):
            why = f"it is another file than in restore point {point.id}"
        elif (disk.chunk_size, disk.virtual_size) != (wanted.chunk_size, image.virtual_size):
            why = f"its size, or the size of chunks, is another than in restore point {point.id}"
        else:
            return Base(point, disk, anchor["checkpoint"])
    return why


def suspects(base: DiskMap, wanted: DiskMap, client: NbdClient, context: str) -> ChunkRanges:
    """The chunks that were written since `base`, or in which it differs from `wanted`. Raises NbdError, DamageError."""
    size = wanted.disk.chunk_size
    last = wanted.disk.root.chunks

    def written() -> Iterator[Range]:
        for run in extents(client, client, 0, client.size, context):
            first, end = run.offset // size, min(-(-(run.offset + run.length) // size), last)
            if run.kind is not Kind.UNCHANGED and first < end:
                yield first, end - first

    differing = ((run.first, run.chunks) for run in differences(base, wanted) if run.session != KEEP)
    return ChunkRanges(merge(written(), differing))


def samples(wanted: DiskMap, without: ChunkRanges) -> ChunkRanges:
    """A few chunks with data that the bitmap calls unchanged, the last one of the disk among them."""
    index, chunks = MapIndex(wanted), wanted.disk.root.chunks
    chosen: set[int] = set()
    last = next((e.first + e.chunks - 1 for e in backwards(wanted.disk.root, wanted.load)), None)
    if last is not None:
        chosen.add(last)
    for _ in range(_SAMPLES if chunks else 0):
        chunk = secrets.randbelow(chunks)
        if all(extent.session != ZERO for extent in index.extents(chunk, 1)):
            chosen.add(chunk)
    return ChunkRanges((chunk, 1) for chunk in sorted(chosen) if chunk not in without)
