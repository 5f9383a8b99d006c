"""docs/threats.md, row by row: what each can do, and what not, with object lock and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import SECRET
from tests.unit.threats.world import DAY, LOCK_DAYS, Kit
from vmbackup.errors import AccessError, DamageError
from vmbackup.repository import Repository, condemned, frames, keys, slots, tombstones
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.condemned import ObjectName
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.enrolling import revoke
from vmbackup.repository.keys import ReaderKeys, Secret
from vmbackup.repository.layout import SessionRef
from vmbackup.repository.moves import Move, encode
from vmbackup.repository.points import MOVES, encode_table
from vmbackup.repository.run import Run
from vmbackup.repository.session import Session
from vmbackup.repository.trust import Trust

MARKER = b"the secret of the guest, in plain"


@pytest.fixture(params=[False, True], ids=["unlocked", "locked"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Kit:
    return Kit(tmp_path, locked=request.param)


def locked(kit: Kit) -> bool:
    return kit.repository.config.object_lock_days is not None


def put_over(kit: Kit, key: str, data: bytes) -> None:
    """As the store itself can."""
    kit.bucket.objects[key] = (data, kit.bucket.now)


def all_is_there(kit: Kit) -> None:
    kit.reopen()
    kit.check_all()


# The passive store


def test_who_reads_the_store_sees_no_content_and_no_names(kit: Kit) -> None:
    kit.disk().write(0, MARKER * 200)
    kit.backup()
    seen = b"".join(key.encode() + data for key, (data, _) in kit.bucket.objects.items())
    for plain in (MARKER, MARKER[:12], b"<domain", kit.guest.uuid.encode(), kit.guest.uuid.replace("-", "").encode()):
        assert plain not in seen
    assert not any(kit.guest.name in key for key in kit.bucket.objects)


def test_equal_chunks_and_equal_guests_do_not_look_equal(kit: Kit, tmp_path: Path) -> None:
    """The same content in two repositories, or twice in one, gives no two equal runs of bytes."""
    other = Kit(tmp_path / "other", locked=False)
    other.guest.uuid = kit.guest.uuid
    one, two = (
        {data[at : at + 64] for key, (data, _) in k.bucket.objects.items() if key.startswith("data/")
         for at in range(16, len(data) - 64, 64)}
        for k in (kit, other)
    )  # fmt: skip
    assert one.isdisjoint(two)
    assert kit.points()[0].lineage != other.repository.lineage("libvirt", kit.guest.uuid)


# The active store


def test_a_store_that_rolls_back_is_noticed_by_who_saw_the_newer_state(kit: Kit) -> None:
    """A host that never saw it cannot know: that is what the table says."""
    before = dict(kit.bucket.objects)
    keys_of_host = kit.enrolled("host1")
    revoke(kit.repository, "host1")
    kit.bucket.objects = {k: v for k, v in before.items() if not k.startswith(("config", "writers/"))} | {
        k: v for k, v in before.items() if k.startswith(("config", "writers/"))
    }
    with pytest.raises(DamageError, match="rolled back"):
        kit.reopen()
    assert Repository.open(kit.store, SECRET, Trust(None)).writers().get(keys_of_host.writer.id) is None


def test_a_store_that_swaps_keys_or_the_config_is_noticed(kit: Kit) -> None:
    """What another signed holds nowhere: new sessions are sealed for the true key, the true config is read."""
    stranger = ReaderKeys.generate(kit.repository.config.realm, "default")
    forged = {
        **kit.repository.config.document,
        "version": 2,
        "epochs": [{"number": 1, "public_key": stranger.epochs[1].public().raw.hex()}],
    }
    for folder in ("config", "config.copy"):
        put_over(kit, f"{folder}/2", frames.sign_document(b"CONF", forged, stranger.signing))
    kit.reopen()
    assert kit.repository.config.version == 1
    kit.change(7)
    point = kit.backup()
    assert kit.restored(kit.points()[0]) == kit.kept[point.id]
    slot, data = keys.wrap(stranger, SECRET, "swapped")
    own = kit.repository.slot
    put_over(kit, f"keys/{own}", data.replace(slot.encode(), own.encode()))
    with pytest.raises(DamageError):
        kit.reopen()


def test_a_store_forges_no_points_and_no_forgetting(kit: Kit, tmp_path: Path) -> None:
    """With keys of its own, an enrolment of its own, and with objects of another repository."""
    other = Kit(tmp_path / "other", locked=False)
    for key, (data, _) in other.bucket.objects.items():
        if key.startswith(("points/", "writers/")):
            kit.bucket.objects.setdefault(key, (data, kit.bucket.now))
    point = kit.points()[0]
    other.repository.config = kit.repository.config
    tombstones.forget(other.repository, point.lineage, point.session)
    tombstones.put_dead(other.repository, "default", [point.session])
    for key, (data, _) in other.bucket.objects.items():
        if key.startswith(("trash/", "dead/")):
            kit.bucket.objects.setdefault(key, (data, kit.bucket.now))
    kit.reopen()
    found = kit.repository.read_points()
    assert {p.id for p in found.points} == set(kit.kept)
    assert len(found.damaged) == 3
    for point in found.points:
        assert kit.restored(point) == kit.kept[point.id]


@pytest.mark.parametrize("folder", ["data/", "meta/", "index/", "points/"])
def test_a_store_changes_no_byte_unnoticed(kit: Kit, folder: str) -> None:
    """Two objects of a kind change places, or a bit is turned: restoring fails, and never gives other bytes."""
    names = sorted(key for key in kit.bucket.objects if key.startswith(folder))
    one, two = (kit.bucket.objects[name][0] for name in names[:2])
    flipped = bytearray(one)
    flipped[len(one) // 2] ^= 1
    for made in ({names[0]: two, names[1]: one}, {names[0]: bytes(flipped)}):
        before = dict(kit.bucket.objects)
        for key, data in made.items():
            put_over(kit, key, data)
        kit.reopen()
        assert kit.verify().damaged
        for point in kit.points():
            try:
                assert kit.restored(point) == kit.kept[point.id]
            except DamageError:
                continue
        kit.bucket.objects = before


def test_a_store_that_holds_a_point_back_is_noticed_by_its_child_or_its_index(kit: Kit) -> None:
    """The newest together with its index is not: that is what the table says."""
    newest, middle, _ = kit.points()
    del kit.bucket.objects[middle.key]
    kit.reopen()
    assert middle.key in {damage.object for damage in kit.verify(None).damaged}
    for key in [k for k in kit.bucket.objects if newest.session.hex() in k]:
        del kit.bucket.objects[key]
    kit.reopen()
    assert newest.key not in {damage.object for damage in kit.verify(None).damaged}


# The stolen backup host


def test_a_stolen_backup_host_reads_nothing(kit: Kit) -> None:
    """No private key is in its file, for any epoch, whatever program is run with it."""
    thief = kit.thief(kit.enrolled("host1"))
    assert not hasattr(thief.identity, "epochs")
    for point in thief.read_points().points:
        with pytest.raises(AccessError, match="may not read"):
            thief.documents(point)
        with pytest.raises(AccessError, match="may not read"):
            thief.open_envelope("default", point.session, 1, point.envelope, point.key)


def test_what_a_stolen_backup_host_forgets_moves_or_writes_elsewhere_does_not_count(kit: Kit) -> None:
    other = kit.enrolled("host2", group="other")
    thief = kit.thief(kit.enrolled("host1"))
    point = kit.points()[0]
    tombstones.forget(thief, point.lineage, point.session)
    tombstones.put_dead(thief, "default", [p.session for p in kit.points()])
    session = Session(thief, point.lineage, 0, "thief")
    session.pin()
    ref = point.own_ref(1)
    table = {1: ref, 2: SessionRef(2, session.id, point.lineage.id, *session.close_index()[3:])}
    rows = encode_table(table, {}) + encode([Move(DATA, 1, 0, 0, 1, 2, 0, 0), Move(META, 1, 0, 0, 1, 2, 0, 0)])
    session.commit({"features": []}, rows, [], MOVES)
    thief.store.put(point.lineage.point(bytes(16)), frames.preamble(b"ABRT"))
    foreign = Run.open(kit.thief(other), kit.thief(other).lineage("libvirt", kit.guest.uuid), "host2")
    foreign.repository.identity = thief.identity
    foreign.session.commit_partial()
    kit.reopen()
    found = kit.repository.read_points()
    assert (found.moves, found.partials, len(found.damaged)) == ([], [], 1)
    assert {p.id for p in found.points} == set(kit.kept)
    for point in found.points:
        assert kit.restored(point) == kit.kept[point.id]


def test_what_a_stolen_backup_host_condemns_costs_a_reading(kit: Kit) -> None:
    """Lists that nobody signs name all that there is: the next backup stores it again, and nothing is lost."""
    names = {
        ObjectName.parse(key): 0 for key in kit.bucket.objects if key.startswith(("data/", "meta/", "index/"))
    }
    condemned.put(kit.store, "default", names)
    kit.reopen()
    kit.change(8)
    assert kit.backup().disks[0].stored_bytes > 3 * 8192
    all_is_there(kit)


def test_a_stolen_backup_host_that_deletes(kit: Kit) -> None:
    """Without a lock all is gone that its access key may delete; with one nothing is that a point needs."""
    kit.bucket.wipe()
    if locked(kit):
        all_is_there(kit)
    else:
        assert kit.bucket.objects == {}


def test_what_a_stolen_backup_host_makes_after_its_revocation_is_quarantined(kit: Kit) -> None:
    keys_of_host = kit.enrolled("host1")
    revoke(kit.repository, "host1")
    good, kit.kept = kit.kept, {}
    kit.repository = kit.thief(keys_of_host)
    kit.change(9)
    kit.backup()
    kit.kept = good
    all_is_there(kit)
    assert len(kit.repository.read_points().quarantined) == 1


# The stolen pruner


def test_a_stolen_pruner_reads_nothing_makes_no_points_and_forgets_in_its_group_only(kit: Kit) -> None:
    thief = kit.thief(kit.enrolled("pruner", "prune", "other"))
    point = kit.points()[0]
    with pytest.raises(AccessError, match="may not read"):
        thief.documents(point)
    tombstones.forget(thief, point.lineage, point.session)
    tombstones.put_dead(thief, "default", [point.session])
    host: Any = kit.repository
    kit.repository = thief
    kept = dict(kit.kept)
    with pytest.raises(DamageError, match="not enrolled for its group"):
        kit.backup()
    kit.repository, kit.kept = host, kept
    kit.reopen()
    assert {p.id for p in kit.points()} == set(kit.kept)


def test_a_stolen_pruner_forgets_and_deletes(kit: Kit) -> None:
    """Without a lock what it took is gone; with one all comes back by its revocation."""
    keys_of_pruner = kit.enrolled("pruner", "prune")
    oldest = kit.points()[-1]
    tombstones.forget(Repository.open(kit.store, keys_of_pruner, Trust(None)), oldest.lineage, oldest.session)
    del kit.kept[oldest.id]
    kit.bucket.now += DAY
    stolen = kit.bucket.now
    kit.bucket.now += DAY
    thief = kit.thief(keys_of_pruner)
    for point in thief.read_points().points:
        tombstones.forget(thief, point.lineage, point.session)
    prune(thief, PruneOptions(repack_below=0))
    kit.reopen()
    assert kit.points() == []
    done = revoke(kit.repository, "pruner", undo_since=stolen)
    kit.reopen()
    if locked(kit):
        assert done.forgotten == 1
        all_is_there(kit)
    else:
        assert not [key for key in kit.bucket.objects if key.startswith(("data/", "points/"))]


# The stolen reader


def test_a_stolen_reader_reads_the_past_and_not_what_comes_after_a_rotation(kit: Kit) -> None:
    """With a copy of the passphrase and of the slots, and of the whole store later: old points alone."""
    copied = {key: data for key, (data, _) in kit.bucket.objects.items() if key.startswith("keys/")}
    slots.rotate(kit.repository, SECRET, lambda _: None)
    slots.change(kit.repository, Secret.passphrase("a new one", random=True))
    kit.change(7)
    kit.backup()
    found = [
        keys.unwrap(keys.read_slot(data, key), SECRET, key) for key, data in copied.items()
    ]
    (stolen,) = [reader for reader in found if reader]
    thief = Repository(kit.store, stolen, kit.repository.config, Trust(None))
    newest, *older = kit.points()
    with pytest.raises(AccessError, match="since epoch 2"):
        thief.documents(newest)
    kit.repository = thief
    for point in older:
        assert kit.restored(point) == kit.kept[point.id]
    with pytest.raises(AccessError):
        Repository.open(kit.store, SECRET, Trust(None))


def test_a_stolen_reader_deletes_and_forgets(kit: Kit) -> None:
    """Without a lock all is gone; with one it is there, and what it forgot comes back without its tombstones."""
    for point in kit.points():
        tombstones.forget(kit.repository, point.lineage, point.session)
    prune(kit.repository, PruneOptions(repack_below=0))
    kit.bucket.wipe()
    if not locked(kit):
        assert kit.bucket.objects == {}
        return
    for key in [k for k in kit.bucket.objects if k.startswith(("trash/", "dead/"))]:
        kit.bucket.delete(key)
    all_is_there(kit)
    kit.bucket.now += 2 * LOCK_DAYS * DAY
    kit.bucket.wipe()
    assert kit.bucket.objects == {}
