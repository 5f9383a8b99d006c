"""A disk of a restore point, read pack by pack and written in several threads."""

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from vmbackup.engine.images.targets import WRITE_BYTES, Target, Writer
from vmbackup.engine.pipeline.present_chunks import PresentChunks
from vmbackup.engine.restore.savepoints import Savepoints
from vmbackup.errors import DamageError
from vmbackup.progress import Progress
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import KEEP, ZERO, Node, Ref
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.repository import Repository
from vmbackup.repository.usage import session_of

# Extents that are looked at together, so that each of their packs is read once: the memory of one leaf.
_WINDOW_EXTENTS = 4096
_WINDOW_BYTES = 16 << 30


@dataclass
class Task:
    """What is wanted of one pack; of session ZERO, which has none, parts of the disk to be zeroed."""

    session: int
    pack: int
    wanted: list[Wanted] = field(default_factory=list)

    @property
    def chunks(self) -> int:
        """How many are wanted."""
        return sum(w.chunks for w in self.wanted)


class DiskCopy:
    """Reads a disk of a restore point, pack by pack, and writes it in several threads."""

    def __init__(self, repository: Repository, point: Point, disk: MapRecord, workers: int) -> None:
        self._point, self._disk, self._workers = point, disk, workers
        self._catalog = repository.catalog(point.lineage.group)
        self._secrets = Secrets(repository, point.lineage.group)
        self._chunk_size = disk.chunk_size
        self._present: PresentChunks | None = None
        self._end = disk.virtual_size
        self._fetched: list[int] = []  # bytes, an entry a task: appended by the workers

    def load(self, ref: Ref, first: int) -> Node:
        """A map node. Raises DamageError."""
        return self._catalog.node(ref, first, session_of(self._point, ref.session), self._chunk_size)

    @property
    def fetched_bytes(self) -> int:
        """Plain bytes of the chunks that were fetched so far."""
        return sum(self._fetched)

    def runs(self) -> Iterator[Extent]:
        """All of the disk's map. Raises DamageError."""
        return extents(self._disk.root, self.load)

    def write(
        self,
        target: Target,
        progress: Progress,
        runs: Iterable[Extent] | None = None,
        *,
        resume: bool = False,
        savepoints: Savepoints | None = None,
        end: int | None = None,
        total: int | None = None,
    ) -> None:
        """Writes all that is not zero into a target that is new and reads as zeros. Raises DamageError, TargetError.

        With `runs`, some of the disk's map, just these are written, zeros among them; KEEP ones are passed over.
        `resume`: a part may be there already; it is read and compared, and only what differs is fetched.
        `total`: bytes of the runs, where they are not all of the disk.
        `end`: the target's, in bytes, where that is not the disk's: the last chunk's zeros are written up to there.
        """
        self._end = self._disk.virtual_size if end is None else end
        self._present = PresentChunks(self._catalog, self._chunk_size, self._end) if resume else None
        task = f"{self._point.domain} {self._disk.target}"
        progress.start(task, self._disk.virtual_size if total is None else total)
        free: queue.SimpleQueue[tuple[ChunkReader, Writer]] = queue.SimpleQueue()
        pairs = []
        try:
            for _ in range(self._workers):
                pairs.append((ChunkReader(self._catalog, self._secrets), target.open_writer()))
                free.put(pairs[-1])
            saves = savepoints or Savepoints()
            tasks = self._expected(target, self.tasks(lambda n: progress.advance(task, n), runs))
            self._run(free, lambda n: progress.advance(task, n), tasks, lambda: saves.look(target))
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
        tasks: Iterable[Task],
        look: Callable[[], None],
    ) -> None:
        pending: set[Future[int]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="restore") as pool:
            try:
                for task in tasks:
                    pending.add(pool.submit(self._copy, task, free))
                    if len(pending) > 2 * self._workers:
                        pending = _reap(pending, advance)
                    look()
                while pending:
                    pending = _reap(pending, advance)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _expected(self, target: Target, tasks: Iterable[Task]) -> Iterator[Task]:
        """The same tasks, each told to the target before it is begun."""
        for task in tasks:
            for part in task.wanted:
                start = part.first * self._chunk_size
                target.expect(start, min(part.chunks * self._chunk_size, self._end - start))
            yield task

    def tasks(self, advance: Callable[[int], None], runs: Iterable[Extent] | None) -> Iterator[Task]:
        """Work by packs, for one window of the disk after the other."""
        window: dict[tuple[int, int], Task] = {}
        held = chunks = 0
        skipped = KEEP if runs is not None else ZERO
        for extent in self.runs() if runs is None else runs:
            if extent.session == skipped:
                advance(extent.chunks * self._chunk_size)
                continue
            key = (extent.session, extent.pack)
            window.setdefault(key, Task(*key)).wanted.append(_wanted(extent))
            held, chunks = held + 1, chunks + extent.chunks
            if held >= _WINDOW_EXTENTS or chunks * self._chunk_size >= _WINDOW_BYTES:
                yield from window.values()
                window, held, chunks = {}, 0, 0
        yield from window.values()

    def _copy(self, task: Task, free: "queue.SimpleQueue[tuple[ChunkReader, Writer]]") -> int:
        pair = free.get()
        try:
            reader, writer = pair
            if task.session == ZERO:
                self._zero(task, writer)
                return task.chunks * self._chunk_size
            ref, wanted = session_of(self._point, task.session), task.wanted
            if self._present:
                wanted = self._present.lacking(ref, task.pack, wanted, writer.read_into)
            self._fetched.append(sum(part.chunks for part in wanted) * self._chunk_size)
            for offset, pieces in self._decoded(reader, ref, task.pack, wanted):
                writer.write(offset, pieces)
            return task.chunks * self._chunk_size
        finally:
            free.put(pair)

    def _zero(self, task: Task, writer: Writer) -> None:
        size, end = self._chunk_size, self._end
        for part in task.wanted:
            start = part.first * size
            writer.zero(start, min(start + part.chunks * size, end) - start)

    def _decoded(
        self, reader: ChunkReader, ref: SessionRef, pack: int, wanted: list[Wanted]
    ) -> Iterator[tuple[int, list[bytes]]]:
        """Neighbouring chunks in writes of at most WRITE_BYTES: whole runs, and after them what is read one by one."""
        others = wanted
        if reader.of_folder:
            others = []
            for part in self._parts(wanted):
                run = self._run_of(reader, ref, pack, part)
                if run is None:
                    others.append(part)
                else:
                    yield part.first * self._chunk_size, run
        yield from self._batches(reader.read(ref, pack, others))

    def _parts(self, wanted: list[Wanted]) -> Iterator[Wanted]:
        most = max(1, WRITE_BYTES // self._chunk_size)
        for slot, chunks, first in sorted(wanted):
            for step in range(0, chunks, most):
                yield Wanted(slot + step, min(most, chunks - step), first + step)

    def _run_of(self, reader: ChunkReader, ref: SessionRef, pack: int, part: Wanted) -> list[bytes] | None:
        """None where its chunks are to be read one by one: moved, damaged, alone, or at the disk's end."""
        if part.chunks == 1 or (part.first + part.chunks) * self._chunk_size > self._end:
            return None
        try:
            return reader.run(ref, pack, part.slot, part.chunks, self._chunk_size)
        except DamageError:
            return None  # `read` knows where else they may be

    def _batches(self, chunks: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, list[bytes]]]:
        """Neighbouring chunks in writes of at most WRITE_BYTES, cut at the disk's end."""
        size, end = self._chunk_size, self._end
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
