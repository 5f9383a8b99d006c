"""Each kind of object damaged in each way is repaired out of a replica, by whoever may collect, and by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.damaged import DAMAGES, Specimen, deleted, flipped, specimen, unreadable
from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.engine.test_writers import as_host, enrolled
from vmbackup.engine.care.repair import RepairOptions, RepairSummary, repair
from vmbackup.errors import AccessError
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.trust import Trust

HEALED = ["data", "meta", "index part", "index root"]
PUT_BACK = ["config", "config.copy", "keys", "groups", "writers", "point"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Specimen:
    return specimen(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def made(whole: Specimen, tmp_path: Path) -> Specimen:
    return whole.copied(tmp_path)


@pytest.fixture
def replica(whole: Specimen, tmp_path: Path) -> Repository:
    (tmp_path / "replica").mkdir()
    kit = whole.copied(tmp_path / "replica").kit
    kit.reopen()
    return kit.repository


def repaired(kit: RamKit, replica: Repository | None) -> RepairSummary:
    return repair(kit.repository, RepairOptions(read_data=True, replica=replica), Silent())


def check_healed(made: Specimen, replica: Repository | None) -> None:
    """Nothing is damaged, every point restores, and what was there is there as it was."""
    before = dict(made.store.objects)
    done = repaired(made.kit, replica)
    assert done.first.damaged
    assert done.last.damaged == ()
    assert before.items() <= made.store.objects.items()
    made.kit.reopen()
    assert unreadable(made.kit) == set()
    assert len(made.kit.points()) == 3


@pytest.mark.parametrize("harm", DAMAGES, ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("kind", HEALED)
def test_what_points_need_is_healed(
    made: Specimen, replica: Repository, kind: str, harm: Callable[[Specimen, list[str]], list[str]]
) -> None:
    """And goes, once a prune finds that nothing needs it."""
    kit = made.kit
    harmed = harm(made, made.kinds[kind])
    kit.reopen()
    check_healed(made, replica)
    prune(kit.repository, PruneOptions(wait=0, dead_after=0))
    kit.reopen()
    assert unreadable(kit) == set()
    assert kit.verify().damaged == ()
    assert kind.startswith("index") or not set(harmed) & made.store.objects.keys()


@pytest.mark.parametrize("kind", PUT_BACK)
def test_what_is_missing_is_put_back(made: Specimen, replica: Repository, kind: str) -> None:
    if kind == "writers":  # one that signed nothing, and that nobody misses
        made.kinds[kind] = [key for key in made.kinds[kind] if made.kit.repository.writer.id.hex() in key]
    deleted(made, made.kinds[kind])
    made.kit.reopen()
    check_healed(made, replica)


def test_a_pruner_heals_without_a_private_key(made: Specimen) -> None:
    """By checksums, out of the same replica and the repository itself."""
    kit = made.kit
    kit.reopen()
    keys = enrolled(kit, "pruner", role="prune")
    other: Specimen = made.copied(kit.root / "other")
    away = Repository.open(other.store, keys, Trust(None))
    for kind in ("data", "meta", "index root"):
        flipped(made, made.kinds[kind])
    as_host(kit, keys)
    done = repaired(kit, away)
    assert done.first.damaged
    assert (done.first.read, done.last.damaged) == ("checksums", ())
    kit.reopen()
    assert unreadable(kit) == set()
    assert kit.verify().damaged == ()


@pytest.mark.parametrize("harm", [flipped, deleted])
def test_a_pruner_heals_out_of_the_next_backup(
    made: Specimen, harm: Callable[[Specimen, list[str]], list[str]]
) -> None:
    """And its prune lets the old pack go, though it cannot decode what took the place of lost chunks."""
    kit = made.kit
    kit.reopen()
    backup, pruner = enrolled(kit, "backup"), enrolled(kit, "pruner", role="prune")
    (pack,) = harm(made, made.kinds["data"])
    as_host(kit, backup)
    kit.verify()
    kit.backup()
    kit.repository = Repository.open(made.store, pruner, Trust(None))
    assert repaired(kit, None).last.damaged == ()
    prune(kit.repository, PruneOptions(wait=0, dead_after=0))
    assert pack not in made.store.objects
    kit.reopen()
    assert unreadable(kit) == set()
    assert kit.verify().damaged == ()


def test_moves_of_a_backup_key_count_for_nothing(
    made: Specimen, replica: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is written; a table that a stolen key signs all the same heals nothing."""
    kit = made.kit
    kit.reopen()
    keys = enrolled(kit, "thief")
    flipped(made, made.kinds["data"])
    kit.verify()
    as_host(kit, keys)
    before = dict(made.store.objects)
    with pytest.raises(AccessError) as caught:
        repaired(kit, replica)
    assert "role prune" in caught.value.hint
    assert made.store.objects == before
    monkeypatch.setattr(Repository, "check_may_collect", lambda *_: None)
    assert repaired(kit, replica).last.damaged
    assert {key.partition("/")[0] for key in made.store.objects.keys() - before.keys()} >= {"points", "data"}
    kit.repository = Repository.open(made.store, SECRET, kit.trust)
    assert kit.verify().damaged
    assert unreadable(kit)
