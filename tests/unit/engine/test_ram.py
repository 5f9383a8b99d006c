"""The engine and the repository over guests in memory: what is read, stored, found again and restored."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ram import RamDisk
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.engine.backup import run as backup_module
from vmbackup.errors import DamageError, JobConflictError, PointInTimeLostError, RepositoryError, VmbackupError
from vmbackup.repository import Repository, rivals
from vmbackup.repository.session import Session

KIB, MIB = 1 << 10, 1 << 20


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may clean up after it."""


@pytest.fixture
def make_kit(tmp_path: Path) -> Callable[..., RamKit]:
    return lambda sizes=None, **options: RamKit(tmp_path, sizes or {"vda": 4 * MIB}, **options)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs after a failure does not run, as after kill -9."""
    monkeypatch.setattr(backup_module.GuestBackup, "abandon", lambda *_: None)
    monkeypatch.setattr("tests.ram.RamJob.__exit__", lambda *_: None)


def patterned(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("chunk_size", [4 * KIB, 64 * KIB])
def test_random_evolution(make_kit: Callable[..., RamKit], chunk_size: int, seed: int) -> None:
    """Disks that are written, zeroed, grown, shrunk, added and removed restore at every point, whatever came after."""
    kit = make_kit({"vda": 4 * MIB + 512, "vdb": 300 * KIB}, chunk_size=chunk_size)
    chance = random.Random(seed)
    for _ in range(12):
        for disk in kit.guest.disks.values():
            for _ in range(chance.randrange(6)):
                at = chance.randrange(len(disk.data) - 8)
                length = min(chance.choice([1, 512, 5000, 70_000, 300_000]), len(disk.data) - at)
                if chance.random() < 0.5:
                    at, length = at % MIB % len(disk.data), min(length, len(disk.data) - at % MIB % len(disk.data))
                fill = chance.random()
                data = bytes(length) if fill < 0.3 else bytes([chance.randrange(256)]) * length
                disk.write(at, data if fill < 0.6 else chance.randbytes(length))
        change = chance.random()
        if change < 0.2:
            disk = kit.disk()
            disk.resize(max(8 * KIB, len(disk.data) + chance.randrange(-MIB, 2 * MIB) // 512 * 512))
        elif change < 0.3 and "vdc" not in kit.guest.disks:
            kit.guest.disks["vdc"] = RamDisk(bytearray(chance.randbytes(200 * KIB)))
        elif change < 0.4:
            kit.guest.disks.pop("vdb", None)
        elif change < 0.5:
            kit.disk().tracked = False
        kit.backup(full=chance.random() < 0.1)
        if chance.random() < 0.3:
            kit.reopen()
    kit.check_all()


def test_unchanged_disk_costs_nothing(make_kit: Callable[..., RamKit]) -> None:
    """An incremental with no change stores no pack; a whole reading of the same bytes stores no chunk."""
    kit = make_kit()
    kit.disk().write(MIB, patterned(MIB, 1))
    first = kit.backup()
    assert (first.disks[0].mode, first.disks[0].read_bytes) == ("full", MIB)
    again = kit.backup()
    assert (again.disks[0].mode, again.disks[0].read_bytes, again.disks[0].changed_bytes) == ("incremental", 0, 0)
    kit.disk().tracked = False
    reread = kit.backup()
    assert (reread.disks[0].mode, reread.disks[0].read_bytes) == ("reread", MIB)
    assert (reread.disks[0].changed_bytes, reread.disks[0].stored_bytes) == (0, 0)
    assert [len(list(kit.store.list(f"{kind}/"))) for kind in ("data", "meta")] == [1, 1]
    kit.check_all()


def test_equal_chunks_are_stored_once(make_kit: Callable[..., RamKit]) -> None:
    """The same bytes at two places of a disk take one slot."""
    kit = make_kit()
    block = patterned(64 * KIB, 2)
    kit.disk().write(0, block)
    kit.disk().write(2 * MIB, block)
    point = kit.backup()
    assert 64 * KIB < point.disks[0].stored_bytes < 70 * KIB
    kit.check_all()


def test_dirty_zeros_replace_data(make_kit: Callable[..., RamKit]) -> None:
    """A block that was written and is zero now is restored as zeros."""
    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 3))
    kit.backup()
    kit.disk().write(0, bytes(MIB))
    assert kit.backup().disks[0].changed_bytes == MIB
    kit.check_all()


def test_long_run_keeps_partials(make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over several sessions gives one point; its partials are never listed, and its chunks restore."""
    monkeypatch.setattr("vmbackup.engine.pipeline.units.UNIT_BYTES", 256 * KIB)
    monkeypatch.setattr("vmbackup.repository.packs.PACK_BYTES", 256 * KIB)
    monkeypatch.setattr("vmbackup.repository.packs.PackBuilder.__init__.__defaults__", (256 * KIB,))
    kit = make_kit({"vda": 12 * MIB})
    kit.disk().write(0, patterned(12 * MIB, 4))
    kit.backup(partial_bytes=2 * MIB)
    found = kit.repository.read_points()
    assert len(found.points) == 1
    assert len(found.partials) >= 3
    assert list(kit.store.list("sessions/")) == []
    kit.disk().write(5 * MIB, b"changed")
    kit.backup()
    kit.check_all()


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize("reads", [1, 5, 11])
def test_killed_full_is_found_again(
    make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch, reads: int
) -> None:
    """What a killed run stored is not stored again, and the killed session ends."""
    monkeypatch.setattr("vmbackup.repository.packs.PackBuilder.__init__.__defaults__", (512 * KIB,))
    kit = make_kit({"vda": 12 * MIB})
    kit.disk().write(0, patterned(12 * MIB, 5))
    count = 0

    def on_read() -> None:
        nonlocal count
        count += 1
        if count > reads:
            raise Killed

    kit.host.on_read = on_read
    with pytest.raises(Killed):
        kit.backup()
    stored = sum(e.size for e in kit.store.list("data/"))
    assert len(list(kit.store.list("sessions/"))) == 1
    kit.host.on_read = lambda: None
    point = kit.backup()
    assert point.disks[0].stored_bytes <= 12.5 * MIB - stored
    assert list(kit.store.list("sessions/")) == []
    kit.backup()
    kit.check_all()


