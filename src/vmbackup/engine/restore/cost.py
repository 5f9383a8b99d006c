"""What a restore will read, told before it reads it: bytes and requests, out of maps and index roots alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vmbackup.engine.pipeline.present_packs import NeededPacks
from vmbackup.engine.restore.disk_copy import DiskCopy, Task
from vmbackup.engine.restore.disk_job import damage_named
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.chunks import GAP_BYTES, Wanted
from vmbackup.repository.crypto import DATA
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.maps import Extent
from vmbackup.repository.moves import Place
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.points import Point
from vmbackup.repository.records import MapRecord
from vmbackup.repository.repository import Repository
from vmbackup.repository.usage import session_of

_ENTRY_BYTES = 8  # of an extent in a stored map: 16, about half of that once compressed


@dataclass(frozen=True)
class Cost:
    """About: `data_bytes` of the disk, zeros left out; `read_bytes` and `requests` of the store."""

    data_bytes: int = 0
    read_bytes: int = 0
    requests: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.data_bytes + other.data_bytes,
            self.read_bytes + other.read_bytes,
            self.requests + other.requests,
        )


@dataclass(frozen=True)
class Foreseen:
    """A disk or boot file, where it would go, what that reads. Of a level of a chain: its point, and the file below."""

    point: Point
    disk: MapRecord
    path: Path
    cost: Cost
    backing: str | None = None


def disk_cost(repository: Repository, point: Point, disk: MapRecord, runs: Iterable[Extent] | None = None) -> Cost:
    """What restoring a disk as a new image reads, or just these runs of it. It reads the disk's map.

    Raises DamageError naming point and disk, also where a pack that would be read is not there.
    """
    with damage_named(point, disk):
        return _disk_cost(repository, point, disk, runs)


def _disk_cost(repository: Repository, point: Point, disk: MapRecord, runs: Iterable[Extent] | None) -> Cost:
    copy = DiskCopy(repository, point, disk, 1)
    catalog = repository.catalog(point.lineage.group)
    cost, needed = Cost(), NeededPacks(catalog)
    sessions, extents = {disk.root.session} - {ZERO}, 0
    for task in copy.tasks(_nothing, runs):
        if task.session == ZERO:
            continue
        sessions.add(task.session)
        extents += len(task.wanted)
        cost += _task_cost(catalog, session_of(point, task.session), task, disk.chunk_size, needed)
    needed.check()
    nodes = 1 + extents // 4096
    return cost + Cost(read_bytes=extents * _ENTRY_BYTES, requests=len(sessions) + nodes)


def _nothing(_n_bytes: int) -> None:
    """Nobody asked."""


def _task_cost(catalog: Catalog, ref: SessionRef, task: Task, chunk_size: int, needed: NeededPacks) -> Cost:
    places: dict[tuple[bytes, int], tuple[SessionRef, list[Wanted]]] = {}
    for place in _places(catalog, ref, task):
        _, parts = places.setdefault((place.ref.session, place.pack), (place.ref, []))
        parts.append(Wanted(place.slot, place.slots, 0))
    cost = Cost(data_bytes=task.chunks * chunk_size)
    for (_, pack), (found, parts) in places.items():
        needed.add(found, pack)
        cost += _pack_cost(catalog, found, pack, sorted(parts))
    return cost


def _places(catalog: Catalog, ref: SessionRef, task: Task) -> Iterator[Place]:
    """Where the wanted slots lie now."""
    for part in task.wanted:
        yield from catalog.places(ref, DATA, task.pack, part.slot, part.chunks)


def _pack_cost(catalog: Catalog, ref: SessionRef, pack: int, wanted: list[Wanted]) -> Cost:
    """The pack's header, and its wanted slots; those that lie close together are read at once."""
    entry = catalog.entry(ref, DATA, pack)
    slot_bytes = max(1, (entry.size - entry.length) // max(1, entry.slots))
    read, requests, end = entry.length, 1, -1
    for part in wanted:
        stop = part.slot + part.chunks
        if end < 0 or (part.slot - end) * slot_bytes > GAP_BYTES:
            requests += 1
            end = part.slot
        read += max(0, stop - end) * slot_bytes
        end = max(end, stop)
    return Cost(read_bytes=read, requests=requests)
