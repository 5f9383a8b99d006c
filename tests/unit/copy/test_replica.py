"""Restore points copied to a replica: slots and signed originals as they are, by a host that need not read them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.ram import RamDisk
from tests.unit.copy.pair import MIB, ReplicaPair, change, size, three_points
from tests.unit.engine.kit import SECRET
from vmbackup.engine.care.verify import verify
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import AccessError, RepositoryError
from vmbackup.progress import Silent
from vmbackup.repository import Repository, enrolling, slots
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.crypto import DATA
from vmbackup.repository.keys import Secret
from vmbackup.repository.points import COPY, Point, encode, encode_table
from vmbackup.repository.replica import make_replica
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import open_store


@pytest.fixture
def pair(tmp_path: Path) -> ReplicaPair:
    return ReplicaPair(three_points(tmp_path))


def test_slots_and_originals_are_taken_over_as_they_are(pair: ReplicaPair) -> None:
    pair.copy()
    here, there = pair.kit.repository, pair.there
    originals = {point.id: point for point in here.read_points().points}
    stored: dict[tuple[bytes, int, int], bytes] = {}
    for repository in (here, there):
        for point in repository.read_points().points:
            catalog = repository.catalog()
            for ref in point.table.values():
                for kind, number in catalog.root(ref).packs:
                    if kind == DATA:
                        header = catalog.header(ref, DATA, number)
                        data = repository.store.get(header.name)
                        for slot in header.slots():
                            birth = header.birth_of(slot).session, slot.birth_pack, slot.birth_slot
                            assert stored.setdefault(birth, data[slot.offset :][: slot.stored]) == data[slot.offset :][
                                : slot.stored
                            ]
                            assert repository is there or ref.session == birth[0]
    for point in there.read_points().points:
        original = originals[point.id]
        assert point.verbatim == here.store.get(original.key)
        assert point.original is not None
        assert (point.original.digest, point.seq, point.time) == (original.digest, original.seq, original.time)
        assert point.public["anchor"] is None
        assert point.copied_from is not None
        assert point.copied_from["repository"] == here.config.repository.hex()
        root = there.catalog().root(point.own_ref(0))
        (birth,) = [b for b in root.births if b.session == original.session]
        assert birth.envelope == original.envelope


def test_all_then_only_what_is_new(pair: ReplicaPair) -> None:
    done = pair.copy()
    assert (done.skipped, done.failed, len(pair.copied)) == (0, [], 3)
    pair.check()
    assert pair.copy().skipped == 3
    change(pair.kit, 3, 50_000)
    before = size(pair.store)
    assert pair.copy().skipped == 3
    assert size(pair.store) - before < 70_000
    pair.check()


@pytest.fixture
def writers(pair: ReplicaPair) -> WriterKeys:
    """The key of a host that may not read."""
    keys = enrolling.new_writer(pair.kit.repository, "hv1", "default", "backup")
    enrolling.enrol(pair.kit.repository, keys)
    return keys


def test_no_private_key_is_needed(pair: ReplicaPair, writers: WriterKeys) -> None:
    """A host with a writer's key copies, once its enrolment was brought to the replica; a reader's copy brings it."""
    source = Repository.open(pair.kit.store, writers, Trust(None))
    options = CopyOptions(pair.kit.root / "locks")
    for _ in range(2):
        target = Repository.open(pair.store, writers, Trust(None))
        copier = Copier(source, target, options, Silent())
        for history in copier.histories():
            assert copier.copy(history, lambda _p: None).failed == []
        change(pair.kit, 5)
        pair.reopen()
        assert {p.writer for p in pair.found().points} == {writers.writer.id}
    assert len(pair.found().points) == 4
    pair.copy()
    pair.check()


def test_who_is_revoked_is_revoked_there_too(pair: ReplicaPair, writers: WriterKeys) -> None:
    """By the next copy of a reader; what it copied stands. A writer that copies is told of it."""

    def copy_by(keys: WriterKeys) -> list[str]:
        notes = Notes()
        source, target = (Repository.open(store, keys, Trust(None)) for store in (pair.kit.store, pair.store))
        copier = Copier(source, target, CopyOptions(pair.kit.root / "locks"), notes)
        for history in copier.histories():
            copier.copy(history, lambda _p: None)
        return notes.told

    assert copy_by(writers) == []
    other = enrolling.new_writer(pair.kit.repository, "hv2", "default", "backup")
    enrolling.enrol(pair.kit.repository, other)
    enrolling.revoke(pair.kit.repository, "hv1")
    change(pair.kit, 5)
    assert "'hv1' is revoked in" in copy_by(other)[0]
    pair.copy()
    assert pair.there.writers()[writers.writer.id].revoked
    assert copy_by(other) == []
    assert sorted(p.writer for p in pair.found().points) == sorted([other.writer.id] + [writers.writer.id] * 3)
    assert verify(pair.there, None, None, Silent()).damaged == ()
    store = open_store(str(pair.kit.root / "third"), create=True)
    assert make_replica(pair.kit.repository, store, SECRET, Trust(None), "").writers()[writers.writer.id].revoked


class Notes(Silent):
    """What the operator is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def test_damage_is_found_by_the_checksum_of_a_slot(pair: ReplicaPair) -> None:
    """Before it is stored: the point is named, the others are copied, and it too once it is whole again."""
    oldest, middle, newest = reversed(pair.kit.points())
    pair.kit.disk().write(300_000, random.Random(9).randbytes(300_000))  # over what the middle one brought
    fourth = pair.kit.backup()
    folder = pair.kit.root / "repository" / "data" / middle.lineage.group / middle.lineage.id.hex()
    (pack,) = [path for path in folder.iterdir() if path.name.startswith(middle.session.hex())]
    data = pack.read_bytes()
    pack.write_bytes(data[:1000] + bytes((data[1000] ^ 1,)) + data[1001:])
    done = pair.copy()
    assert [name for name, _ in done.failed] == [middle.id, newest.id]
    assert "differs from its checksum" in done.failed[0][1].message
    pair.check(oldest.id, fourth.id)
    prune(pair.there, PruneOptions())
    pack.write_bytes(data)
    assert pair.copy().failed == []
    pair.check()


