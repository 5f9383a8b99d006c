"""A disk of a restore point, read pack by pack and written in several threads."""

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from vmbackup.engine.targets import WRITE_BYTES, Target, Writer
from vmbackup.errors import DamageError
from vmbackup.progress import Progress
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import KEEP, ZERO, Node, Ref
from vmbackup.repository.points import DiskRecord, Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.usage import session_of

# Extents that are looked at together, so that each of their packs is read once: the memory of one leaf.
_WINDOW_EXTENTS = 4096
_WINDOW_BYTES = 16 << 30


@dataclass
class _Task:
    """What is wanted of one pack; of session ZERO, which has none, parts of the disk to be zeroed."""

    session: int
    pack: int
    wanted: list[Wanted] = field(default_factory=list)

    @property
    def chunks(self) -> int:
        return sum(w.chunks for w in self.wanted)


class DiskCopy:
    """Reads a disk of a restore point, pack by pack, and writes it in several threads."""

    def __init__(self, repository: Repository, point: Point, disk: DiskRecord, workers: int) -> None:
        self._point, self._disk, self._workers = point, disk, workers
        self._catalog = repository.catalog(point.lineage.group)
        self._secrets = Secrets(repository, point.lineage.group)
        self._chunk_size = disk.chunk_size

    def load(self, ref: Ref, first: int) -> Node:
        """A map node. Raises DamageError."""
        return self._catalog.node(ref, first, session_of(self._point, ref.session), self._chunk_size)

    def write(self, target: Target, progress: Progress, runs: Iterable[Extent] | None = None) -> None:
        """Writes all that is not zero into a target that is new and reads as zeros. Raises DamageError, TargetError.

        With `runs`, some of the disk's map, just these are written, zeros among them; KEEP ones are passed over.
        """
        task = f"{self._point.domain} {self._disk.target}"
        progress.start(task, self._disk.virtual_size)
        free: queue.SimpleQueue[tuple[ChunkReader, Writer]] = queue.SimpleQueue()
        pairs = []
        try:
            for _ in range(self._workers):
                pairs.append((ChunkReader(self._catalog, self._secrets), target.open_writer()))
                free.put(pairs[-1])
            self._run(free, lambda n: progress.advance(task, n), runs)
            for _, writer in pairs:
                writer.close()
        finally:
            for _, writer in pairs:
                writer.abandon()
            progress.finish(task)

    def _run(
        self,
        free: "queue.SimpleQueue[tuple[ChunkReader, Writer]]",
        advance: Callable[[int], None],
        runs: Iterable[Extent] | None,
    ) -> None:
        pending: set[Future[int]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="restore") as pool:
            try:
                for task in self._tasks(advance, runs):
                    pending.add(pool.submit(self._copy, task, free))
                    if len(pending) > 2 * self._workers:
                        pending = _reap(pending, advance)
                while pending:
                    pending = _reap(pending, advance)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(self, advance: Callable[[int], None], runs: Iterable[Extent] | None) -> Iterator[_Task]:
        """Work by packs, for one window of the disk after the other."""
        window: dict[tuple[int, int], _Task] = {}
        held = chunks = 0
        skipped = KEEP if runs is not None else ZERO
        for extent in extents(self._disk.root, self.load) if runs is None else runs:
            if extent.session == skipped:
                advance(extent.chunks * self._chunk_size)
                continue
            key = (extent.session, extent.pack)
            window.setdefault(key, _Task(*key)).wanted.append(_wanted(extent))
            held, chunks = held + 1, chunks + extent.chunks
            if held >= _WINDOW_EXTENTS or chunks * self._chunk_size >= _WINDOW_BYTES:
                yield from window.values()
                window, held, chunks = {}, 0, 0
        yield from window.values()

    def _copy(self, task: _Task, free: "queue.SimpleQueue[tuple[ChunkReader, Writer]]") -> int:
        pair = free.get()
        try:
            reader, writer = pair
            if task.session == ZERO:
                self._zero(task, writer)
                return task.chunks * self._chunk_size
            chunks = reader.read(session_of(self._point, task.session), task.pack, task.wanted)
            for offset, pieces in self._batches(chunks):
                writer.write(offset, pieces)
            return task.chunks * self._chunk_size
        finally:
            free.put(pair)

    def _zero(self, task: _Task, writer: Writer) -> None:
        size, end = self._chunk_size, self._disk.virtual_size
        for part in task.wanted:
            start = part.first * size
            writer.zero(start, min(start + part.chunks * size, end) - start)

    def _batches(self, chunks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, list[bytes]]]:
        """Neighbouring chunks in writes of at most WRITE_BYTES, cut at the disk's end."""
        size, end = self._chunk_size, self._disk.virtual_size
        most = max(1, WRITE_BYTES // size)
        pieces: list[bytes] = []
        start = following = 0
        for number, data in chunks:
            if len(data) != size:
                raise DamageError(f"a chunk of {self._disk.target} has {len(data)} bytes instead of {size}")
            if pieces and (number != following or len(pieces) == most):
                yield start * size, pieces
                pieces = []
            if not pieces:
                start = number
            pieces.append(data if (number + 1) * size <= end else data[: end - number * size])
            following = number + 1
        if pieces:
            yield start * size, pieces


def _wanted(extent: Extent) -> Wanted:
    return Wanted(extent.slot, extent.chunks, extent.first)


def _reap(pending: set[Future[int]], advance: Callable[[int], None]) -> set[Future[int]]:
    done, rest = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        advance(future.result())
    return rest
