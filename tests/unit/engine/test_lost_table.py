"""A table of moves is lost: what was repacked is found without it, and nothing is deleted that could heal."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.engine.test_repack import collect, drop, scattered, tables
from tests.unit.engine.test_writers import enrolled
from vmbackup.engine.care.forget import check_lost
from vmbackup.engine.care.repair import RepairOptions, RepairSummary, repair
from vmbackup.errors import DamageError, UsageError
from vmbackup.progress import Silent
from vmbackup.repository import Repository, frames
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.layout import short_id
from vmbackup.repository.repository import point_place
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

CHUNK = 4096
HOW = ["missing", "flipped"]


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Four points, of which two stay; what they need of the others was repacked."""
    made, chance = RamKit(tmp_path, {"vda": 256 * CHUNK}), random.Random(5)
    scattered(made, chance, 256)
    made.backup()
    for _ in range(3):
        scattered(made, chance, 60)
        made.backup()
    drop(made, made.points()[1:3])
    collect(made, wait=0.0, repack_below=0.99, host="here")
    return made


def lose(kit: RamKit, how: str = "missing") -> str:
    """The one table; gives its key."""
    (table,) = tables(kit)
    path = kit.root / "repository" / table.key
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    if how == "flipped":
        path.write_bytes(data)
    kit.reopen()
    return table.key


def stored(kit: RamKit, folder: str) -> set[str]:
    return {entry.key for entry in kit.store.list(f"{folder}/")}


def repaired(kit: RamKit, replica: Repository | None = None) -> RepairSummary:
    done = repair(kit.repository, RepairOptions(True, replica), Silent())
    kit.reopen()
    return done


def check_whole(kit: RamKit) -> None:
    """Everything restores, a further repair has nothing to do, prune works, and all is whole after it."""
    kit.check_all()
    assert repaired(kit).last.damaged == ()
    for _ in range(2):
        collect(kit, wait=0.0, host="here")
        kit.check_all()
    assert len(tables(kit)) <= 1


@pytest.mark.parametrize("how", HOW)
def test_it_is_called_what_it_is(kit: RamKit, how: str) -> None:
    """No restore point of its digits suffers; those suffer that are read through it."""
    key = lose(kit, how)
    found = kit.verify(None).damaged
    (table,) = (damage for damage in found if damage.is_table)
    assert (table.object, table.points) == (key, ())
    assert "do not forget it" in table.problem
    suffering = {point for damage in found for point in damage.points}
    assert suffering
    assert suffering <= set(kit.kept)


@pytest.mark.parametrize("how", HOW)
def test_it_is_made_again(kit: RamKit, how: str) -> None:
    """Out of its packs, which stay where they are; then repair and prune have nothing to say."""
    key = lose(kit, how)
    data = stored(kit, "data")
    with pytest.raises(DamageError):
        prune(kit.repository, PruneOptions(wait=0.0))
    done = repaired(kit)
    assert done.last.damaged == ()
    assert any(healing.object == key for healing in done.healed)
    assert data <= stored(kit, "data")
    assert sum((kit.root / "repository" / new).stat().st_size for new in stored(kit, "data") - data) < 16 * CHUNK
    check_whole(kit)


def test_the_new_one_can_be_lost_too(kit: RamKit) -> None:
    """What was made again is known as a table, and made again once more."""
    for _ in range(2):
        key = lose(kit)
        done = repaired(kit)
        assert key in {damage.object for damage in done.first.damaged if damage.is_table}
        assert done.last.damaged == ()
    check_whole(kit)


def test_a_dead_repacking_is_not_collected(kit: RamKit) -> None:
    """Its pin is still there and its commit is not: it is ended like any dead session, and its packs stay."""
    _, session = point_place(lose(kit))
    lineage = kit.points()[0].lineage
    kit.store.put(lineage.point(session), frames.preamble(b"ABRT"))
    data = stored(kit, "data")
    for _ in range(2):
        collect(kit, wait=0.0, dead_after=0.0)
        assert stored(kit, "data") == data
    assert repaired(kit).last.damaged == ()
    check_whole(kit)


def test_it_is_not_forgotten_while_it_is_needed(kit: RamKit) -> None:
    """Its digits are refused; where it was forgotten all the same, a prune keeps the only whole copies."""
    lineage, session = point_place(lose(kit))
    with pytest.raises(UsageError, match=f"{short_id(session)} is no restore point.*read through it"):
        check_lost(kit.repository, kit.repository.survey(), lineage, session, set())
    everything = {point.session for point in kit.points()}
    check_lost(kit.repository, kit.repository.survey(), lineage, session, everything)
    forget(kit.repository, lineage, session)
    kit.reopen()
    data = stored(kit, "data")
    for _ in range(2):
        collect(kit, wait=0.0)
    assert stored(kit, "data") == data
    assert repaired(kit).last.damaged == ()
    check_whole(kit)
    assert not stored(kit, "data") & {key for key in data if session.hex() in key}


def test_what_is_needed_by_nobody_goes(kit: RamKit) -> None:
    """All that were read through it are forgotten: it may go, and its packs with it."""
    lineage, session = point_place(lose(kit))
    drop(kit, kit.points())
    check_lost(kit.repository, kit.repository.survey(), lineage, session, set())
    assert repaired(kit).last.damaged == ()
    collect(kit, wait=0.0)
    assert stored(kit, "data") == set()


def test_a_pruner_makes_it_again(kit: RamKit) -> None:
    """By the checksums of the old index, without a private key."""
    lose(kit)
    keys = enrolled(kit, "pruner", role="prune")
    pruner = Repository.open(kit.store, keys, Trust(None))
    assert repair(pruner, RepairOptions(True), Silent()).last.damaged == ()
    kit.reopen()
    check_whole(kit)


def test_a_moved_pack_is_lost_too(kit: RamKit) -> None:
    """What nothing here holds comes out of a replica; until then the table stays, and what is there is kept."""
    shutil.copytree(kit.root / "repository", kit.root / "replica")
    away = Repository.open(open_store(str(kit.root / "replica")), SECRET, Trust(None))
    key = lose(kit)
    _, session = point_place(key)
    data = [name for name in stored(kit, "data") if session.hex() in name]
    (kit.root / "repository" / data[0]).unlink()
    left = repaired(kit).last.damaged
    assert key in {damage.object for damage in left if damage.is_table}
    assert len(left) > 1
    assert repaired(kit, away).last.damaged == ()
    check_whole(kit)


def test_a_lost_restore_point_is_no_table(kit: RamKit) -> None:
    newest = kit.points()[0]
    (kit.root / "repository" / newest.key).unlink()
    kit.reopen()
    (damage,) = kit.verify(None).damaged
    assert (damage.is_table, damage.points) == (False, (short_id(newest.session),))
    check_lost(kit.repository, kit.repository.survey(), newest.lineage, newest.session, set())
