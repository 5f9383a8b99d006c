"""A stolen backup host occupies names that its owner is about to use: that costs nothing, and is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import SECRET
from tests.unit.threats.world import Kit
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.progress import Silent
from vmbackup.repository import Repository, frames, residency, slots
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.enrolling import enrol, new_writer, revoke
from vmbackup.repository.enrolments import enrolment_key, revocation_key
from vmbackup.repository.keys import Secret
from vmbackup.repository.replica import follow, make_replica
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

GARBAGE = b"garbage of a thief"
NEWER = b"vmbackup%s\0\2\0\0" + bytes(100)


@pytest.fixture(params=[False, True], ids=["unlocked", "locked"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    return Kit(tmp_path, locked=request.param)


def told(kit: Kit) -> set[str]:
    """What verify names as garbage; nothing is damaged, nothing keeps a prune or a backup up."""
    kit.reopen()
    found = kit.verify()
    assert found.damaged == ()
    assert repair(kit.repository, RepairOptions(dry_run=True), Silent()).first.garbage == found.garbage
    prune(kit.repository, PruneOptions())
    kit.change(5)
    kit.backup()
    kit.check_all()
    return {one.object for one in found.garbage}


@pytest.mark.parametrize("garbage", [GARBAGE, NEWER % b"CONF"], ids=["garbage", "newer"])
@pytest.mark.parametrize("folders", [["config"], ["config.copy"], ["config", "config.copy"]])
def test_names_of_the_config(kit: Kit, folders: list[str], garbage: bytes) -> None:
    """All that changes the config goes on, whoever occupies the next numbers, again and again."""
    put: set[str] = set()

    def occupy() -> None:
        for folder in folders:
            for n in (1, 2, 7):
                key = f"{folder}/{kit.repository.config.version + n}"
                if key not in kit.bucket.objects:
                    kit.bucket.put(key, garbage)
                    put.add(key)

    kit.enrolled("host1")
    occupy()
    residency.restrict(kit.repository, ["file"])
    occupy()
    old, new, _ = slots.change(kit.repository, Secret.passphrase("another", random=True))
    occupy()
    slots.remove(kit.repository, slots.add(kit.repository, SECRET, "again"))
    occupy()
    assert revoke(kit.repository, "host1").standing == 0
    occupy()
    slots.add(kit.repository, SECRET, "again")
    slots.rotate(kit.repository, Secret.passphrase("another", random=True), lambda _: None)
    assert old not in kit.repository.config.slots
    assert new not in kit.repository.config.slots
    assert kit.repository.config.epoch == 2
    slots.add(kit.repository, SECRET, "again")
    assert told(kit) == put
    for key in put:
        kit.bucket.objects.pop(key)
    assert told(kit) == set()


def test_a_race_beside_garbage_is_noticed(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two owners change the config at once, and only one of them sees the garbage: both changes hold."""
    other = Repository.open(kit.store, SECRET, Trust(None))
    original = Repository._put_config
    theirs = ""

    def put(self: Repository, document: dict[str, Any]) -> None:
        nonlocal theirs
        monkeypatch.undo()
        key = f"config/{document['version']}"
        kit.bucket.put(key, GARBAGE)
        theirs = slots.add(other, Secret.passphrase("of the other", random=True), "other")
        kit.bucket.objects.pop(key)  # by a thief who may delete, in a bucket without versions
        original(self, document)

    monkeypatch.setattr(Repository, "_put_config", put)
    ours = slots.add(kit.repository, Secret.passphrase("of this one", random=True), "own")
    kit.reopen()
    assert {ours, theirs} <= set(kit.repository.config.slots)


