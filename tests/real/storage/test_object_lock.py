"""A repository whose objects are locked: a day is a minute here, all else is as it is."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.lab.ceph import USERS
from tests.ram import RamDisk, RamGuest
from tests.real.storage.policies import PRUNER, WRITER, policy
from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.cli.prune import _document, _text
from vmbackup.errors import AccessError, DamageError, JobConflictError, UsageError
from vmbackup.repository import condemned, locks
from vmbackup.repository.cache import Cache
from vmbackup.repository.collect import PruneOptions, PruneReport, prune
from vmbackup.repository.repository import Repository
from vmbackup.repository.run import Run
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import S3Settings, Store

pytestmark = pytest.mark.real

MIB = 1 << 20
DAYS = 4  # and one of a generation


@pytest.fixture(autouse=True)
def minutes_for_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "DAY", 60.0)


@pytest.fixture
def locking(client: Any) -> str:
    """A bucket with object lock, thrown away with the server."""
    name = f"test-{secrets.token_hex(4)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return name


@pytest.fixture
def kit(make_store: Callable[..., Store], locking: str, tmp_path: Path) -> RamKit:
    return RamKit(tmp_path, {"vda": 2 * MIB}, store=make_store(url=f"s3://{locking}/r"), object_lock_days=DAYS)


def write(kit: RamKit, count: int = 5, seed: int = 1) -> None:
    chance = random.Random(seed)
    for _ in range(count):
        kit.disk().write(chance.randrange(0, 2 * MIB - 4096), chance.randbytes(4096))


def locked(client: Any, bucket: str) -> dict[str, float]:
    """Until when each object's first version is locked; 0 for one that is not."""
    found = {}
    for version in client.list_object_versions(Bucket=bucket)["Versions"]:
        head = client.head_object(Bucket=bucket, Key=version["Key"], VersionId=version["VersionId"])
        until = head.get("ObjectLockRetainUntilDate")
        found[version["Key"].removeprefix("r/")] = until.timestamp() if until else 0.0
    return found


def test_what_a_point_needs_is_locked(kit: RamKit, client: Any, locking: str) -> None:
    """And nothing that lives for a while only; the point says until when, which holds."""
    before = time.time()
    made = locked(client, locking)
    assert min(made.values()) >= before - 10 + DAYS * 60
    write(kit)
    kit.backup()
    found = locked(client, locking)
    folders = {key.partition("/")[0] for key in found}
    assert folders == {"config", "config.copy", "keys", "groups", "writers", "data", "meta", "index", "points"}
    assert min(found.values()) >= before - 10 + DAYS * 60
    [point] = kit.points()
    assert point.locked_until is not None
    packs = [until for key, until in found.items() if key.split("/")[0] in ("data", "meta", "index", "points")]
    assert min(packs) >= point.locked_until.timestamp() >= before + DAYS * 60
    # A stolen host that says of its point that all is locked for ever makes nobody leave out an extension.
    run = locks.RunLocks(kit.store, kit.repository.catalog(), DAYS, time.time())
    assert run._promised(point, time.time()) > 0
    point.public["locked_until"] = datetime(2999, 1, 1, tzinfo=UTC).isoformat()
    assert run._promised(point, time.time()) == 0.0
    point.public["locked_until"] = "never"
    assert run._promised(point, time.time()) == 0.0
    forget(kit.repository, point.lineage, point.session)
    assert {key for key, until in locked(client, locking).items() if not until} == {point.lineage.trash(point.session)}