def test_failed_run_leaves_its_chunks(make_kit: Callable[..., RamKit]) -> None:
    """A run whose point in time was lost commits nothing; the next one finds what it stored."""
    kit = make_kit()
    kit.disk().write(0, patterned(4 * MIB, 6))

    def lost() -> None:
        raise PointInTimeLostError("the job is gone")

    kit.host.on_seal = lost
    with pytest.raises(PointInTimeLostError):
        kit.backup()
    assert kit.points() == []
    assert kit.host.jobs[0].finished is False
    kit.host.on_seal = lambda: None
    assert kit.backup().disks[0].stored_bytes == 0
    kit.check_all()


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize("step", ["pin", "commit", "unpin"])
def test_killed_at_a_step(make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Killed after the pin, before the commit or after it: the next run is right, and a committed point stays."""
    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 7))
    first = kit.backup()
    kit.disk().write(0, patterned(MIB, 8))
    original = getattr(Session, step)

    def kill(self: Session, *args: object) -> None:
        if step == "pin":
            original(self, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, step, kill)
        with pytest.raises(Killed):
            kit.backup()
    if step == "unpin":
        new = next(p for p in kit.points() if p.id != first.id)
        kit.kept[new.id] = {"vda": bytes(kit.disk().data)}
    second = kit.backup()
    assert second.parent == (new.id if step == "unpin" else first.id)
    assert list(kit.store.list("sessions/")) == []
    kit.check_all()


def test_a_session_that_was_aborted_never_commits(
    make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a collector put "aborted" first, the run fails and says so."""
    kit = make_kit()
    kit.disk().write(0, b"x")
    original = Session.commit

    def aborted(self: Session, *args: object) -> object:
        self.repository.store.put(self.lineage.point(self.id), b"vmbackupABRT\0\1\0\0")
        return original(self, *args)

    monkeypatch.setattr(Session, "commit", aborted)
    with pytest.raises(RepositoryError, match="ended by a collector"):
        kit.backup()
    assert kit.points() == []


def test_rival_host_gives_way(make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch) -> None:
    """While another host's older session of the guest is open, this one fails; a stale one is told as a warning."""
    kit = make_kit()
    lineage = kit.repository.lineage("libvirt", kit.guest.uuid)
    rival = Session(kit.repository, lineage, 0, "other-host")
    rival.id = bytes(6) + rival.id[6:]
    rival.pin()
    with pytest.raises(JobConflictError, match="another host"):
        kit.backup()
    monkeypatch.setattr(rivals, "RIVAL_SECONDS", -1.0)
    assert "never ended" in kit.backup().warnings[0]
    kit.check_all()


def test_protocol_order(make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pin, then condemned, points, trash, dead; packs, index, then the point; the pin goes last."""
    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 9))
    calls: list[str] = []
    store = kit.store
    for verb in ("put", "list", "delete"):
        original = getattr(store, verb)

        def spy(key: str, *args: object, verb: str = verb, original: Callable[..., object] = original) -> object:
            calls.append(f"{verb} {key.split('/', maxsplit=1)[0]}")
            return original(key, *args)

        monkeypatch.setattr(store, verb, spy)
    kit.backup()
    order = ["put sessions", "list condemned", "list points", "list trash", "list dead"]
    after_pin = calls[calls.index("put sessions") :]
    positions = [after_pin.index(call) for call in order]
    assert positions == sorted(positions)
    writes = [c for c in calls if c.startswith(("put", "delete"))]
    assert writes == [
        "put sessions",
        *sorted(w for w in writes if w in ("put data", "put meta")),
        "put index",
        "put index",
        "put points",
        "delete sessions",
    ]


@pytest.mark.parametrize("folder", ["condemned", "trash", "dead"])
def test_newer_collectors_are_respected(make_kit: Callable[..., RamKit], folder: str) -> None:
    """A repository that is pruned by a version this one does not know is not written to."""
    kit = make_kit()
    kind = {"condemned": b"COND", "trash": b"TRSH", "dead": b"DEAD"}[folder]
    lineage = kit.repository.lineage("libvirt", kit.guest.uuid)
    name = f"{lineage.id.hex()}/" if folder == "trash" else ""
    kit.store.put(f"{folder}/default/{name}{bytes(16).hex()}", b"vmbackup" + kind + b"\0\2\0\0" + bytes(100))
    with pytest.raises(RepositoryError, match="newer version"):
        kit.backup()
    assert list(kit.store.list("sessions/")) == []


def test_condemned_lists_must_be_readable(make_kit: Callable[..., RamKit]) -> None:
    """A run that cannot know what is about to be deleted does not go on."""
    kit = make_kit()
    kit.store.put(f"condemned/default/{bytes(16).hex()}", b"?" * 50)
    with pytest.raises(DamageError) as caught:
        kit.backup()
    assert "delete it" in caught.value.hint
    assert list(kit.store.list("sessions/")) == []


def test_damaged_map_costs_a_read(make_kit: Callable[..., RamKit]) -> None:
    """Where the parent's map cannot be read, the guest is read whole again, and the new point is right."""
    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 10))
    first = kit.backup()
    for path in (kit.root / "repository" / "meta").rglob("*"):
        if path.is_file():
            path.write_bytes(b"broken" * 100)
    kit.reopen()
    kit.disk().write(2 * MIB, b"more")
    second = kit.backup()
    assert second.disks[0].mode == "reread"
    assert second.status == "warning"
    del kit.kept[first.id]
    point = next(p for p in kit.points() if p.id == second.id)
    assert kit.restored(point) == kit.kept[second.id]


