"""Key slots are removed, changed and rotated; whatever is cut off, the repository opens and reads all that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.engine.test_writers import as_host, change, enrolled, kit
from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError, UsageError
from vmbackup.repository import Repository, slots
from vmbackup.repository.keys import ReaderKeys, Secret, read_slot, unwrap
from vmbackup.repository.replica import follow, make_replica
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import DeleteRefused, open_store

__all__ = ["kit"]

NEW = Secret.passphrase("another passphrase", random=True)


def opens(kit: RamKit, secret: Secret) -> bool:
    try:
        Repository.open(kit.store, secret, Trust(None))
    except AccessError:
        return False
    return True


def recovery(kit: RamKit) -> Secret:
    return Secret.passphrase(kit.recovery_key)


def stored(kit: RamKit) -> set[str]:
    return {entry.key.removeprefix("keys/") for entry in kit.store.list("keys/")}


def test_a_removed_key_opens_nothing(kit: RamKit) -> None:
    slot = slots.add(kit.repository, NEW, "ops")
    assert opens(kit, NEW)
    info, gone = slots.remove(kit.repository, slot[:6])
    assert (info and info.label, gone, slot in stored(kit)) == ("ops", True, False)
    assert not opens(kit, NEW)
    kit.reopen()
    assert slot not in kit.repository.config.slots
    assert kit.verify(None).damaged == ()


def test_which_key_is_not_removed(kit: RamKit) -> None:
    """Neither the one in use, nor a recovery key in silence, nor one that is none."""
    spare = next(s for s in stored(kit) if s != kit.repository.slot)
    with pytest.raises(UsageError, match="opens the repository here"):
        slots.remove(kit.repository, kit.repository.slot)
    with pytest.raises(UsageError, match="is a recovery key"):
        slots.remove(kit.repository, spare)
    for name in ("", "zz"):
        with pytest.raises(NotFoundError):
            slots.remove(kit.repository, name)
    assert len(stored(kit)) == 2
    slots.remove(kit.repository, spare, allow_recovery=True)
    assert not opens(kit, recovery(kit))
    assert opens(kit, SECRET)


def test_a_removed_key_that_the_store_keeps_or_brings_back_opens_nothing(
    kit: RamKit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Object lock, or a store that lies: the config says which slots are in force."""
    slot = slots.add(kit.repository, NEW, "ops")

    def refuse(key: str) -> None:
        raise DeleteRefused(key, None)

    with monkeypatch.context() as patch:
        patch.setattr(kit.repository.store, "delete", refuse)
        assert slots.remove(kit.repository, slot)[1] is False
    assert slot in stored(kit)
    assert not opens(kit, NEW)
    assert opens(kit, SECRET)