@pytest.mark.torture
def test_old_objects_are_locked_longer_once_a_generation(
    kit: RamKit, client: Any, locking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later point of the same generation leaves the locks of what it builds on; one of the next extends them all."""
    write(kit, 20)
    kit.backup()
    first = locked(client, locking)
    write(kit, 1, seed=2)
    kit.backup()
    second = locked(client, locking)
    assert {key: second[key] for key in first} == first
    [newer, older] = kit.points()
    assert newer.locked_until == older.locked_until
    monkeypatch.setattr(locks.RunLocks, "_promised", lambda *_: 0.0)
    time.sleep(1)
    write(kit, 1, seed=3)
    kit.backup()
    third = locked(client, locking)
    extended = {key for key in second if third[key] > second[key]}
    needed = {key for key in first if key.startswith(("data/", "index/", "keys/", "writers/", "groups/", "config"))}
    assert needed <= extended
    assert not any(key.startswith("points/") for key in extended)
    assert min(third[key] for key in needed) >= kit.points()[0].locked_until.timestamp()  # type: ignore[union-attr]
    kit.check_all()


def test_what_a_thief_deletes_and_overwrites_is_seen_through(kit: RamKit, client: Any, locking: str) -> None:
    """He has the key of a host: a marker on every object, other bytes over them, and each point restores."""
    write(kit, 30)
    kit.backup()
    for number, key in enumerate(locked(client, locking)):
        if number % 2:
            client.put_object(Bucket=locking, Key=f"r/{key}", Body=b"vmbackup")
        client.delete_object(Bucket=locking, Key=f"r/{key}")
    kit.trust = Trust(None)
    kit.reopen()
    kit.check_all()
    write(kit, 3, seed=3)
    kit.backup()
    kit.check_all()


@pytest.mark.torture
def test_chunks_that_are_found_elsewhere_are_locked_longer(kit: RamKit, client: Any, locking: str) -> None:
    """In one generation: the parent does not need their packs, so nobody has promised anything of them."""
    kit.repository.cache = Cache(kit.root / "cache.sqlite")
    common = random.Random(1).randbytes(2 * MIB)
    kit.disk().write(0, common)
    kit.backup()
    other = RamDisk(bytearray(2 * MIB))
    kit.host.add(RamGuest("other", {"vda": other}))
    kit.backup_guest("other")
    before = locked(client, locking)
    time.sleep(1)
    other.write(0, common)
    assert kit.backup_guest("other").disks[0].stored_bytes < 2 * MIB  # some of it is found
    [newest, empty] = [point for point in kit.points() if point.domain == "other"]
    [first] = [point for point in kit.points() if point.domain == "guest"]
    after = locked(client, locking)
    extended = {key for key in before if after[key] > before[key]}
    packs = {key for key in before if key.startswith(("data/", "index/")) and first.session.hex() in key}
    assert extended == packs
    assert newest.locked_until == empty.locked_until
    assert kit.verify().damaged == ()


@pytest.mark.torture
def test_prune_leaves_what_is_locked_and_takes_it_later(
    make_store: Callable[..., Store], client: Any, locking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells how much stays and until when; nothing is queued; at the end not even a marker is left."""
    monkeypatch.setattr(locks, "DAY", 5.0)
    kit = RamKit(tmp_path, {"vda": 2 * MIB}, store=make_store(url=f"s3://{locking}/r"), object_lock_days=DAYS)
    write(kit, 20)
    kit.backup()
    [old] = kit.points()
    until = max(end for key, end in locked(client, locking).items() if key.startswith("data/"))
    kit.disk().write(0, random.Random(9).randbytes(2 * MIB))
    kit.backup()
    forget(kit.repository, old.lineage, old.session)
    del kit.kept[old.id]
    report = _prune(kit.repository)
    assert report.objects == 0
    assert {size > 0 for size, _ in report.locked.values()} == {True}
    last = max(end for _, end in report.locked.values())
    assert abs(last - until) < 3
    assert kit.repository.exists(old.key)
    kit.check_all()
    time.sleep(max(0.0, last + 2 - time.time()))
    report = _prune(kit.repository)
    assert (report.objects > 0, report.locked) == (True, {})
    assert old.session.hex() not in str(client.list_object_versions(Bucket=locking))
    kit.check_all()


def test_a_refused_delete_is_forgotten(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that a later point extended is met at the delete; the condemned list goes all the same."""
    write(kit, 20)
    kit.backup()
    [old] = kit.points()
    kit.disk().write(0, random.Random(9).randbytes(2 * MIB))
    kit.backup()
    forget(kit.repository, old.lineage, old.session)
    with monkeypatch.context() as none_is_due:
        none_is_due.setattr(condemned, "put", lambda *_: pytest.fail("what is young is not even condemned"))
        assert _prune(kit.repository).locked
    monkeypatch.setattr("vmbackup.repository.collect.locks.seconds", lambda _: 0.0)  # since it was put
    report = _prune(kit.repository)
    assert (report.objects, report.bytes) == (0, 0)
    assert {end > time.time() for _, end in report.locked.values()} == {True}
    assert list(kit.repository.store.list("condemned/")) == []
    told = _document(report, dry_run=False)["locked"]
    assert (told["objects"], told["bytes"]) == (len(report.locked), sum(size for size, _ in report.locked.values()))
    assert datetime.fromisoformat(told["until"]).timestamp() == max(end for _, end in report.locked.values())
    assert any("locked, the last until" in line for line in _text(report, dry_run=False))
    assert report.kept_bytes == sum(e.size for f in ("data", "meta", "index") for e in kit.store.list(f"{f}/"))


@pytest.mark.torture
def test_a_host_that_cannot_delete(
    kit: RamKit,
    client: Any,
    locking: str,
    settings: S3Settings,
    make_store: Callable[..., Store],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It backs up all the same; a prune with a key that may takes its pins, and what it put to try the store."""
    client.put_bucket_policy(Bucket=locking, Policy=policy(locking, {"other": WRITER, "vmbackup": PRUNER}))
    keys = dict(zip(("access_key", "secret_key"), USERS["other"], strict=True))
    store = make_store(replace(settings, **keys), f"s3://{locking}/r")
    owner, kit.store = kit.store, store
    kit.reopen()
    for seed in range(3):
        write(kit, 3, seed=seed)
        kit.backup()
    kit.check_all()
    assert store.probe().lacks == ()
    with pytest.raises(AccessError, match="may delete nothing"):
        _prune(kit.repository)
    assert len(list(store.list("sessions/"))) == 3
    _fail_a_run(kit)
    repository = Repository.open(owner, SECRET, Trust(None))
    assert _prune(repository).waited_for == []
    assert list(store.list("sessions/")) == []
    monkeypatch.setattr(locks, "DAY", -10.0)  # what is a day old
    _prune(repository)
    assert list(owner.list("probe/")) == []
    kit.check_all()


def _fail_a_run(kit: RamKit) -> None:
    """Of a run that gives up before it stored anything no prune is kept waiting."""
    [lineage] = {point.lineage for point in kit.points()}
    rival = Run.open(kit.repository, lineage, "another host")
    with pytest.raises(JobConflictError):
        Run.open(kit.repository, lineage, "this host")
    rival.abandon()


def _prune(repository: Repository) -> PruneReport:
    return prune(repository, PruneOptions(wait=0))


def test_a_server_without_put_if_absent_is_pruned_only_by_a_promise(
    rclone: Any, tmp_path: Path, make_store: Callable[..., Store]
) -> None:
    """A repository that was brought to rclone is read as ever; a prune wants the promise that it is alone."""
    import shutil

    from tests.lab.rclone import KEYS
    from vmbackup.cli.findings import look
    from vmbackup.errors import RepositoryError

    kit = RamKit(tmp_path, {"vda": 2 * MIB})
    write(kit, 10)
    kit.backup()
    write(kit, 10, seed=2)
    kit.backup()
    old = kit.points()[1]
    forget(kit.repository, old.lineage, old.session)
    del kit.kept[old.id]
    bucket = f"test-{secrets.token_hex(4)}"
    shutil.copytree(tmp_path / "repository", rclone.folder / bucket)
    kit.store = make_store(S3Settings(rclone.http, access_key=KEYS[0], secret_key=KEYS[1]), f"s3://{bucket}")
    kit.trust = Trust(None)
    kit.reopen()
    kit.check_all()
    with pytest.raises(UsageError, match="overwrites objects"):
        _prune(kit.repository)
    with pytest.raises(RepositoryError, match="does not keep what was put first"):
        look(tmp_path / "state", kit.store)
    assert prune(kit.repository, PruneOptions(wait=0, exclusive=True)).objects > 0
    kit.check_all()


@pytest.mark.torture
def test_what_cannot_be_locked_is_a_warning(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The point is made all the same, promises nothing, and the next one extends everything."""
    write(kit)
    kit.backup()

    def missing(*_: object) -> None:
        raise DamageError("data/x is missing")

    with monkeypatch.context() as broken:
        broken.setattr(locks.RunLocks, "_lock", missing)
        broken.setattr(locks.RunLocks, "_promised", lambda *_: 0.0)
        made = kit.backup()
    assert [w for w in made.warnings if "could be locked: data/x is missing" in w]
    assert kit.points()[0].locked_until is None
    kit.backup()
    assert kit.points()[0].locked_until is not None
