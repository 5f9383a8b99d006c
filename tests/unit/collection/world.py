"""Guests of a few chunks, backed up by the real writer, forgotten and collected by the real code, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.unit.collection.steps import DAY, Actor, MemoryStore
from vmbackup.engine.pipeline.encoder import Encoder
from vmbackup.engine.pipeline.lost import lost_parts, uncovered
from vmbackup.engine.pipeline.units import OldMap, units
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.repository import condemned
from vmbackup.repository.cache import Cache
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.chunks import ChunkReader, Secrets, Wanted
from vmbackup.repository.collect import PruneOptions, PruneReport, prune
from vmbackup.repository.dedup import Window
from vmbackup.repository.keys import Secret
from vmbackup.repository.maps import MapUpdater, extents
from vmbackup.repository.nodes import ZERO
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository
from vmbackup.repository.run import Run
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust

CHUNK = 4096
CHUNKS = 9
SECRET = Secret.passphrase("a passphrase for tests", random=True)


@cache
def base() -> tuple[dict[str, tuple[bytes, float]], Repository]:
    """A repository, made once: its objects, and its keys."""
    store: Any = MemoryStore()
    repository, _ = Repository.create(store, SECRET, Trust(None), chunk_size=CHUNK)
    return store.objects, repository


class MemoryCache(Cache):
    """A host's cache without a file."""

    def __init__(self) -> None:
        super().__init__(Path(":memory:"))

    def _opened(self, path: Path) -> Any:
        return self._connect(path)


class World:
    """A store, what each committed point must restore to, and the actors."""

    def __init__(self, seed: int, most: int = 0, *, shared: bool = False) -> None:
        """`most` chunks a pack; by chance where it is 0. `shared`: hosts look for chunks of other guests, too."""
        self.most, self.shared = most, shared
        self.caches: dict[str, Cache] = {}
        objects, _ = base()
        self.store = MemoryStore(objects)
        self.chance = random.Random(seed)
        self.kept: dict[bytes, list[bytes]] = {}
        self.forgotten: set[bytes] = set()  # or about to be
        self.gone: set[bytes] = set()
        self.disks: dict[str, list[bytes]] = {}
        self.newest: dict[str, bytes] = {}
        self.actors: list[Actor] = []
        self.log: list[str] = []

    def repository(self, store: object) -> Repository:
        """A process of its own: nothing is cached of another's."""
        _, made = base()
        handle: Any = store
        return Repository(handle, made.identity, made.config, Trust(None))

    def add(self, name: str, work: Callable[[Repository], None]) -> Actor:
        actor = Actor(name, self.store, lambda me: work(self.repository(me)))
        self.actors.append(actor)
        return actor

    # What the actors do

    def writer(
        self, guest: str, host: str, runs: int, contents: Callable[[], bytes], share: float = 0.4
    ) -> Callable[[Repository], None]:
        """Backs the guest up so often; before each run a share of its chunks changes."""

        def work(repository: Repository) -> None:
            if self.shared:
                repository.cache = self.caches.setdefault(host, MemoryCache())
            for _ in range(runs):
                old = self.disks.get(guest, [bytes(CHUNK)] * CHUNKS)
                disk = [contents() if self.chance.random() < share else chunk for chunk in old]
                changed = {n for n in range(CHUNKS) if disk[n] != old[n]}
                if self.chance.random() < 0.2:
                    changed = set(range(CHUNKS))  # its bitmap was lost: all is read
                point = write(repository, guest, host, disk, changed, self.newest.get(guest), self.chance, self.most)
                self.kept[point.session] = disk
                self.disks[guest], self.newest[guest] = disk, point.session

        return work

    def forgetter(self, times: int, share: float = 0.5) -> Callable[[Repository], None]:
        """Forgets a share of the points, any of them."""

        def work(repository: Repository) -> None:
            for _ in range(times):
                points = repository.read_points().points
                for point in points:
                    if self.chance.random() < share:
                        self.forgotten.add(point.session)
                        forget(repository, point.lineage, point.session)
                        self.gone.add(point.session)

        return work

    def collector(self, cycles: int, *, dead_after: float = DAY, wait: float = 20.0) -> Callable[[Repository], None]:
        """Prunes so often, with ten looks at who is open."""

        def work(repository: Repository) -> None:
            for _ in range(cycles):
                prune(repository, PruneOptions(wait, dead_after), sleep=lambda _s: None)

        return work

    # The course of things

    def run(self, kills: int = 0) -> None:
        """One request after the other, each of an actor by chance; some actors die on the way."""
        for actor in self.actors:
            actor.start()
        while alive := [actor for actor in self.actors if not actor.done]:
            actor = self.chance.choice(alive)
            if self.chance.random() < 0.01:
                self.store.now += DAY / 2  # somebody stood still for long
            if kills and len(alive) > 1 and self.chance.random() < 0.02:
                actor.killed, kills = True, kills - 1
            for _ in range(self.chance.choice([1, 1, 1, 5, 30])):
                if not actor.done:
                    actor.step()

    def check(self) -> None:
        """Every valid point restores to what its run read, and nothing that one needs was deleted."""
        repository = self.repository(self.store)
        found = repository.read_points()
        assert not found.damaged, found.damaged
        valid = {point.session for point in found.points}
        assert valid.isdisjoint(self.gone)
        # A run that was killed between its commit and its report counts all the same; one that reported must be there.
        assert self.kept.keys() - self.forgotten <= valid
        for point in found.points:
            if point.session in self.kept:
                assert restored(repository, point) == self.kept[point.session], point.id
            else:
                restored(repository, point)

    def clean(self) -> PruneReport:
        """One last prune with everybody dead: what is left is what is needed."""
        self.store.now += 30 * DAY
        repository = self.repository(self.store)
        report = prune(repository, PruneOptions(), sleep=lambda _s: None)
        again = prune(self.repository(self.store), PruneOptions(dry_run=True))
        assert (again.objects, again.repacked.packs) == (0, 0), again
        assert not [key for key in self.store.objects if key.startswith(("sessions/", "trash/"))]
        for names in condemned.read(self.repository(self.store).store, "default").values():
            # A dead collector's: what it let stay in the end is needed, and its list only stops deduplication.
            assert any(name.key("default") in self.store.objects for name in names)
        return report


