"""What a run does not take on trust: the bitmap, and that the parent's packs are still in the store."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ram import RamDisk, RamGuest
from tests.unit.engine.kit import RamKit
from vmbackup.engine.pipeline.lost import uncovered
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.repository.points import Point

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 4 * MIB})
    made.disk().write(0, patterned(MIB, 1))
    made.disk().write(3 * MIB, patterned(200 * KIB, 2))
    made.backup()
    return made


def patterned(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def objects(kit: RamKit, folder: str) -> list[Path]:
    return sorted(p for p in (kit.root / "repository" / folder).rglob("*") if p.is_file())


def newest(kit: RamKit, point_id: str) -> Point:
    return next(p for p in kit.points() if p.id == point_id)


@pytest.mark.parametrize("cut", [3 * MIB + 512, 2 * MIB, 512 * KIB])
@pytest.mark.parametrize("regrown", [4 * MIB, 6 * MIB])
def test_cut_and_grown_again(kit: RamKit, cut: int, regrown: int) -> None:
    """A disk that was shrunk and grown again between two runs is zero where it was cut, though its bitmap is clean."""
    kit.disk().resize(cut)
    kit.disk().resize(regrown)
    kit.disk().write(100, b"a change elsewhere")
    point = kit.backup()
    assert point.disks[0].mode == "reread"
    assert "missed a change" in (point.disks[0].reason or "")
    assert point.status == "warning"
    kit.check_all()


def test_cut_where_nothing_was(kit: RamKit) -> None:
    """A cut that took only zeros costs nothing; nor does one whose place was written again."""
    kit.disk().resize(3 * MIB + 200 * KIB)
    kit.disk().resize(4 * MIB)
    assert kit.backup().disks[0].mode == "incremental"
    kit.disk().resize(3 * MIB)
    kit.disk().resize(4 * MIB)
    kit.disk().write(3 * MIB, patterned(400 * KIB, 3))
    assert kit.backup().disks[0].mode == "incremental"
    kit.check_all()


def test_a_change_past_the_bitmap(kit: RamKit) -> None:
    """An image that another program wrote to, all over, is noticed and read whole."""
    kit.disk().data[: 4 * MIB] = patterned(4 * MIB, 4)
    point = kit.backup()
    assert point.disks[0].mode == "reread"
    assert any("find out what wrote to the image" in warning for warning in point.warnings)
    kit.check_all()


def test_a_sound_bitmap_is_believed(kit: RamKit) -> None:
    """No false alarm, whatever is clean and whatever lies in older sessions or under an older key."""
    chance = random.Random(5)
    for _ in range(30):
        kit.disk().write(chance.randrange(4 * MIB - 64 * KIB), chance.randbytes(chance.randrange(1, 64 * KIB)))
        assert kit.backup().disks[0].mode == "incremental"
    kit.check_all()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])


@pytest.mark.parametrize("spoil", [Path.unlink, cut_short])
@pytest.mark.parametrize("full", [False, True])
def test_a_lost_pack_is_read_again(kit: RamKit, spoil: Callable[[Path], None], full: bool) -> None:
    """What lay in it is read although it is clean, and stored anew; older points find it there."""
    (first,) = kit.kept
    kit.disk().write(2 * MIB, patterned(MIB // 2, 6))
    kit.backup()
    (pack,) = [p for p in objects(kit, "data") if newest(kit, first).session.hex() in p.name]
    spoil(pack)
    kit.disk().write(MIB, b"a change elsewhere")
    healed = kit.backup(full=full)
    assert any("read again" in warning and pack.name in warning for warning in healed.warnings)
    kit.reopen()
    kit.check_all()
    assert kit.backup().warnings == ()


@pytest.mark.parametrize("reopened", [True, False])
@pytest.mark.parametrize("folder", ["meta", "index"])
def test_a_lost_map_is_read_again(kit: RamKit, folder: str, reopened: bool) -> None:
    """Also where an incremental with no change would never have looked at it, and a process that had read it before."""
    (first,) = kit.kept
    session = newest(kit, first).session.hex()
    kit.backup()
    [path for path in objects(kit, folder) if session in path.name][-1].unlink()
    damaged = set(kit.kept)
    if reopened:
        kit.reopen()
    again = kit.backup()
    assert again.status == "warning"
    kit.reopen()
    kit.check_all_but_damaged(damaged)


def test_a_full_in_spite_of_a_lost_map(kit: RamKit) -> None:
    """Somebody who asks for a full backup to heal a repository gets it."""
    (first,) = kit.kept
    objects(kit, "meta")[0].unlink()
    kit.reopen()
    kit.backup(full=True)
    kit.check_all_but_damaged({first})


@pytest.mark.parametrize("spoil", [Path.unlink, cut_short])
def test_a_lost_pack_of_a_killed_run_is_not_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    """Nothing is built on a partial's pack that is gone."""
    kit = RamKit(tmp_path, {"vda": 4 * MIB})
    kit.disk().write(0, patterned(MIB, 7))

    def fail() -> None:
        raise RuntimeError("seal")

    kit.host.on_seal = fail
    with pytest.raises(RuntimeError, match="seal"):
        kit.backup()
    (pack,) = objects(kit, "data")
    spoil(pack)
    kit.host.on_seal = lambda: None
    assert kit.backup().disks[0].stored_bytes > MIB
    kit.check_all()