def test_a_copy_of_the_config_whose_name_is_occupied_at_the_last_moment(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version itself holds, and is not made twice."""
    original, before = Repository._put_config, kit.repository.config.version

    def put(self: Repository, document: dict[str, Any]) -> None:
        kit.bucket.put(f"config.copy/{document['version']}", GARBAGE)
        original(self, document)

    monkeypatch.setattr(Repository, "_put_config", put)
    slots.rotate(kit.repository, SECRET, lambda _: None)
    kit.reopen()
    assert (kit.repository.config.version, kit.repository.config.epoch) == (before + 1, 2)


def test_a_version_of_a_replica_is_none(kit: Kit, tmp_path: Path) -> None:
    """It is signed by the same key, and a host that copies can read it."""
    there = open_store(str(tmp_path / "replica"), create=True)
    replica = make_replica(kit.repository, there, SECRET, Trust(None), "replica")
    for label in ("a", "b", "c"):
        slots.add(replica, Secret.passphrase(label, random=True), label)
    version = replica.config.version
    assert version > kit.repository.config.version
    kit.bucket.put(f"config/{version}", there.get(f"config/{version}"))
    for trust in (kit.trust, Trust(None)):
        opened = Repository.open(kit.store, SECRET, trust)
        assert opened.config.repository == kit.repository.config.repository
        opened.recheck()
    assert told(kit) == {f"config/{version}"}


@pytest.mark.parametrize("garbage", [GARBAGE, NEWER % b"WRVK"], ids=["garbage", "newer"])
def test_names_of_a_revocation(kit: Kit, garbage: bytes) -> None:
    """It is put under the next name; what was honest stands, and the thief is out."""
    keys = kit.enrolled("host1")
    owner = kit.repository
    kit.repository = Repository.open(kit.store, keys, Trust(None))
    kit.change(6)
    kit.backup()
    kit.repository = owner
    occupied = [revocation_key(keys.writer.id, n) for n in (0, 1, 2, 5)]
    for key in occupied:
        kit.bucket.put(key, garbage)
    for _ in range(2):  # doing it again ends what was begun
        done = revoke(kit.repository, "host1")
        assert (done.writer.revoked, done.standing) == (True, 1)
        kit.reopen()
    assert revocation_key(keys.writer.id, 3) in kit.bucket.objects
    assert revocation_key(keys.writer.id, 4) not in kit.bucket.objects
    kept = dict(kit.kept)
    kit.repository = kit.thief(keys)
    kit.change(7)
    kit.backup()
    kit.kept = kept
    kit.reopen()
    assert len(kit.repository.read_points().quarantined) == 1
    assert told(kit) == set(occupied)


def test_of_several_revocations_what_all_list_stands(kit: Kit) -> None:
    keys = kit.enrolled("host1")
    owner, kept = kit.repository, dict(kit.kept)
    kit.repository = Repository.open(kit.store, keys, Trust(None))
    kit.change(6)
    kit.backup()
    kit.repository = owner
    revoke(kit.repository, "host1")
    data = kit.bucket.get(revocation_key(keys.writer.id))
    document = frames.parse(data[20:-64], "revocation")
    stricter = frames.sign_document(b"WRVK", document | {"stands": {}}, kit.repository.reader.signing)
    kit.bucket.put(revocation_key(keys.writer.id, 1), stricter)
    kit.reopen()
    assert {p.id for p in kit.points()} == set(kept)


def test_a_revocation_in_another_repository_is_none_here(kit: Kit, tmp_path: Path) -> None:
    """What stands there is not what stands here: brought over by a thief it would quarantine what is honest."""
    keys = kit.enrolled("host1")
    owner = kit.repository
    kit.repository = Repository.open(kit.store, keys, Trust(None))
    kit.change(6)
    kit.backup()
    kit.repository = owner
    there = open_store(str(tmp_path / "replica"), create=True)
    replica = make_replica(kit.repository, there, SECRET, Trust(None), "replica")
    revoke(replica, "host1")
    kit.bucket.put(revocation_key(keys.writer.id), there.get(revocation_key(keys.writer.id)))
    kit.reopen()
    assert not kit.repository.writers()[keys.writer.id].revoked
    assert revoke(kit.repository, "host1").standing == 1
    assert told(kit) == {revocation_key(keys.writer.id)}
    again = make_replica(
        kit.repository, open_store(str(tmp_path / "again"), create=True), SECRET, Trust(None), "replica"
    )
    assert again.writers()[keys.writer.id].revoked


@pytest.mark.parametrize("garbage", [GARBAGE, NEWER % b"GRUP"], ids=["garbage", "newer"])
def test_names_of_groups(kit: Kit, garbage: bytes) -> None:
    """A group is made and rotated beside them, and what is none keeps nothing up."""
    names = ("other/1", "other/3", "none/1", "default/3", "default/6", f"default/{'9' * 18}")
    put = {f"groups/{name}" for name in names}
    for key in put:
        kit.bucket.put(key, garbage)
    kit.bucket.put(f"points/none/{bytes(16).hex()}/{bytes(16).hex()}", b"garbage")
    kit.reopen()
    assert kit.repository.groups() == ["default"]
    prune(kit.repository, PruneOptions())
    kit.enrolled("host2", group="other")
    assert set(kit.repository.groups()) == {"default", "other"}
    slots.rotate(kit.repository, SECRET, lambda _: None)
    kit.reopen()
    assert {document["epoch"] for document in kit.repository.group_documents("default")[0].values()} == {1, 2}
    (error,) = kit.repository.read_points().damaged
    assert error.object_key == f"points/none/{bytes(16).hex()}/{bytes(16).hex()}"
    kit.bucket.objects.pop(error.object_key)
    assert told(kit) == put


@pytest.mark.parametrize("garbage", [GARBAGE, NEWER % b"KEYS"], ids=["garbage", "newer"])
def test_a_key_slot_of_nobody(kit: Kit, garbage: bytes) -> None:
    """The slot that opens is found beside it, by a host that remembers none."""
    kit.bucket.put(f"keys/{bytes(8).hex()}", garbage)
    Repository.open(kit.store, SECRET, Trust(None))
    assert told(kit) == {f"keys/{bytes(8).hex()}"}
    slots.rotate(kit.repository, SECRET, lambda _: None)


@pytest.mark.parametrize("garbage", [GARBAGE, NEWER % b"WRTR"], ids=["garbage", "newer"])
def test_names_in_a_replica(kit: Kit, tmp_path: Path, garbage: bytes) -> None:
    """Enrolments and groups have the names there that they have here, so whoever sees these can be first there."""
    there = open_store(str(tmp_path / "replica"), create=True)
    replica = make_replica(kit.repository, there, SECRET, Trust(None), "replica")
    writer = new_writer(kit.repository, "host3", "third", "backup")
    enrol(kit.repository, writer)
    for key in (enrolment_key(writer.writer.id), "groups/third/1", "groups/third/2"):
        there.put(key, garbage)
    follow(kit.repository, replica)
    opened = Repository.open(there, SECRET, Trust(None))
    assert opened.writers()[writer.writer.id].name == "host3"
    assert opened.group("third").id_keys == kit.repository.group("third").id_keys
    revoke(opened, "host3")
    kit.bucket.put(f"writers/{bytes(8).hex()}", garbage)  # and what is garbage here is not brought there
    kit.bucket.put("groups/third/9", garbage)
    follow(kit.repository, opened)
    assert not {f"writers/{bytes(8).hex()}", "groups/third/9"} & {entry.key for entry in there.list("")}
