"""Restoring: the disks of a point in time, written as new images and put in place when they are whole."""

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from vmbackup.engine.pipeline import default_workers
from vmbackup.engine.targets import WRITE_BYTES, Qcow2Target, RawTarget, Target, Writer
from vmbackup.errors import DamageError, NotFoundError, TargetError, UsageError
from vmbackup.progress import Progress
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.maps import Extent, extents
from vmbackup.repository.nodes import ZERO, Node, Ref
from vmbackup.repository.points import DiskRecord, Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.usage import session_of

Format = Literal["qcow2", "raw"]
# Extents that are looked at together, so that each of their packs is read once: the memory of one leaf.
_WINDOW_EXTENTS = 4096
_WINDOW_BYTES = 16 << 30


@dataclass(frozen=True)
class RestoreOptions:
    """`disks`: targets, None for all; `output`: a folder, made if it is not there."""

    output: Path
    format: Format = "qcow2"
    disks: tuple[str, ...] | None = None
    workers: int | None = None


@dataclass(frozen=True)
class RestoredFile:
    """An image; `virtual_size` and `written_bytes` (on its file system) in bytes."""

    target: str
    path: Path
    format: str
    virtual_size: int
    written_bytes: int


@dataclass(frozen=True)
class RestoreSummary:
    """What a restore made."""

    point: str
    files: tuple[RestoredFile, ...]
    duration_seconds: float
    warnings: tuple[str, ...] = ()


def restore(repository: Repository, point: Point, options: RestoreOptions, progress: Progress) -> RestoreSummary:
    """Writes `<target>.qcow2` or `.raw` for each disk and `domain.xml` into a folder, all with mode 0600.

    All files get their names once all are whole and synced; after an error none is left. Raises TargetError,
    DamageError naming point and disk, NotFoundError (no such disk), AccessError.
    """
    started = time.monotonic()
    repository.check_may_read()
    disks = _choose(point, options.disks)
    _refuse_existing(options.output, disks, options.format)
    documents = _new_documents(options.output, repository.documents(point))
    with _Files(options.output) as files:
        made = [_restore_disk(repository, point, disk, options, files, progress) for disk in disks]
        for name, data in documents.items():
            with files.create(name) as partial, open(partial, "xb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        files.publish()
    return RestoreSummary(point.id, tuple(made), time.monotonic() - started)


def _choose(point: Point, wanted: tuple[str, ...] | None) -> list[DiskRecord]:
    disks = {d.target: d for d in point.disks}
    if wanted is None:
        return list(disks.values())
    for target in wanted:
        if target not in disks:
            raise NotFoundError(f"restore point {point.id} has no disk '{target}'", f"it has {', '.join(disks)}")
    return [disks[target] for target in dict.fromkeys(wanted)]


def _new_documents(folder: Path, documents: dict[str, bytes]) -> dict[str, bytes]:
    """Those that are not in the folder yet: another disk of the same point may have been restored to it before."""
    new = {}
    for name, data in documents.items():
        path = folder / name
        try:
            same = path.read_bytes() == data
        except FileNotFoundError:
            new[name] = data
        except OSError as error:
            raise TargetError(f"cannot read {path}: {error.strerror}") from error
        else:
            if not same:
                raise _there_already(path)
    return new


def _private(path: str, flags: int) -> int:
    """Images and domain XML are for their owner only: they hold the guest's secrets."""
    return os.open(path, flags, 0o600)


def _there_already(path: Path) -> TargetError:
    return TargetError(f"{path} is already there", "choose another folder, or move it away")


def _refuse_existing(folder: Path, disks: list[DiskRecord], format_: str) -> None:
    if any(os.sep in d.target or d.target in (".", "..") for d in disks):
        raise UsageError("a disk's name cannot be a file name")
    for disk in disks:
        path = folder / f"{disk.target}.{format_}"
        if path.exists():
            raise _there_already(path)


class _Files:
    """New files of a folder under `NAME.partial`, published together; what is not published is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(f"cannot make {folder}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.partial"

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[Path]:
        """The path to write to. What an earlier, killed restore left there is replaced."""
        path = self._partial(name)
        self._names.append(name)
        try:
            path.unlink(missing_ok=True)
            yield path
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from error

    def publish(self) -> None:
        """Gives all files their names; refuses to replace any. Raises TargetError."""
        done = []
        try:
            for name in self._names:
                os.link(self._partial(name), self._folder / name)
                done.append(name)
        except OSError as error:
            for published in done:
                (self._folder / published).unlink(missing_ok=True)
            raise TargetError(f"cannot put {self._folder / name} in place: {error.strerror}") from error
        for name in self._names:
            self._partial(name).unlink(missing_ok=True)
        self._names = []
        _sync(self._folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _restore_disk(
    repository: Repository, point: Point, disk: DiskRecord, options: RestoreOptions, files: _Files, progress: Progress
) -> RestoredFile:
    name = f"{disk.target}.{options.format}"
    workers = options.workers or default_workers()
    with files.create(name) as path:
        target: Target
        if options.format == "raw":
            target = RawTarget(path, disk.virtual_size)
        else:
            target = Qcow2Target(path, disk.virtual_size, disk.attributes, workers)
        try:
            DiskCopy(repository, point, disk, workers).write(target, progress)
            written = target.finish()
        except DamageError as error:
            raise DamageError(
                f"restore point {point.id}, disk {disk.target} cannot be restored: {error.message}",
                object_key=error.object_key,
            ) from error
        finally:
            target.abandon()
    return RestoredFile(disk.target, options.output / name, options.format, disk.virtual_size, written)


@dataclass
class _Task:
    """What is wanted of one pack."""

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

    def write(self, target: Target, progress: Progress) -> None:
        """Writes all that is not zero; the target is new and reads as zeros. Raises DamageError, TargetError."""
        task = f"{self._point.domain} {self._disk.target}"
        progress.start(task, self._disk.virtual_size)
        free: queue.SimpleQueue[tuple[ChunkReader, Writer]] = queue.SimpleQueue()
        pairs = []
        try:
            for _ in range(self._workers):
                pairs.append((ChunkReader(self._catalog, self._secrets), target.open_writer()))
                free.put(pairs[-1])
            self._run(free, lambda n: progress.advance(task, n))
            for _, writer in pairs:
                writer.close()
        finally:
            for _, writer in pairs:
                writer.abandon()
            progress.finish(task)

    def _run(self, free: "queue.SimpleQueue[tuple[ChunkReader, Writer]]", advance: Callable[[int], None]) -> None:
        pending: set[Future[int]] = set()
        with ThreadPoolExecutor(self._workers, thread_name_prefix="restore") as pool:
            try:
                for task in self._tasks(advance):
                    pending.add(pool.submit(self._copy, task, free))
                    if len(pending) > 2 * self._workers:
                        pending = _reap(pending, advance)
                while pending:
                    pending = _reap(pending, advance)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _tasks(self, advance: Callable[[int], None]) -> Iterator[_Task]:
        """Work by packs, for one window of the disk after the other."""
        window: dict[tuple[int, int], _Task] = {}
        held = chunks = 0
        for extent in extents(self._disk.root, self.load):
            if extent.session == ZERO:
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
            chunks = reader.read(session_of(self._point, task.session), task.pack, task.wanted)
            for offset, pieces in self._batches(chunks):
                writer.write(offset, pieces)
            return task.chunks * self._chunk_size
        finally:
            free.put(pair)

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
