"""Guests with common content: what one stored, the others of its group store no second time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ram import RamDisk, RamGuest
from tests.unit.engine.kit import RamKit
from vmbackup.engine.care.verify import verify
from vmbackup.progress import Silent
from vmbackup.repository import condemned, damage, dedup, hooks
from vmbackup.repository.cache import Cache
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.layout import Lineage
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.points import Point
from vmbackup.repository.run import Run
from vmbackup.repository.summary import PointSummary
from vmbackup.repository.tombstones import forget

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
# Of 2,048 chunks 32 are hooks, by chance: what lies before the first one is stored again.
LITTLE = SIZE // 2


class Hosts:
    """Some hosts with a cache each, and a repository that they share."""

    def __init__(self, root: Path) -> None:
        self.kit = RamKit(root, {"vda": SIZE})
        self.common = random.Random(1).randbytes(SIZE)
        self.on("host-a")

    def on(self, name: str) -> None:
        """From here on all is done on that host."""
        self.kit.repository.cache.close()
        self.kit.reopen()
        self.kit.repository.cache = Cache(self.kit.root / f"{name}.sqlite")

    def guest(self, name: str, data: bytes | None = None) -> RamDisk:
        """A new guest with the common content."""
        disk = RamDisk(bytearray(self.common if data is None else data))
        self.kit.host.add(RamGuest(name, {"vda": disk}))
        return disk

    def backup(self, name: str) -> PointSummary:
        return self.kit.backup_guest(name)

    def points(self, name: str) -> list[Point]:
        return [point for point in self.kit.points() if point.domain == name]

    def prune(self) -> None:
        prune(self.kit.repository, PruneOptions(), sleep=lambda _s: None)

    def forget(self, name: str) -> None:
        """A guest is erased."""
        for point in self.points(name):
            forget(self.kit.repository, point.lineage, point.session)
        self.prune()

    def check(self, name: str, data: bytes) -> None:
        """The newest point restores to that, and verify finds nothing."""
        point = self.points(name)[0]
        assert self.kit.restored(point)["vda"] == data
        assert verify(self.kit.repository, None, 1.0, Silent()).damaged == ()


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    """Guest `first` is backed up on host-a."""
    hosts = Hosts(tmp_path)
    hosts.guest("first")
    assert hosts.backup("first").disks[0].stored_bytes > SIZE
    return hosts


@pytest.mark.parametrize("host", ["host-a", "host-b"])
def test_a_second_guest_stores_almost_nothing(hosts: Hosts, host: str) -> None:
    """On the same host, and on one that has to ask the repository; and it outlives the first guest."""
    hosts.on(host)
    hosts.guest("second")
    assert hosts.backup("second").disks[0].stored_bytes < LITTLE
    hosts.check("second", hosts.common)
    hosts.forget("first")
    assert not hosts.points("first")
    hosts.check("second", hosts.common)
    hosts.on("host-c")
    disk = hosts.guest("third")
    assert hosts.backup("third").disks[0].stored_bytes < LITTLE, "found through the second guest alone"
    disk.write(5 * KIB, b"changed")
    hosts.backup("third")
    hosts.forget("second")
    hosts.check("third", bytes(disk.data))
    hosts.forget("third")
    assert not list(hosts.kit.store.list("data/"))


def test_what_is_shared_is_found_on_from_its_first_hook(hosts: Hosts) -> None:
    """A second guest with the first half of the content and another second one stores that one alone."""
    data = hosts.common[: SIZE // 2] + random.Random(2).randbytes(SIZE // 2)
    hosts.guest("second", data)
    assert SIZE // 2 < hosts.backup("second").disks[0].stored_bytes < SIZE - SIZE // 8
    hosts.check("second", data)


def test_moved_content_of_the_own_guest_is_found(hosts: Hosts) -> None:
    """Read whole, with everything at another place: the own history's hooks lead there."""
    hosts.guest("second", random.Random(3).randbytes(SIZE))
    hosts.backup("second")
    disk = hosts.kit.host._guests["second"].disks["vda"]
    moved = bytes(disk.data[SIZE // 2 :] + disk.data[: SIZE // 2])
    disk.write(0, moved)
    assert hosts.backup("second").disks[0].stored_bytes < LITTLE
    hosts.check("second", moved)


def test_a_run_that_was_killed_and_another_guest(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed run's partial serves other guests as long as it stands, beside the point that was there before."""
    before, stored = (random.Random(seed).randbytes(SIZE) for seed in (3, 4))
    disk = hosts.guest("failing", before)
    hosts.backup("failing")
    disk.write(0, stored)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "commit", lambda *_: 1 // 0)
        hosts.backup("failing")
    hosts.on("host-b")
    hosts.guest("second", stored)
    assert hosts.backup("second").disks[0].stored_bytes < LITTLE
    hosts.guest("third", before)
    assert hosts.backup("third").disks[0].stored_bytes < LITTLE
    for partial in hosts.kit.repository.read_points().partials:
        forget(hosts.kit.repository, partial.lineage, partial.session)
    hosts.prune()
    hosts.check("second", stored)


def test_packs_are_looked_up_ahead(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a guest's map leads on from packs that hit, the following ones need no hook."""
    monkeypatch.setattr(hooks, "HOOK", 32)
    monkeypatch.setattr(dedup, "HOOK", 32)
    monkeypatch.setattr("vmbackup.engine.pipeline.packing.PackBuilder", lambda: PackBuilder(MIB))
    data = random.Random(5).randbytes(SIZE)
    hosts.guest("second", data)
    hosts.backup("second")
    hosts.kit.repository.cache.change(("DELETE FROM hooks WHERE pack > 0", [()]))
    hosts.guest("third", data)
    assert hosts.backup("third").disks[0].stored_bytes < MIB
    hosts.check("third", data)


def test_of_other_histories_sessions_alone_are_listed(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over a map with others' packs does not list all that those ever stored."""
    disk = hosts.guest("second")
    hosts.backup("second")
    disk.write(0, b"changed")
    listed: list[str] = []
    original = hosts.kit.store.list

    def spy(prefix: str, after: str = "") -> object:
        listed.append(prefix)
        return original(prefix, after)

    monkeypatch.setattr(hosts.kit.store, "list", spy)
    hosts.backup("second")
    (first,) = hosts.points("first")
    assert first.lineage.prefix("data", first.session) in listed
    assert first.lineage.prefix("data") not in listed
    assert not [prefix for prefix in listed if prefix.startswith(first.lineage.prefix("meta"))]


def only_pack(hosts: Hosts) -> ObjectName:
    (name,) = (ObjectName.parse(entry.key) for entry in hosts.kit.store.list("data/"))
    return name


def condemned_pack(hosts: Hosts) -> None:
    condemned.put(hosts.kit.store, "default", [only_pack(hosts)])


def condemned_index(hosts: Hosts) -> None:
    condemned.put(hosts.kit.store, "default", [only_pack(hosts)._replace(kind="index", number=0)])


def damaged_pack(hosts: Hosts) -> None:
    damage.record(hosts.kit.store, "default", [only_pack(hosts)])


def missing_pack(hosts: Hosts) -> None:
    hosts.kit.store.delete(only_pack(hosts).key("default"))


def cut_pack(hosts: Hosts) -> None:
    path = hosts.kit.root / "repository" / only_pack(hosts).key("default")
    path.write_bytes(path.read_bytes()[:-1])


def forgotten_point(hosts: Hosts) -> None:
    (point,) = hosts.points("first")
    forget(hosts.kit.repository, point.lineage, point.session)


def lost_map(hosts: Hosts) -> None:
    for entry in list(hosts.kit.store.list("meta/")):
        hosts.kit.store.delete(entry.key)


TROUBLES = [condemned_pack, condemned_index, damaged_pack, missing_pack, cut_pack, forgotten_point, lost_map]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_may_go_or_is_broken_is_not_used(hosts: Hosts, trouble: Callable[[Hosts], None]) -> None:
    """The cache knows the chunks, but no valid point vouches for them, or their pack is unfit: all is stored anew."""
    trouble(hosts)
    hosts.guest("second")
    made = hosts.backup("second")
    assert made.disks[0].stored_bytes > SIZE
    assert made.warnings == ()
    assert hosts.kit.restored(hosts.points("second")[0])["vda"] == hosts.common


def test_only_what_a_valid_point_reaches_is_used(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest point knows a session for its last pack alone: its other ones are there, and are not built on."""
    monkeypatch.setattr("vmbackup.engine.pipeline.packing.PackBuilder", lambda: PackBuilder(MIB))
    hosts.kit.options = replace(hosts.kit.options, workers=1)
    disk = hosts.guest("second", random.Random(5).randbytes(SIZE))
    hosts.backup("second")
    old = bytes(disk.data)
    disk.write(0, random.Random(6).randbytes(SIZE - 64 * KIB))
    hosts.backup("second")
    newest, first = hosts.points("second")
    assert first.session in {ref.session for ref in newest.table.values()}
    forget(hosts.kit.repository, first.lineage, first.session)
    hosts.guest("third", old)
    assert hosts.backup("third").disks[0].stored_bytes > SIZE - MIB
    hosts.prune()
    hosts.check("third", old)
    hosts.check("second", bytes(disk.data))


def test_never_across_groups(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hints of a history of another group lead nowhere, and hooks of one are not asked for."""
    (point,) = hosts.points("first")
    cache = hosts.kit.repository.cache
    cache.change(("UPDATE members SET grp = 'other'", [()]), ("UPDATE sources SET grp = 'other'", [()]))
    asked: list[Lineage | None] = []
    read = hosts.kit.repository.read_points

    def spy(lineage: Lineage | None = None, **options: bool) -> object:
        asked.append(lineage)
        return read(lineage, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hosts.kit.repository, "read_points", spy)
    monkeypatch.setattr("vmbackup.repository.run.gather", lambda *_: None)
    hosts.guest("second")
    assert hosts.backup("second").disks[0].stored_bytes > SIZE
    assert point.lineage not in asked


@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_cache_leads_to_no_wrong_chunk(hosts: Hosts, seed: int) -> None:
    """Rows that lie of packs, sessions and histories cost storage at most."""
    chance = random.Random(seed)
    hosts.guest("second", random.Random(8).randbytes(SIZE))
    hosts.backup("second")
    cache = hosts.kit.repository.cache
    hooks_known = [row[0] for row in cache.rows("SELECT hook FROM hooks")]
    sessions = [row[0] for row in cache.rows("SELECT number FROM sessions")]
    lies = [(chance.choice(hooks_known), chance.choice([*sessions, 77]), chance.randrange(3)) for _ in range(300)]
    wrong = [(chance.randrange(1 << 58), chance.choice(sessions), 0) for _ in range(300)]
    cache.change(
        ("DELETE FROM hooks WHERE hook % ? = 0", [(2 + seed,)]),
        ("INSERT OR IGNORE INTO hooks VALUES (?, ?, ?)", [*lies, *wrong]),
        ("INSERT OR IGNORE INTO members VALUES (?, 'default', ?)", [(n, chance.randbytes(16)) for n in sessions]),
        ("INSERT OR IGNORE INTO members VALUES (?, 'default', 'text')", [(n,) for n in sessions]),
        ("INSERT OR IGNORE INTO sessions VALUES (77, ?, 'many')", [(chance.randbytes(16),)]),
        ("UPDATE OR IGNORE hooks SET pack = 'text' WHERE hook % 5 = ?", [(seed % 5,)]),
    )
    assert cache, cache.problem
    data = hosts.common[SIZE // 2 :] + random.Random(8).randbytes(SIZE)[: SIZE // 2]
    hosts.guest("third", data)
    hosts.backup("third")
    hosts.check("third", data)


def test_a_small_session_has_no_hooks_to_fetch(hosts: Hosts) -> None:
    """It is not worth a request; the host that made it knows them all the same."""
    few = random.Random(9).randbytes(SIZE // 16)
    hosts.guest("small", few)
    before = len(list(hosts.kit.store.list("index/")))
    hosts.backup("small")
    assert len(list(hosts.kit.store.list("index/"))) - before == 2, "a part and a root"
    assert len(few) < hooks.LEAST * 64 * 4096


def test_chunks_that_a_repack_moved(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of a session whose packs were rewritten lead to where its chunks lie now, on any host (rule W5)."""
    monkeypatch.setattr(hooks, "HOOK", 64)
    monkeypatch.setattr(dedup, "HOOK", 64)
    monkeypatch.setattr("vmbackup.engine.pipeline.packing.PackBuilder", lambda: PackBuilder(MIB))
    disk = hosts.guest("second", random.Random(5).randbytes(SIZE))
    hosts.backup("second")
    old = bytes(disk.data)
    for at in range(0, SIZE, 2 * MIB):
        disk.write(at, random.Random(at).randbytes(MIB + MIB // 2))
    hosts.backup("second")
    _, first = hosts.points("second")
    forget(hosts.kit.repository, first.lineage, first.session)
    hosts.prune()
    assert hosts.kit.repository.read_points().moves
    hosts.on("host-b")
    hosts.guest("third", old)
    kept = SIZE // 4
    assert hosts.backup("third").disks[0].stored_bytes < SIZE - kept // 2
    hosts.prune()
    hosts.check("third", old)
    hosts.forget("second")
    hosts.check("third", old)
