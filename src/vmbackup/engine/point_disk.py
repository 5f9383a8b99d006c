"""A disk of a restore point, read as the disk of a guest is: for a copy in a repository of other keys."""

from collections.abc import Iterator

from vmbackup.engine.immediate_reader import ImmediateReader
from vmbackup.engine.map_lookup import MapIndex
from vmbackup.errors import DamageError
from vmbackup.nbd.extents import Extent as SourceExtent
from vmbackup.nbd.extents import Kind
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.differences import DiskMap, differences
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import KEEP, ZERO
from vmbackup.repository.usage import session_of


class SourceDamageError(DamageError):
    """Something is damaged in the repository that is copied from. The caller goes on with other restore points."""

    @classmethod
    def of(cls, error: DamageError) -> "SourceDamageError":
        """The same, told apart from damage where it is copied to."""
        return cls(error.message, error.hint, object_key=error.object_key)


def source_runs(new: DiskMap, old: DiskMap | None) -> Iterator[SourceExtent]:
    """A disk's runs in bytes; UNCHANGED what `old`, an earlier point's, has equally. Raises SourceDamageError."""
    size, end = new.disk.chunk_size, new.disk.virtual_size
    known = old.disk.virtual_size if old else 0
    try:
        for extent in differences(old, new) if old else extents(new.disk.root, new.load):
            start, stop = extent.first * size, min((extent.first + extent.chunks) * size, end)
            if extent.session != KEEP:
                yield SourceExtent(start, stop - start, Kind.ZERO if extent.session == ZERO else Kind.DATA)
                continue
            yield SourceExtent(start, min(stop, known) - start, Kind.UNCHANGED)
            if stop > known:  # the last chunk of a smaller disk was filled with zeros
                yield SourceExtent(known, stop - known, Kind.ZERO)
    except DamageError as error:
        raise SourceDamageError.of(error) from error


class PointDisk:
    """A disk of a restore point; what `old` has equally is UNCHANGED. Plain bytes are read with `secrets` only."""

    def __init__(self, new: DiskMap, old: DiskMap | None, secrets: Secrets | None) -> None:
        self.map, self._old, self._secrets = new, old, secrets
        self.size = new.disk.virtual_size

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[SourceExtent]:
        """See ReadableDisk. Raises SourceDamageError."""
        if start or end is not None:
            raise ValueError("a restore point's disk is read from end to end")
        return source_runs(self.map, self._old)

    def open_reader(self) -> "PointReader":
        """See ReadableDisk."""
        if self._secrets is None:
            raise ValueError("this disk is not decoded")
        return PointReader(self.map, self._secrets)


class PointReader(ImmediateReader):
    """Reads of a PointDisk. Raises SourceDamageError."""

    def __init__(self, disk_map: DiskMap, secrets: Secrets) -> None:
        super().__init__()
        self._map, self._index = disk_map, MapIndex(disk_map)
        self._chunks = ChunkReader(disk_map.catalog, secrets)
        self._size = disk_map.disk.chunk_size
        self._last: tuple[int, bytes] = (-1, b"")

    def _fill(self, offset: int, buffer: memoryview) -> None:
        try:
            self._read(offset, buffer)
        except DamageError as error:
            raise SourceDamageError.of(error) from error

    def _read(self, offset: int, buffer: memoryview) -> None:
        end = offset + len(buffer)
        first = offset // self._size
        for extent in self._index.extents(first, -(-end // self._size) - first):
            if extent.session == ZERO:
                start, stop = self._clip(extent.first, extent.chunks, offset, end)
                buffer[start:stop] = bytes(stop - start)
            else:
                for number, plain in self._plain(extent):
                    start, stop = self._clip(number, 1, offset, end)
                    skip = max(0, offset - number * self._size)
                    buffer[start:stop] = plain[skip : skip + stop - start]

    def _clip(self, first: int, chunks: int, offset: int, end: int) -> tuple[int, int]:
        """What of a buffer that reads [offset, end) is these chunks'."""
        start, stop = first * self._size, (first + chunks) * self._size
        return max(start, offset) - offset, min(stop, end) - offset

    def _plain(self, extent: Extent) -> Iterator[tuple[int, bytes]]:
        if extent.chunks == 1 and self._last[0] == extent.first:
            yield self._last  # chunks that are larger than a read are decoded once
            return
        ref = session_of(self._map.point, extent.session)
        for number, plain in self._chunks.read(ref, extent.pack, [Wanted(extent.slot, extent.chunks, extent.first)]):
            if len(plain) != self._size:
                raise DamageError(f"a chunk has {len(plain)} bytes instead of {self._size}")
            self._last = number, plain
            yield number, plain
