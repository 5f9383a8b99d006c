"""A host with a writer's key backs up, lists and verifies, and reads nothing; what its role forbids is refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.errors import AccessError, DamageError, NotFoundError, UsageError
from vmbackup.repository import Repository, enrolling, tombstones
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.run import Run
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import open_store

KIB = 1 << 10


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """A repository with one restore point of the reader's."""
    kit = RamKit(tmp_path, {"vda": 64 * KIB})
    change(kit, 1)
    kit.backup()
    return kit


def change(kit: RamKit, seed: int) -> None:
    kit.disk().write(0, random.Random(seed).randbytes(16 * KIB))


def enrolled(kit: RamKit, name: str, role: str = "backup", group: str = "default") -> WriterKeys:
    """A key file's content, as a host reads it."""
    made = enrolling.new_writer(kit.repository, name, group, role)
    text = made.to_text()
    enrolling.enrol(kit.repository, made)
    return WriterKeys.from_text(text, "file")


def as_host(kit: RamKit, keys: WriterKeys) -> None:
    """The kit goes on as a host that has this key and nothing else."""
    kit.repository = Repository.open(kit.store, keys, Trust(kit.root / "host"))


def test_a_writer_backs_up_lists_and_verifies(kit: RamKit) -> None:
    """Incrementally on the reader's point; the reader restores it, and sees no difference."""
    as_host(kit, enrolled(kit, "host1"))
    change(kit, 2)
    point = kit.backup()
    assert (point.disks[0].mode, len(kit.points())) == ("incremental", 2)
    found = kit.verify()
    assert (found.damaged, found.read) == ((), "checksums")
    kit.reopen()
    kit.check_all()


def test_a_writer_reads_nothing(kit: RamKit) -> None:
    """No stored byte, no document of a guest: there is no private key in its file."""
    as_host(kit, enrolled(kit, "host1"))
    point = kit.points()[0]
    with pytest.raises(AccessError, match="may not read stored data"):
        kit.restored(point)
    with pytest.raises(AccessError, match="may not read stored data") as caught:
        kit.repository.documents(point)
    assert (caught.value.exit_code, "passphrase" in caught.value.hint) == (6, True)
    assert not list(kit.root.glob("restore*"))
    with pytest.raises(AccessError):
        enrolling.new_writer(kit.repository, "host2", "default", "backup")


def test_a_writer_of_role_backup_forgets_and_prunes_nothing(kit: RamKit) -> None:
    as_host(kit, enrolled(kit, "host1"))
    point = kit.points()[0]
    before = {entry.key for entry in kit.store.list("")}
    with pytest.raises(AccessError, match="may not forget"):
        tombstones.forget(kit.repository, point.lineage, point.session)
    with pytest.raises(AccessError, match="may not forget"):
        prune(kit.repository, PruneOptions())
    assert {entry.key for entry in kit.store.list("")} == before


def test_a_pruner_prunes_and_makes_no_points(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before the guest is touched; a point that it signs all the same is no restore point."""
    change(kit, 2)
    kit.backup()
    as_host(kit, enrolled(kit, "pruner", role="prune"))
    host: Any = kit.host
    monkeypatch.setattr(host, "domain", None)
    with pytest.raises(AccessError, match=r"\('pruner', role prune, group default\) may not make restore points"):
        kit.backup()
    assert list(kit.store.list("sessions/")) == []
    oldest = kit.points()[-1]
    tombstones.forget(kit.repository, oldest.lineage, oldest.session)
    assert prune(kit.repository, PruneOptions()).objects > 0
    del kit.kept[oldest.id]
    kit.reopen()
    kit.check_all()


def test_a_point_that_a_pruner_signs_does_not_count(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    as_host(kit, enrolled(kit, "pruner", role="prune"))
    monkeypatch.setattr(Repository, "check_may_write", lambda *_: None)
    change(kit, 2)
    with pytest.raises(DamageError, match="not enrolled for its group"):
        kit.backup()
    kit.reopen()
    found = kit.repository.read_points()
    assert len(found.points) == 1
    assert found.damaged


def test_groups_are_apart(kit: RamKit) -> None:
    """A writer sees its own group only; the same guest there is another history."""
    as_host(kit, enrolled(kit, "host1", group="other"))
    assert kit.points() == []
    with pytest.raises(AccessError, match="of group 'other', not of 'default'"):
        kit.repository.group("default")
    kit.backup()
    assert [p.lineage.group for p in kit.points()] == ["other"]
    assert kit.verify(None).damaged == ()
    kit.reopen()
    assert sorted(p.lineage.group for p in kit.points()) == ["default", "other"]
    kit.check_all()


def test_who_writes_into_another_group_is_refused(kit: RamKit) -> None:
    """Even where it has that group's keys, out of another host's file."""
    one, two = enrolled(kit, "host1"), enrolled(kit, "host2", group="other")
    run = Run.open(kit.repository, kit.points()[0].lineage, "host")
    kit.repository.identity = WriterKeys(one.realm, one.verify_key, one.keys, two.writer)
    with pytest.raises(DamageError, match="not enrolled for its group"):
        run.commit({}, [])


def test_names_are_taken_once(kit: RamKit) -> None:
    enrolled(kit, "host1")
    for name in ("host1", "a b", "", "x\n"):
        with pytest.raises(UsageError):
            enrolling.new_writer(kit.repository, name, "default", "backup")
    with pytest.raises(UsageError):
        enrolling.new_writer(kit.repository, "host2", "No Group", "backup")


def test_a_key_of_another_realm_is_told(kit: RamKit, tmp_path: Path) -> None:
    """By a sentence about the key, not about damage."""
    other = RamKit(tmp_path / "other", {"vda": 64 * KIB})
    keys = enrolled(other, "host1")
    with pytest.raises(AccessError, match="belongs to another repository"):
        Repository.open(kit.store, keys, Trust(None))
    with pytest.raises(NotFoundError):
        Repository.open(open_store(str(tmp_path / "empty"), create=True), keys, Trust(None))


def test_a_damaged_config_is_damage_for_a_writer_too(kit: RamKit) -> None:
    keys = enrolled(kit, "host1")
    for folder in ("config", "config.copy"):
        path = kit.root / "repository" / folder / "1"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DamageError):
        Repository.open(kit.store, keys, Trust(None))


def test_a_damaged_key_file_is_told(kit: RamKit) -> None:
    text = enrolled(kit, "host1").to_text()
    assert "private" not in text.replace('"private_key"', "", 1)
    for broken in ("", "x", "[]", "{}", text[:-20], text.replace("host1", "host2"), text.replace("writer key", "key")):
        with pytest.raises(AccessError):
            WriterKeys.from_text(broken, "file")
    with pytest.raises(AccessError, match="newer version"):
        WriterKeys.from_text(text.replace('"version": 1', '"version": 2'), "file")


def test_an_enrolment_that_is_gone_is_told_at_verify(kit: RamKit) -> None:
    keys = enrolled(kit, "host1")
    as_host(kit, keys)
    kit.store.delete(f"writers/{keys.writer.id.hex()}")
    found = kit.verify(None)
    assert [damage.object for damage in found.damaged] == [f"writers/{keys.writer.id.hex()}"]


def test_who_was_enrolled_since_is_known(kit: RamKit) -> None:
    """To a process that had the repository open all the while."""
    daemon = Repository.open(kit.store, SECRET, Trust(None))
    assert len(daemon.read_points().points) == 1
    as_host(kit, enrolled(kit, "host1"))
    change(kit, 2)
    kit.backup()
    found = daemon.read_points()
    assert (len(found.points), found.damaged) == (2, [])
