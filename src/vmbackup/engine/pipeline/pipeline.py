"""The pipeline of a backup: a disk's runs in, its new map out; equal workers in between, order kept."""

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from vmbackup.engine.pipeline.encoder import Counts, Encoder
from vmbackup.engine.pipeline.lost import Part, uncovered
from vmbackup.engine.pipeline.packing import PackWriter, VerifyUploads
from vmbackup.engine.pipeline.units import OldMap, Unit, units
from vmbackup.engine.pipeline.worker import UnitWorker, Worker
from vmbackup.hypervisor.source import ReadableDisk
from vmbackup.nbd.extents import Kind, align
from vmbackup.repository.dedup import Place, Window
from vmbackup.repository.maps import MapUpdater, extents
from vmbackup.repository.nodes import ZERO, Ref, Run
from vmbackup.repository.records import MapRecord
from vmbackup.repository.run import Run as WriterRun

# Above 8 the interpreter's lock leaves nothing to gain (docs/adr/0003-pipeline.md).
MAX_WORKERS = 8
# Units that may be done before their turn, a worker: bounds what waits for the map.
_AHEAD = 3


@dataclass
class DiskResult:
    """A disk that was read: the root of its map, and bytes."""

    root: Ref
    counts: Counts = field(default_factory=Counts)


def default_workers() -> int:
    """As many as there are cores for this process, 2 at least, MAX_WORKERS at most."""
    return max(2, min(MAX_WORKERS, len(os.sched_getaffinity(0))))


def drop_disk(run: WriterRun, disk: MapRecord) -> None:
    """A disk that is gone, or whose map starts anew: its nodes no longer count."""
    MapUpdater(disk.chunk_size, run.load_node(disk.chunk_size), run.store_node, run.uses).drop(disk.root)


class Pipeline:
    """The workers of one run; a context manager. Leaving it in an error stops them and stores nothing more."""

    def __init__(
        self,
        run: WriterRun,
        chunk_size: int,
        *,
        workers: int,
        verify: VerifyUploads,
        between: Callable[[int], None],
        worker: Callable[[WriterRun, PackWriter, Window, int], UnitWorker] = Worker,
    ) -> None:
        """`between(bytes)` is called in the caller's thread after each unit, with the bytes of disk it covered.

        `worker`: what takes the units.
        """
        self._run, self._chunk_size, self._between = run, chunk_size, between
        self._packs = PackWriter(run, workers + 2, verify)
        self._window = Window()
        self._workers: list[UnitWorker] = [worker(run, self._packs, self._window, chunk_size) for _ in range(workers)]
        self._free: queue.SimpleQueue[UnitWorker] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._ahead = workers * _AHEAD

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.detach()
        if kind is not None:
            self._packs.stop()

    def read_disk(
        self, source: ReadableDisk, old: Ref | None, previous: Ref | None, lost: Sequence[Part] = ()
    ) -> DiskResult:
        """Reads a disk to its end, and makes its map.

        `old` is the parent's map that the new one is made from (its nodes are kept where nothing changed); `previous`
        the map whose chunks are looked at place by place. `old` must not be larger than the disk. `lost` is read
        although it is clean.
        """
        self._free = queue.SimpleQueue()
        for worker in self._workers:
            worker.attach(source)
            self._free.put(worker)
        result = DiskResult(Ref(0, 0, ZERO, 0, 0, b""))
        load = self._run.load_node(self._chunk_size)
        chunks = -(-source.size // self._chunk_size)
        old_map = OldMap(extents(previous, load)) if previous else None
        runs = uncovered(align(source.extents(), self._chunk_size, source.size), lost, self._chunk_size)
        done = self._ordered(units(runs, self._chunk_size, old_map), result.counts)
        updater = MapUpdater(self._chunk_size, load, self._run.store_node, self._run.uses)
        result.root = updater.update(old, done, chunks)
        for worker in self._workers:
            worker.detach()
        return result

    def finish(self) -> None:
        """Stores what the workers hold; all packs are durable when it returns."""
        for worker in self._workers:
            worker.flush()
        self._packs.close()

    def _ordered(self, work: Iterable[Unit], counts: Counts) -> Iterator[Run]:
        """The runs of all units in the order of the disk."""
        waiting: deque[tuple[Unit, Future[tuple[list[Run], Counts]] | None]] = deque()
        pending = 0
        for unit in work:
            if unit.data_chunks:
                waiting.append((unit, self._pool.submit(self._process, unit)))
                pending += 1
            else:
                waiting.append((unit, None))
            while waiting and (pending > self._ahead or waiting[0][1] is None or waiting[0][1].done()):
                pending -= waiting[0][1] is not None
                yield from self._result(*waiting.popleft(), counts)
        while waiting:
            yield from self._result(*waiting.popleft(), counts)

    def _result(self, unit: Unit, future: Future[tuple[list[Run], Counts]] | None, counts: Counts) -> Iterator[Run]:
        runs, unit_counts = future.result() if future else self._account(unit)
        counts.add(unit_counts)
        covered = sum(chunks for _, chunks, _ in unit.parts)
        self._between(covered * self._chunk_size)
        self._packs.check()
        yield from runs

    def _account(self, unit: Unit) -> tuple[list[Run], Counts]:
        """A unit with no data in it: nothing is read."""
        encoder = Encoder(self._run, self._window, self._chunk_size, unit, _never)
        for first, chunks, kind in unit.parts:
            if kind == Kind.ZERO:
                encoder.zero(first, chunks)
            else:
                encoder.keep(chunks)
        return encoder.runs, encoder.counts

    def _process(self, unit: Unit) -> tuple[list[Run], Counts]:
        worker = self._free.get()
        try:
            return worker.process(unit)
        finally:
            self._free.put(worker)


def _never(_chunk_id: bytes, _plain: memoryview) -> Place:
    raise RuntimeError("a unit without data stored a chunk")