def test_clones_are_told_apart(kit: RamKit) -> None:
    """Two guests of equal disks and equal histories have equal map nodes, but each its own packs."""
    clone = RamGuest("clone", {"vda": RamDisk(bytearray(kit.disk().data))})
    kit.host.add(clone)
    original, copy = kit.points()[-1], kit.backup_guest("clone")
    assert kit.verify().damaged == ()
    for pack in objects(kit, "data"):
        data = pack.read_bytes()
        pack.unlink()
        (damage,) = kit.verify(None).damaged
        assert damage.points == ((original if original.session.hex() in pack.name else copy).id,)
        pack.write_bytes(data)
    for pack in objects(kit, "data"):
        pack.unlink()
    assert len(kit.verify(None).damaged) == 2


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("full", [False, True])
def test_what_verify_found_is_built_on_no_more(kit: RamKit, full: bool) -> None:
    """A flipped byte is known after a verify: the next backup reads what lies there again, and older points get it."""
    flip(objects(kit, "data")[0], 70_000)
    assert len(kit.verify().damaged) == 1
    kit.disk().write(2 * MIB, b"a change elsewhere")
    healed = kit.backup(full=full)
    assert any("as 'vmbackup verify' found" in warning for warning in healed.warnings)
    kit.reopen()
    kit.check_all()
    assert kit.backup().warnings == ()
    kit.check_all()


def test_images_copied_over_each_other(tmp_path: Path) -> None:
    """Two disks that differ in one place, exchanged by cp: same paths, same files, a clean bitmap of the right name."""
    kit = RamKit(tmp_path, {"vda": 4 * MIB, "vdb": 4 * MIB})
    same = patterned(3 * MIB, 9)
    for target in ("vda", "vdb"):
        kit.disk(target).write(0, same)
        kit.disk(target).write(1_234_567, target.encode() * 100)
    kit.backup()
    a, b = kit.disk("vda"), kit.disk("vdb")
    a.data, b.data = b.data, a.data
    point = kit.backup()
    assert {disk.mode for disk in point.disks} == {"reread"}
    kit.check_all()
    assert {disk.mode for disk in kit.backup().disks} == {"incremental"}


def test_uncovered_cuts_runs_exactly() -> None:
    """What lies in the parts is DATA, block by block; every other block is as it was."""
    chance = random.Random(8)
    for _ in range(300):
        kinds = [chance.choice(list(Kind)) for _ in range(40)]
        lost = [chance.random() < 0.3 for _ in kinds]
        runs = [Extent(4096 * i, 4096, kind) for i, kind in enumerate(kinds)]
        joined = [runs[0]]
        for run in runs[1:]:
            if run.kind == joined[-1].kind:
                joined[-1] = joined[-1]._replace(length=joined[-1].length + 4096)
            else:
                joined.append(run)
        parts = [(i, 1) for i, is_lost in enumerate(lost) if is_lost]
        found: list[Kind] = []
        for offset, length, kind in uncovered(joined, parts, 4096):
            assert offset == len(found) * 4096
            found += [kind] * (length // 4096)
        wanted = [Kind.DATA if gone and k == Kind.UNCHANGED else k for k, gone in zip(kinds, lost, strict=True)]
        assert found == wanted