def write(
    repository: Repository,
    guest: str,
    host: str,
    disk: list[bytes],
    changed: set[int],
    since: bytes | None,
    chance: random.Random,
    most: int,
) -> Point:
    """A run of the real writer in one thread: what the pipeline does, with tiny packs.

    `changed` since the session `since`; where that is not the parent, its bitmap is of no use and all is read.
    """
    lineage = repository.lineage("libvirt", guest)
    run = Run.open(repository, lineage, host, wait=lambda _: None)
    run.partial_bytes = chance.choice([1, 1 << 30])
    try:
        if repository.cache:
            run.look_elsewhere()
        old = run.parent.disks[0] if run.parent else None
        try:
            parts = lost_parts(run, old) if old else []
        except DamageError:  # as the engine does: the map is not to be used, all is read
            old, parts = None, []
            run.uses.clear()
        if run.parent and run.parent.session != since:
            changed = set(range(CHUNKS))
        kinds = [
            Kind.UNCHANGED if old and n not in changed else Kind.DATA if any(disk[n]) else Kind.ZERO
            for n in range(CHUNKS)
        ]
        runs = uncovered((Extent(n * CHUNK, CHUNK, kind) for n, kind in enumerate(kinds)), parts, CHUNK)
        load = run.load_node(CHUNK)
        made, window, packer = [], Window(), _Packer(run, most or chance.choice([1, 3, 5]))
        for unit in units(runs, CHUNK, OldMap(extents(old.root, load)) if old else None):
            encoder = Encoder(run, window, CHUNK, unit, packer.store)
            for first, chunks, kind in unit.parts:
                if kind == Kind.DATA:
                    data = bytearray(b"".join(disk[first : first + chunks]))
                    encoder.data(first, chunks, data, memoryview(data))
                elif kind == Kind.ZERO:
                    encoder.zero(first, chunks)
                else:
                    encoder.keep(chunks)
            made += encoder.runs
            packer.flush()
            run.keep_partial()
        root = MapUpdater(CHUNK, load, run.store_node, run.uses).update(old.root if old else None, made, CHUNKS)
        record = DiskRecord(
            "vda", "vda", "qcow2", CHUNK * CHUNKS, CHUNK, root, "full", None, 0, 0, 0,
            {"path": "/x", "bus": "virtio"},
        )  # fmt: skip
        public = {
            "domain": {"name": guest, "uuid": guest}, "source": "libvirt", "time": "2026-01-01T00:00:00+00:00",
            "consistency": "crash", "anchor": None, "disks": [record.to_json()], "warnings": [],
        }  # fmt: skip
        return run.commit(public, [])
    except VmbackupError:
        run.abandon()
        raise


class _Packer:
    """Packs of a few chunks."""

    def __init__(self, run: Run, most: int) -> None:
        self._run, self._most = run, most
        self._builder, self._session = PackBuilder(1 << 16), run.session

    def store(self, chunk_id: bytes, plain: memoryview) -> tuple[int, int, int]:
        if len(self._builder) == self._most:
            self.flush()
        if not len(self._builder):
            self._session = self._run.begin_pack(self._builder)
        slot = self._builder.add(chunk_id, plain)
        return self._session.number, self._builder.number, slot

    def flush(self) -> None:
        if len(self._builder):
            self._session.put_pack(self._builder)
            self._builder.clear()


def restored(repository: Repository, point: Point) -> list[bytes]:
    """The chunks of the point's disk. Raises DamageError."""
    (disk,) = point.disks
    catalog: Catalog = repository.catalog(point.lineage.group)
    reader = ChunkReader(catalog, Secrets(repository, point.lineage.group))
    found = [bytes(CHUNK)] * CHUNKS
    for extent in extents(disk.root, lambda ref, first: catalog.node(ref, first, point.table[ref.session], CHUNK)):
        if extent.session != ZERO:
            wanted = [Wanted(extent.slot, extent.chunks, extent.first)]
            for number, data in reader.read(point.table[extent.session], extent.pack, wanted):
                found[number] = data
    return found
