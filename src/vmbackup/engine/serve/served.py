"""The disks of a restore point, read at any place: what an NBD server exports."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from vmbackup.engine.map_lookup import MapIndex
from vmbackup.engine.pipeline.pipeline import default_workers
from vmbackup.engine.serve.block_cache import BlockCache
from vmbackup.engine.serve.block_loader import Block, BlockLoader, Decoded
from vmbackup.engine.serve.readahead import ReadAhead
from vmbackup.errors import NotFoundError, VmbackupError
from vmbackup.nbd.channel import Buffer
from vmbackup.nbd.errors import ReadFailed
from vmbackup.nbd.export import zeros
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.repository.differences import DiskMap
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository
from vmbackup.storage_backends import StoreError

_log = logging.getLogger("vmbackup.serve")
CACHE_BYTES = 128 << 20  # of decoded chunks: what a few readers have ahead, and a guest's boot reads twice
# Bytes of the disk that are decoded together where they lie together: as a guest's own reading ahead, or a bit more ...
BLOCK_BYTES = 256 << 10
# ... and for who reads on and on: a request of an object store costs more than the rest, and each call of Python too.
WINDOW_BYTES = 1 << 20
# Threads that read ahead, and requests of one connection that wait for an object store together.
_WORKERS = 8
# Reads of a folder that nothing is read ahead for after all cores were seen at work: it costs up to a fifth of the CPU.
_PATIENCE = 64
_NODES = 48  # of the map that are held decoded: a guest reads all over its disk


class ServedPoint:
    """A restore point's disks as exports, by target. All connections share one cache of at most `cache_bytes`."""

    def __init__(self, repository: Repository, point: Point, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises AccessError (a key that reads no data), NotFoundError (a point without disks)."""
        repository.check_may_read()
        if not point.disks:
            raise NotFoundError(f"restore point {point.id} has no disks")
        self.point = point
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="serve")
        self._loader = BlockLoader(repository, point, self._pool)
        self.cache: BlockCache[Block, Decoded] = BlockCache(
            cache_bytes,
            cost=lambda block: sum(len(chunk) for chunk in block.chunks if chunk is not None),
            keeps=lambda block: not block.problems,
        )
        catalog = repository.catalog(point.lineage.group)
        # A folder answers at once: more threads than cores would only wait for each other.
        folder, cores = repository.store.url.startswith("file:"), default_workers()
        parallel = cores if folder else _WORKERS
        self.exports = {
            disk.target: ServedDisk(
                DiskMap(catalog, point, disk),
                self.cache,
                self._loader,
                self._pool,
                parallel,
                ReadAhead(cores - 1, _PATIENCE) if folder else ReadAhead(_WORKERS),
            )
            for disk in point.disks
        }

    def close(self) -> None:
        """Ends reading ahead; the exports are of no use any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.cache.clear()


class ServedDisk:
    """An Export (vmbackup.nbd.export) of one disk."""

    def __init__(
        self,
        disk_map: DiskMap,
        cache: BlockCache[Block, Decoded],
        loader: BlockLoader,
        pool: ThreadPoolExecutor,
        parallel: int,
        ahead: ReadAhead,
    ) -> None:
        self.parallel = parallel
        self._disk = disk_map.disk
        self.size = self._disk.virtual_size
        self._name = f"restore point {disk_map.point.id}, disk {self._disk.target}"
        self._index = MapIndex(disk_map, _NODES)
        self._cache, self._load, self._pool = cache, loader.load, pool
        self._block = max(1, BLOCK_BYTES // self._disk.chunk_size)
        self._window = max(1, WINDOW_BYTES // self._disk.chunk_size)
        self._ahead = ahead

    def read(self, offset: int, length: int) -> Sequence[Buffer]:
        """See Export."""
        size, end = self._disk.chunk_size, offset + length
        first, last = offset // size, (end - 1) // size
        goes_on, steps = self._ahead.next(first // self._window, last // self._window)
        try:
            blocks = list(self._blocks(first, last + 1 - first))
            wanted = blocks
            if goes_on:
                # Nothing before it: that was read, so it goes first from a full cache, and would be decoded again.
                wanted = list(self._blocks(first, last - last % self._window + self._window - first))
            with self._ahead:
                found = self._cache.get([block for block in wanted if block.session != ZERO], self._load)
        except (VmbackupError, StoreError) as error:
            raise self._failed(offset, length, error.message) from error
        self._make_ready(steps)
        pieces: list[Buffer] = []
        for block in blocks:
            start, stop = max(offset, block.first * size), min(end, (block.first + block.chunks) * size)
            if block.session == ZERO:
                pieces += zeros(stop - start)
            else:
                pieces += self._cut(block, found[block], start, stop)
                self._count(block, found[block], stop - start)
        return pieces

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See Export."""
        size, end = self._disk.chunk_size, offset + length
        first, begun, kind = offset // size, offset, None
        try:
            for run in self._index.runs(first, -(-end // size) - first):
                now = Kind.ZERO if run.session == ZERO else Kind.DATA
                if kind is not now:
                    start = max(offset, run.first * size)
                    if kind is not None:
                        yield Extent(begun, start - begun, kind)
                    begun, kind = start, now
        except (VmbackupError, StoreError) as error:
            raise self._failed(offset, length, error.message) from error
        if kind is not None:
            yield Extent(begun, end - begun, kind)

    def _blocks(self, first: int, chunks: int) -> Iterator[Block]:
        """The blocks that touch a part of the disk: runs of data, cut at multiples of a block; whole runs of zeros."""
        target, size, end = self._disk.target, self._block, min(first + chunks, self._index.chunks)
        for run in self._index.runs(first, chunks):
            if run.session == ZERO:
                yield Block(target, run.first, run.chunks, ZERO, 0, 0)
                continue
            at, run_end = max(run.first, first), min(run.first + run.chunks, end)
            while at < run_end:
                border = at - at % size
                start = max(run.first, border)
                stop = min(run.first + run.chunks, border + size)
                yield Block(target, start, stop - start, run.session, run.pack, run.slot + start - run.first)
                at = stop

    def _cut(self, block: Block, decoded: Decoded, start: int, stop: int) -> Iterator[Buffer]:
        size = self._disk.chunk_size
        for number in range(start // size, -(-stop // size)):
            chunk = decoded.chunks[number - block.first]
            if chunk is None:
                raise ReadFailed(decoded.problems.get(number, "damaged"))
            low, high = max(start - number * size, 0), min(stop - number * size, size)
            yield chunk if high - low == size else memoryview(chunk)[low:high]

    def _count(self, block: Block, decoded: Decoded, length: int) -> None:
        """What was read once from end to end is not kept in place of what was not: who copies a disk reads it once."""
        decoded.given += length
        if decoded.given >= block.chunks * self._disk.chunk_size:
            decoded.given = 0
            self._cache.demote(block)

    def _make_ready(self, steps: range) -> None:
        with contextlib.suppress(RuntimeError):  # it was closed, while somebody still reads
            for step in steps:
                if step * self._window < self._index.chunks:
                    self._pool.submit(self._prepare, step)

    def _prepare(self, step: int) -> None:
        """Decodes a window; what fails is told to who asks for it."""
        try:
            blocks = self._blocks(step * self._window, self._window)
            self._cache.prepare([block for block in blocks if block.session != ZERO], self._load)
        except Exception as error:
            _log.debug("%s: reading ahead failed: %s", self._name, error)

    def _failed(self, offset: int, length: int, reason: str) -> ReadFailed:
        _log.error("%s: %d bytes at %d cannot be read: %s", self._name, length, offset, reason)
        return ReadFailed(reason)