def test_a_removal_that_was_cut_off_is_ended_by_the_next(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = slots.add(kit.repository, NEW, "ops")
    with monkeypatch.context() as patch:
        patch.setattr(kit.repository.store, "delete", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            slots.remove(kit.repository, slot)
    kit.reopen()
    slots.remove(kit.repository, slot)
    assert slot not in stored(kit)
    assert kit.verify(None).damaged == ()


def test_change(kit: RamKit) -> None:
    """While the passphrase's file is written both open; afterwards the new one alone."""
    seen: list[bool] = []
    old, new, gone = slots.change(
        kit.repository, NEW, lambda: seen.extend((opens(kit, SECRET), opens(kit, NEW)))
    )
    assert (seen, gone) == ([True, True], True)
    assert (opens(kit, SECRET), opens(kit, NEW), opens(kit, recovery(kit))) == (False, True, True)
    assert (old in stored(kit), new in stored(kit)) == (False, True)
    change(kit, 2)
    kit.backup()
    kit.repository = Repository.open(kit.store, NEW, kit.trust)
    kit.check_all()


def test_change_cut_off_at_any_request(kit: RamKit) -> None:
    """At least one of both passphrases opens, and the one that the file holds does."""
    snapshot = {entry.key: kit.store.get(entry.key) for entry in kit.store.list("")}
    for most in range(20):
        for entry in list(kit.store.list("")):
            if entry.key not in snapshot:
                kit.store.delete(entry.key)
        for key, data in snapshot.items():
            kit.store.put(key, data)
        repository = Repository.open(kit.store, SECRET, Trust(None))
        held = [SECRET]
        left = most

        def count(work: Any, *args: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise InterruptedError
            return work(*args)

        with pytest.MonkeyPatch.context() as patch:
            for verb in ("put", "delete"):
                work = getattr(repository.store, verb)
                patch.setattr(repository.store, verb, lambda *args, work=work: count(work, *args))
            try:
                slots.change(repository, NEW, lambda held=held: held.append(NEW))
            except InterruptedError:
                pass
            else:
                assert most > 4
                break
        assert opens(kit, held[-1]), most
    else:
        pytest.fail("it never ended")


def test_change_keeps_a_recovery_key(kit: RamKit) -> None:
    repository = Repository.open(kit.store, recovery(kit), Trust(None))
    with pytest.raises(UsageError, match="recovery key"):
        slots.change(repository, NEW)
    assert len(stored(kit)) == 2


def test_a_writer_changes_no_keys(kit: RamKit) -> None:
    as_host(kit, enrolled(kit, "host1"))
    before = {entry.key for entry in kit.store.list("")}
    for work in (
        lambda: slots.remove(kit.repository, next(iter(stored(kit)))),
        lambda: slots.change(kit.repository, NEW),
        lambda: slots.rotate(kit.repository, NEW, lambda _: None),
        lambda: slots.add(kit.repository, NEW, ""),
    ):
        with pytest.raises(AccessError):
            work()
    assert {entry.key for entry in kit.store.list("")} == before


def test_rotate(kit: RamKit) -> None:
    """Passphrase and new recovery key read old points and new ones; a thief of the old keys reads the old ones only."""
    thief = Repository.open(kit.store, SECRET, Trust(None))
    copied = kit.store.get(f"keys/{kit.repository.slot}")
    slots.add(kit.repository, NEW, "ops")
    packs = {e.key: e.modified for e in kit.store.list("data/")}
    assert [s.label for s in slots.others(kit.repository)] == ["ops"]
    made: list[str] = []
    done = slots.rotate(kit.repository, SECRET, made.append)
    assert (done.epoch, len(done.dropped), done.kept) == (2, 2, ())
    assert {e.key: e.modified for e in kit.store.list("data/")} == packs
    change(kit, 2)
    point = kit.backup()
    kit.reopen()
    kit.check_all()
    kit.repository = Repository.open(kit.store, Secret.passphrase(made[0]), kit.trust)
    kit.check_all()
    for gone in (NEW, recovery(kit)):
        assert not opens(kit, gone)
    old = unwrap(read_slot(copied, f"keys/{thief.slot}"), SECRET, "slot")
    assert isinstance(old, ReaderKeys)
    kit.repository = thief
    first, second = reversed(kit.points())
    assert kit.restored(first) == kit.kept[first.id]
    assert second.id == point.id
    with pytest.raises(AccessError, match="since epoch 2"):
        kit.restored(second)
    kit.reopen()
    assert kit.verify().damaged == ()


def test_hosts_follow_a_rotation_by_themselves(kit: RamKit) -> None:
    """With the key files that they have, also one that had the repository open."""
    keys = enrolled(kit, "host1")
    as_host(kit, keys)
    daemon = kit.repository
    kit.reopen()
    slots.rotate(kit.repository, SECRET, lambda _: None)
    kit.repository = daemon
    change(kit, 2)
    kit.backup()
    as_host(kit, keys)
    change(kit, 3)
    kit.backup()
    kit.reopen()
    assert [p.public["epoch"] for p in kit.points()] == [2, 2, 1]
    kit.check_all()
    enrolled(kit, "host2", group="new")
    slots.rotate(kit.repository, SECRET, lambda _: None)
    kit.reopen()
    assert kit.repository.config.epoch == 3
    assert sorted(kit.repository.groups()) == ["default", "new"]
    assert kit.repository.group("new").group == "new"
    kit.check_all()


def test_a_rotation_that_is_cut_off_leaves_all_as_it_was_or_done(kit: RamKit, tmp_path: Path) -> None:
    """At each put: the passphrase opens, reads all points and makes new ones; a recovery key that was written opens."""
    for most in range(1, 12):
        made = RamKit(tmp_path / str(most), {"vda": 1 << 16})
        change(made, 1)
        made.backup()
        left = most
        original = made.repository.store.put
        written: list[str] = []

        def put(key: str, data: bytes, original: Any = original) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise InterruptedError
            original(key, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.repository.store, "put", put)
            try:
                slots.rotate(made.repository, SECRET, written.append)
                done = True
            except InterruptedError:
                done = False
        made.reopen()
        change(made, 2)
        made.backup()
        slots.add(made.repository, NEW, "")  # what was kept from being stored twice is stored again
        made.reopen()
        made.check_all()
        rotated = made.repository.config.epoch == 2
        good = written[0] if rotated else made.recovery_key
        assert opens(made, Secret.passphrase(good))
        if done:
            assert most > 5
            return
    pytest.fail("it never ended")


def test_two_rotations_at_once(kit: RamKit) -> None:
    """One of them is done; the other is told, and changes nothing."""
    other = Repository.open(kit.store, SECRET, Trust(None))
    original = Repository._put_config
    with pytest.MonkeyPatch.context() as patch:

        def put(self: Repository, document: dict[str, object]) -> None:
            patch.undo()
            slots.rotate(other, SECRET, lambda _: None)
            original(self, document)

        patch.setattr(Repository, "_put_config", put)
        with pytest.raises(Exception, match="at the same time"):
            slots.rotate(kit.repository, SECRET, lambda _: None)
    kit.reopen()
    assert kit.repository.config.epoch == 2
    kit.check_all()


def test_a_slot_that_the_store_takes_away_is_told_and_no_access_error(kit: RamKit) -> None:
    kit.store.delete(f"keys/{kit.repository.slot}")
    with pytest.raises(DamageError, match="which this host used before"):
        kit.reopen()


def replica_of(kit: RamKit) -> Repository:
    store = open_store(str(kit.root / "replica"), create=True)
    return make_replica(kit.repository, store, SECRET, Trust(None), "replica")


def test_a_replica_gets_the_slots_in_force_only(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = slots.add(kit.repository, NEW, "ops")

    def refuse(key: str) -> None:
        raise DeleteRefused(key, None)

    with monkeypatch.context() as patch:
        patch.setattr(kit.repository.store, "delete", refuse)
        slots.remove(kit.repository, slot)
    assert slot in stored(kit)
    replica = replica_of(kit)
    assert slot not in replica.config.slots
    assert [e.key for e in replica.store.list("keys/") if slot in e.key] == []


def test_a_replica_takes_what_was_stored_since_a_rotation_only_with_keys_for_it(kit: RamKit) -> None:
    """Else nobody could read the copies, were the original lost."""
    replica, keys = replica_of(kit), enrolled(kit, "host1")
    follow(kit.repository, replica)
    slots.rotate(kit.repository, SECRET, lambda _: None)
    as_writer = (Repository.open(r.store, keys, Trust(None)) for r in (kit.repository, replica))
    with pytest.raises(RepositoryError, match="were rotated"):
        follow(*as_writer)
    with pytest.raises(RepositoryError, match="a replica has the keys"):
        slots.rotate(replica, SECRET, lambda _: None)
    follow(kit.repository, replica)
    again = Repository.open(replica.store, SECRET, Trust(None))
    assert (again.config.epoch, sorted(again.reader.epochs)) == (2, [1, 2])
    follow(*(Repository.open(r.store, keys, Trust(None)) for r in (kit.repository, replica)))
