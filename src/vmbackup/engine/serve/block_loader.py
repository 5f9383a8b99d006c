"""Decoding the chunks of a restore point, a few neighbours at a time; damage is told and stays where it is."""

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from vmbackup.errors import DamageError, VmbackupError
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.usage import session_of
from vmbackup.storage_backends import StoreError

_log = logging.getLogger("vmbackup.serve")
# Reads of the store at a time: as many answers of an object store are waited for together. Each holds a buffer.
PARALLEL = 16
_MOST_TOLD = 1000  # parts with damage that are told once each


class Block(NamedTuple):
    """Neighbouring chunks that lie in consecutive slots of a pack: what is read, decoded and cached as one."""

    disk: str
    first: int
    chunks: int
    session: int
    pack: int
    slot: int


@dataclass(slots=True)
class Decoded:
    """The chunks of a block; what could not be read is None, and `problems` says why, by the chunk's number.

    `given`: bytes that readers took of it, counted without a lock: no more than a hint.
    """

    chunks: list[bytes | None]
    problems: dict[int, str] = field(default_factory=dict)
    given: int = 0


class BlockLoader:
    """Loads blocks of one restore point, in any number of threads."""

    def __init__(self, repository: Repository, point: Point, pool: ThreadPoolExecutor) -> None:
        self._point, self._pool = point, pool
        self._sizes = {disk.target: disk.chunk_size for disk in point.disks}
        self._catalog = repository.catalog(point.lineage.group)
        self._secrets = Secrets(repository, point.lineage.group)
        self._readers: queue.LifoQueue[ChunkReader] = queue.LifoQueue()
        self._gate = threading.BoundedSemaphore(PARALLEL)
        self._told: set[tuple[str, int, str]] = set()

    def load(self, blocks: Sequence[Block]) -> Mapping[Block, Decoded]:
        """All of them, those of a pack by one read; of several packs at a time. Damage is in what it gives."""
        packs: dict[tuple[int, int], list[Block]] = defaultdict(list)
        for block in blocks:
            packs[block.session, block.pack].append(block)
        first, *others = packs.values()
        waiting = [self._later(part) for part in others]
        found = self._load(first)
        for part, future in zip(others, waiting, strict=True):
            # What no thread has taken up yet is done here: none of them ever waits for another.
            found.update(self._load(part) if future is None or future.cancel() else future.result())
        return found

    def _later(self, blocks: list[Block]) -> Future[dict[Block, Decoded]] | None:
        try:
            return self._pool.submit(self._load, blocks)
        except RuntimeError:  # it was closed, while somebody still reads
            return None

    def _load(self, blocks: list[Block]) -> dict[Block, Decoded]:
        """Blocks of one pack."""
        found: dict[int, bytes] = {}
        problems: dict[int, str] = {}
        wanted = list(_joined(blocks))
        try:
            ref = session_of(self._point, blocks[0].session)
            with self._gate:
                reader = self._reader()
                try:
                    self._read(reader, ref, blocks[0], wanted, found)
                except DamageError:
                    problems = self._read_singly(reader, ref, blocks[0], wanted, found)
                finally:
                    self._readers.put(reader)
        except (VmbackupError, StoreError) as error:
            problems = {w.first + n: error.message for w in wanted for n in range(w.chunks) if w.first + n not in found}
        made = {}
        for block in blocks:
            numbers = range(block.first, block.first + block.chunks)
            wrong = {n: problems[n] for n in numbers if n in problems} if problems else {}
            self._tell(block, wrong)
            made[block] = Decoded([found.get(n) for n in numbers], wrong)
        return made

    def _reader(self) -> ChunkReader:
        try:
            return self._readers.get_nowait()
        except queue.Empty:
            return ChunkReader(self._catalog, self._secrets)

    def _read(
        self, reader: ChunkReader, ref: SessionRef, block: Block, wanted: list[Wanted], found: dict[int, bytes]
    ) -> None:
        size = self._sizes[block.disk]
        chunks = sum(part.chunks for part in wanted)
        # A hole of the disk has no slots: what lies around it is neighbours in the pack.
        if chunks > 1 and all(one.slot + one.chunks == other.slot for one, other in pairwise(wanted)):
            run = reader.run(ref, block.pack, wanted[0].slot, chunks, size)
            if run is not None:
                numbers = (part.first + step for part in wanted for step in range(part.chunks))
                found.update(zip(numbers, run, strict=True))
                return
        for number, plain in reader.read(ref, block.pack, wanted):
            if len(plain) != size:
                raise DamageError(f"a chunk has {len(plain)} bytes instead of {size}")
            found[number] = plain

    def _read_singly(
        self, reader: ChunkReader, ref: SessionRef, block: Block, wanted: list[Wanted], found: dict[int, bytes]
    ) -> dict[int, str]:
        """What one damaged chunk has kept from being read; gives the problems that remain."""
        problems = {}
        for slot, chunks, first in wanted:
            for step in range(chunks):
                if first + step not in found:
                    try:
                        self._read(reader, ref, block, [Wanted(slot + step, 1, first + step)], found)
                    except DamageError as error:
                        problems[first + step] = error.message
        return problems

    def _tell(self, block: Block, problems: dict[int, str]) -> None:
        """To the log, once each: a guest repeats what failed."""
        size = self._sizes[block.disk]
        for number, reason in problems.items():
            key = block.disk, number, reason
            if key not in self._told and len(self._told) < _MOST_TOLD:
                self._told.add(key)
                _log.error(
                    "restore point %s, disk %s: %d bytes at %d cannot be read: %s",
                    self._point.id, block.disk, size, number * size, reason,
                )  # fmt: skip


def _joined(blocks: Sequence[Block]) -> Iterator[Wanted]:
    """What is wanted of a pack: neighbours in the disk that are neighbours in the pack as one."""
    slot, chunks, first = blocks[0].slot, 0, blocks[0].first
    for block in blocks:
        if (block.slot, block.first) != (slot + chunks, first + chunks):
            yield Wanted(slot, chunks, first)
            slot, chunks, first = block.slot, 0, block.first
        chunks += block.chunks
    yield Wanted(slot, chunks, first)