def test_it_is_forgotten_and_pruned_like_any_other(pair: ReplicaPair) -> None:
    pair.copy()
    first, second, third = (point.id for point in reversed(pair.kit.points()))
    by_id = {point.id: point for point in pair.found().points}
    forget(pair.there, by_id[second].lineage, by_id[second].session)
    prune(pair.there, PruneOptions())
    pair.check(first, third)
    fourth = change(pair.kit, 4)
    assert pair.copy().skipped == 3
    pair.check(first, third, fourth)
    assert not prune(pair.there, PruneOptions(dry_run=True)).objects


def test_what_the_replica_has_is_not_taken_over_again(pair: ReplicaPair) -> None:
    """Though the source has forgotten all that was copied: chunks are found by their ids, at their places."""
    pair.copy()
    for point in pair.kit.points():
        forget(pair.kit.repository, point.lineage, point.session)
    fourth = change(pair.kit, 4)
    before = size(pair.store)
    assert pair.copy().failed == []
    assert 300_000 < size(pair.store) - before < 350_000
    newest, *older = pair.found().points
    assert (newest.id, len(older)) == (fourth, 3)
    pair.check()


def test_disks_that_grow_shrink_come_and_go(pair: ReplicaPair) -> None:
    chance = random.Random(4)
    for step in range(8):
        for disk in pair.kit.guest.disks.values():
            disk.write(chance.randrange(len(disk.data) - 70_000), chance.randbytes(chance.choice([1, 5000, 70_000])))
        if step == 2:
            pair.kit.disk().resize(5 * MIB + 300)
        if step == 4:
            pair.kit.disk().resize(2 * MIB + 10)
        if step == 5:
            del pair.kit.guest.disks["vdb"]
        if step == 6:
            pair.kit.guest.disks["vdc"] = RamDisk(bytearray(pair.kit.disk().data))
        pair.kit.backup()
        if step in (1, 3, 7):
            pair.copy()
            pair.check()