def test_full_store(make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that runs full fails the run; the points before it are good."""
    from vmbackup.storage_backends import StoreFull

    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 11))
    kit.backup()
    kit.disk().write(0, patterned(MIB, 12))
    original = kit.store.put

    def put(key: str, data: object) -> None:
        if key.startswith("data/"):
            raise StoreFull("no space left", "make space")
        original(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(kit.store, "put", put)
        with pytest.raises((StoreFull, VmbackupError), match="no space"):
            kit.backup()
    kit.check_all()
    kit.backup()
    kit.check_all()


def test_a_run_that_cannot_begin_leaves_nothing(
    make_kit: Callable[..., RamKit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused begin leaves no object behind, however often it happens."""
    kit = make_kit()
    before = [e.key for e in kit.store.list("")]

    def refused(*_: object, **__: object) -> None:
        raise JobConflictError("busy")

    monkeypatch.setattr(kit.host, "begin", refused)
    for _ in range(3):
        with pytest.raises(JobConflictError):
            kit.backup()
    assert [e.key for e in kit.store.list("")] == before


def test_chunk_size_may_change(make_kit: Callable[..., RamKit]) -> None:
    """With another chunk size the guest is read whole once, and all points restore."""
    kit = make_kit(chunk_size=4 * KIB)
    kit.disk().write(0, patterned(MIB, 13))
    kit.backup()
    kit.repository.config = replace(kit.repository.config, chunk_size=16 * KIB)
    kit.repository.recheck = lambda: None  # type: ignore[method-assign]  # keeps this config
    kit.disk().write(2 * MIB, patterned(MIB, 14))
    assert kit.backup().disks[0].mode == "reread"
    kit.disk().write(3 * MIB, patterned(KIB, 15))
    assert kit.backup().disks[0].mode == "incremental"
    kit.check_all()


def test_two_inits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that make a repository in one place, one fails, and the other's opens."""
    first = RamKit(tmp_path, {"vda": MIB})
    monkeypatch.setattr("vmbackup.repository.repository.occupants", lambda _store: iter(()))
    with pytest.raises(RepositoryError, match="somebody else"):
        Repository.create(first.store, SECRET, first.trust)
    first.reopen()
    first.backup()
    first.check_all()


def test_a_second_id_key(make_kit: Callable[..., RamKit]) -> None:
    """What was written under an older id key of the group is read beside what a newer one made."""
    kit = make_kit()
    kit.disk().write(0, patterned(MIB, 17))
    kit.backup()
    group = kit.repository.group()
    kit.repository._groups["default"] = replace(group, id_keys={**group.id_keys, 2: bytes(32)})
    kit.repository._catalogs.clear()
    kit.disk().write(2 * MIB, patterned(MIB, 18))
    assert kit.backup().disks[0].mode == "incremental"
    kit.disk().tracked = False
    kit.backup()
    kit.check_all()