def test_what_the_realm_signs_later_follows(pair: ReplicaPair) -> None:
    """A group and its points, a writer, a passphrase: copied, the replica has them."""
    slots.add(pair.kit.repository, Secret.passphrase("another one", random=True), "second")
    keys = enrolling.new_writer(pair.kit.repository, "hv2", "far-away", "backup")
    enrolling.enrol(pair.kit.repository, keys)
    reader, pair.kit.repository = pair.kit.repository, Repository.open(pair.kit.store, keys, Trust(None))
    pair.kit.backup()
    pair.kit.repository = reader
    pair.copy()
    pair.check()
    assert {p.lineage.group for p in pair.found().points} == {"default", "far-away"}
    opened = Repository.open(pair.store, Secret.passphrase("another one", random=True), Trust(None))
    assert opened.config.slots == tuple(sorted(pair.kit.repository.config.slots))
    assert verify(opened, None, None, Silent()).damaged == ()
    assert opened.config.document["replica_of"] == pair.kit.repository.config.repository.hex()
    version = opened.config.version
    pair.copy()
    assert pair.there.config.version == version


def test_new_keys_are_brought_there(pair: ReplicaPair, writers: WriterKeys) -> None:
    """By a reader's copy, which locks no passphrase out; a writer's is refused until then, and changes nothing."""
    recovery: list[str] = []
    own = Secret.passphrase("of the replica", random=True)
    slots.add(pair.there, own, "own")
    pair.copy()
    slots.rotate(pair.kit.repository, SECRET, recovery.append)
    change(pair.kit, 5)
    source, target = (Repository.open(store, writers, Trust(None)) for store in (pair.kit.store, pair.store))
    with pytest.raises(RepositoryError, match="were rotated"):
        Copier(source, target, CopyOptions(pair.kit.root / "locks"), Silent())
    for secret in (SECRET, own):
        found = Repository.open(pair.store, secret, Trust(None)).read_points()
        assert (len(found.points), found.damaged) == (3, [])
    change(pair.kit, 6)
    pair.copy(secret=lambda: own)
    for secret in (SECRET, own, Secret.passphrase(recovery[0])):
        opened = Repository.open(pair.store, secret, Trust(None))
        assert (opened.config.epoch, len(opened.read_points().points)) == (2, 5)
        assert verify(opened, None, None, Silent()).damaged == ()
    assert len(list(pair.store.list("keys/"))) == 3
    with pytest.raises(AccessError):
        Repository.open(pair.store, Secret.passphrase(pair.kit.recovery_key), Trust(None))
    pair.check()


def test_a_lost_repository_is_copied_back(pair: ReplicaPair, tmp_path: Path) -> None:
    """From the replica into a new one: still the originals, whatever lies between."""
    pair.copy()
    store = open_store(str(tmp_path / "back"), create=True)
    back = make_replica(pair.there, store, SECRET, Trust(None), "tests")
    copier = Copier(pair.there, back, CopyOptions(tmp_path / "locks"), Silent())
    for history in copier.histories():
        assert copier.copy(history, lambda _p: None).failed == []
    originals = {point.id: point.digest for point in pair.kit.points()}
    for point in back.read_points().points:
        assert point.original is not None
        assert point.original.digest == originals[point.id]
    pair.store, pair.there = store, back
    pair.check()


def test_new_keys_where_the_original_is_lost(pair: ReplicaPair) -> None:
    """The replica stands on its own then: what was stolen with the host opens nothing that is stored from now on."""
    pair.copy()
    stolen = Secret.passphrase("of the lost host", random=True)
    slots.add(pair.there, stolen, "stolen")
    with pytest.raises(RepositoryError, match="has the keys of what it is a replica of") as told:
        slots.rotate(pair.there, SECRET, lambda _key: None)
    assert "--original-lost" in told.value.hint
    recovery: list[str] = []
    slots.rotate(pair.there, SECRET, recovery.append, original_lost=True)
    for secret in (SECRET, Secret.passphrase(recovery[0])):
        opened = Repository.open(pair.store, secret, Trust(None))
        assert (opened.config.epoch, opened.config.document["replica_of"]) == (2, None)
        assert verify(opened, None, None, Silent()).damaged == ()
    with pytest.raises(AccessError):
        Repository.open(pair.store, stolen, Trust(None))
    pair.check()


def test_a_lost_original_that_comes_back(pair: ReplicaPair) -> None:
    """It brings its old keys to nobody; a copy the other way brings it the new ones."""
    pair.copy()
    slots.rotate(pair.there, SECRET, lambda _key: None, original_lost=True)
    change(pair.kit, 7)
    config = pair.there.config
    with pytest.raises(RepositoryError, match="lacks the new ones") as told:
        pair.copy()
    assert "the other way" in told.value.hint
    assert pair.there.config == config
    Copier(pair.there, pair.kit.repository, CopyOptions(pair.kit.root / "locks"), Silent())
    pair.kit.reopen()
    assert pair.kit.repository.config.epoch == 2
    pair.copy()
    pair.check()


def test_keys_that_were_rotated_apart_are_not_mixed(pair: ReplicaPair) -> None:
    pair.copy()
    slots.rotate(pair.there, SECRET, lambda _key: None, original_lost=True)
    slots.rotate(pair.kit.repository, SECRET, lambda _key: None)
    for one, other in ((pair.kit.store, pair.store), (pair.store, pair.kit.store)):
        source, target = (Repository.open(store, SECRET, Trust(None)) for store in (one, other))
        config = target.config
        with pytest.raises(RepositoryError, match="apart"):
            Copier(source, target, CopyOptions(pair.kit.root / "locks"), Silent())
        assert Repository.open(other, SECRET, Trust(None)).config == config


def forged(pair: ReplicaPair, copy: Point, **changes: Any) -> bytes:
    """A copy's object with other contents, signed by an enrolled writer."""
    own = {
        "original": {"session": copy.public["copied_from"]["session"], "digest": copy.public["copied_from"]["digest"]},
        "disks": [{"name": d["name"], "root": d["root"], "stored_bytes": 0} for d in copy.public["disks"]],
        **{name: copy.public[name] for name in ("parent", "next_session_number", "epoch", "envelope", "index")},
        "features": [],
    }
    own |= {name: value for name, value in changes.items() if name != "verbatim"}
    table = encode_table(copy.table, copy.uses)
    verbatim = changes.get("verbatim", copy.verbatim)
    keys, writer = pair.there.group(), pair.there.writer
    return encode(COPY, keys, writer, copy.lineage, copy.session, b"", own, table, [], verbatim)


def test_a_copy_that_contradicts_its_original_is_damage(pair: ReplicaPair) -> None:
    """A stolen writer may sign copies, but not change what an original says."""
    pair.copy()
    newest, older, _ = pair.found().points
    path = pair.kit.root / "there" / newest.key

    def message() -> str:
        (error,) = pair.there.read_points().damaged
        assert error.object_key == newest.key
        return error.message

    path.write_bytes(forged(pair, newest))
    newest = pair.found().points[0]
    pair.reopen()
    assert len(pair.found().points) == 3
    other = {"session": older.public["copied_from"]["session"], "digest": older.public["copied_from"]["digest"]}
    cut = newest.verbatim[:-1] + bytes((newest.verbatim[-1] ^ 1,))
    itself = {"session": newest.session.hex(), "digest": newest.digest.hex()}
    for changes in (
        {"original": itself, "verbatim": path.read_bytes()},
        {"verbatim": older.verbatim},
        {"original": other, "verbatim": older.verbatim},
        {"original": {**newest.public["copied_from"], "digest": "00" * 32}},
        {"verbatim": b""},
        {"verbatim": cut},
        {"verbatim": path.read_bytes()},
        {"disks": []},
        {"disks": [{"name": "vda"}]},
        {"index": None, "original": 5},
    ):
        path.write_bytes(forged(pair, newest, **changes))
        assert newest.key in message()
    data = forged(pair, newest)
    path.write_bytes(data[:-65] + data[-64:])
    assert "signature" in message()
