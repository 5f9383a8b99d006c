"""A chain of images: each level is its restore point, and holds just what changed."""

from __future__ import annotations

import json
import os
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from tests.unit.engine.test_repack import collect, history
from vmbackup.engine.images.new_files import NewFiles
from vmbackup.engine.restore.chained import ChainFile, ChainOptions, chain_points, restore_chain
from vmbackup.engine.restore.changed_runs import changed_runs
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import DamageError, TargetError, UsageError
from vmbackup.progress import Silent
from vmbackup.repository.chunks import Secrets
from vmbackup.repository.differences import DiskMap, differences
from vmbackup.repository.nodes import KEEP

MIB = 1 << 20
CHUNK = 64 << 10


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def content(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    tool("qemu-img", "convert", "-O", "raw", str(path), str(raw))
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def own(path: Path) -> dict[int, bool]:
    """The chunks that an image holds itself: whether they are zeros."""
    found = {}
    for run in json.loads(tool("qemu-img", "map", "--output=json", str(path))):
        if run["depth"] == 0 and run["present"]:
            for at in range(run["start"] // CHUNK, -(-(run["start"] + run["length"]) // CHUNK)):
                found[at] = run["zero"]
    return found


def make(kit: RamKit, folder: Path, first: int | None = None) -> list[ChainFile]:
    points = kit.points()
    chosen = chain_points(points, points[0], None if first is None else points[first])
    made = restore_chain(kit.repository, chosen, ChainOptions(folder, workers=2), Silent())
    assert made.point == points[0].id
    return list(made.files)


def check(kit: RamKit, files: list[ChainFile]) -> None:
    """Each level is sound and reads as its point."""
    for file in files:
        assert "No errors" in tool("qemu-img", "check", str(file.path))
        assert content(file.path) == kit.kept[file.point][file.target], file
        info = json.loads(tool("qemu-img", "info", "--output=json", str(file.path)))
        assert info.get("backing-filename") == file.backing
        assert info.get("backing-filename-format") == ("qcow2" if file.backing else None)
        assert info["virtual-size"] == file.virtual_size


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 8 * MIB}, chunk_size=CHUNK)
    made.disk().write(0, random.Random(1).randbytes(4 * MIB))
    made.backup()
    return made


def test_a_level_holds_just_what_changed(kit: RamKit, tmp_path: Path) -> None:
    """Data as data, what became zero as explicit zeros, and nothing else."""
    kit.disk().write(3 * CHUNK + 100, b"new")
    kit.disk().write(10 * CHUNK, bytes(2 * CHUNK))
    kit.backup()
    kit.backup()  # nothing changed
    kit.disk().write(100 * CHUNK, b"where zeros were")
    kit.backup()
    folder = tmp_path / "out"
    files = make(kit, folder)
    check(kit, files)
    assert own(files[1].path) == {3: False, 10: True, 11: True}
    assert own(files[2].path) == {}
    assert own(files[3].path) == {100: False}
    names = [f"vda-{point.id}.qcow2" for point in kit.points()[:0:-1]]
    assert [file.path.name for file in files] == [*names, "vda.qcow2"]
    assert sorted(os.listdir(folder)) == sorted([*names, "vda.qcow2", "domain.xml"])


def test_it_can_be_moved_as_a_whole(kit: RamKit, tmp_path: Path) -> None:
    """Names of backing files are relative."""
    kit.disk().write(0, b"new")
    point = kit.backup()
    make(kit, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert content(tmp_path / "elsewhere" / "vda.qcow2") == kit.kept[point.id]["vda"]


def test_it_may_begin_later(kit: RamKit, tmp_path: Path) -> None:
    """--chain-from names the base, which then is whole."""
    for value in b"abc":
        kit.disk().write(0, bytes([value]) * 10)
        kit.backup()
    files = make(kit, tmp_path / "out", first=1)
    assert [file.backing is None for file in files] == [True, False]
    check(kit, files)


@pytest.mark.parametrize("sizes", [(9, 12), (5, 3), (3, 8), (2, 1, 11)])
def test_disks_that_grow_and_shrink(kit: RamKit, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """A level is as large as its point; what was cut off does not come back when the disk grows again."""
    for number, size in enumerate(sizes):
        kit.disk().resize(size * MIB + 512)
        kit.disk().write(size * MIB - 1000, bytes([65 + number]) * 1400)
        kit.backup()
    check(kit, make(kit, tmp_path / "out"))


def test_chunks_that_were_stored_anew(kit: RamKit, tmp_path: Path) -> None:
    """What a whole reading finds again is no change."""
    kit.disk().write(0, kit.kept[kit.points()[0].id]["vda"][MIB : 2 * MIB])
    kit.backup()
    kit.disk().write(0, kit.kept[kit.points()[1].id]["vda"][:MIB])
    kit.backup(full=True)
    files = make(kit, tmp_path / "out")
    check(kit, files)
    assert sorted(own(files[1].path)) == sorted(own(files[2].path)) == list(range(16))


def test_chunks_that_a_prune_moved_are_no_change(tmp_path: Path) -> None:
    """A map that tells their new places holds the same chunks as one that tells the old ones."""
    kit = history(tmp_path, 12, lambda n: n % 6 == 0)
    assert collect(kit).repacked
    kit.disk().write(7 * 4096, b"the leaf is written anew")
    kit.backup()
    newer, older = kit.points()[:2]
    catalog = kit.repository.catalog()
    old, new = (DiskMap(catalog, point, point.disks[0]) for point in (older, newer))
    by_place = [(run.first, run.chunks) for run in differences(old, new) if run.session != KEEP]
    secrets = Secrets(kit.repository, newer.lineage.group)
    changed = [(run.first, run.chunks) for run in changed_runs(old, new, secrets) if run.session != KEEP]
    assert len(by_place) > 1
    assert changed == [(7, 1)]
    check(kit, make(kit, tmp_path / "out"))


def test_a_disk_that_came_later_begins_later(tmp_path: Path) -> None:
    """Its base is the first point that has it."""
    kit = RamKit(tmp_path, {"vda": MIB, "vdb": MIB}, chunk_size=CHUNK)
    late = kit.guest.disks.pop("vdb")
    kit.backup()
    kit.guest.disks["vdb"] = late
    late.write(0, b"late")
    kit.backup()
    late.write(0, b"later")
    kit.backup()
    files = make(kit, tmp_path / "out")
    check(kit, files)
    assert [file.target for file in files] == ["vda", "vda", "vda", "vdb", "vdb"]


def test_chunks_of_another_size_are_compared_by_content(kit: RamKit, tmp_path: Path) -> None:
    """After the repository's chunk size was changed a level still holds what changed alone."""
    config = kit.repository.config
    kit.repository.recheck = lambda: None  # type: ignore[method-assign]  # keeps this config
    for size in (16 << 10, 128 << 10):
        kit.repository.config = replace(config, chunk_size=size)
        kit.disk().write(5 * MIB, b"more" + bytes([size >> 14]))
        kit.disk().write(MIB, bytes(5 * CHUNK))
        kit.disk().resize(10 * MIB - 512)
        kit.backup()
    assert [point.disks[0].chunk_size >> 10 for point in kit.points()] == [128, 16, 64]
    files = make(kit, tmp_path / "out")
    check(kit, files)
    assert own(files[1].path) == {80: False, **dict.fromkeys(range(16, 21), True)}
    assert own(files[2].path) == {80: False, 81: False}


def test_nothing_is_left_of_a_chain_that_fails(kit: RamKit, tmp_path: Path) -> None:
    """A damaged pack fails all of it, naming the point; no file has a final name."""
    kit.disk().write(0, random.Random(2).randbytes(MIB))
    point = kit.backup()
    pack = max((tmp_path / "repository" / "data").rglob("*-*"), key=lambda path: path.stat().st_mtime)
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    with pytest.raises(DamageError, match=point.id):
        make(kit, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_what_is_there_is_not_replaced(kit: RamKit, tmp_path: Path) -> None:
    """A level's name that is taken is refused before anything is read."""
    kit.backup()
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / f"vda-{kit.points()[1].id}.qcow2"
    taken.write_text("mine")
    with pytest.raises(TargetError, match="already there"):
        make(kit, tmp_path / "out")
    assert taken.read_text() == "mine"


def test_a_kill_as_the_names_are_given(kit: RamKit, tmp_path: Path) -> None:
    """What has both names is made again; no leftover stays."""
    kit.disk().write(0, b"new")
    kit.backup()
    folder = tmp_path / "out"
    files = make(kit, folder)
    names = sorted(os.listdir(folder))
    for file in files:
        os.link(file.path, f"{file.path}.partial")
    files[1].path.unlink()
    (folder / "domain.xml").unlink()
    check(kit, make(kit, folder))
    assert sorted(os.listdir(folder)) == names


def test_a_beginning_that_cannot_be_meant(kit: RamKit) -> None:
    """A newer point, or another guest's."""
    kit.backup()
    newer, older = kit.points()
    with pytest.raises(UsageError, match="is newer than"):
        chain_points(kit.points(), older, newer)


def test_another_restore_to_the_same_folder(kit: RamKit, tmp_path: Path) -> None:
    """While a chain is made, neither another chain nor a plain restore touches its files."""
    folder, plain = tmp_path / "out", RestoreOptions(tmp_path / "out", workers=2)
    with NewFiles(folder) as files:
        files.reserve("vda.qcow2", {"chain": "its point"})
        with files.create("vda.qcow2") as path:
            path.write_text("half")
        for other in (lambda: make(kit, folder), lambda: restore(kit.repository, kit.points()[0], plain, Silent())):
            with pytest.raises(TargetError, match="is in use: another restore writes it"):
                other()
        assert path.read_text() == "half"
    assert os.listdir(folder) == []
    check(kit, make(kit, folder))


def test_after_a_chain_that_was_killed(kit: RamKit, tmp_path: Path) -> None:
    """A plain restore does not take what it left for its own; not even where its own was begun there before."""
    folder, options = tmp_path / "out", RestoreOptions(tmp_path / "out", "qcow2", workers=2, sync_seconds=0)
    point = kit.points()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NewFiles, "publish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            restore(kit.repository, point, options, Silent())
        assert "vda.qcow2.partial" in os.listdir(folder)
        patch.setattr(NewFiles, "__exit__", lambda files, *_: any(note.release() for note in files._reserved))
        with pytest.raises(KeyboardInterrupt):
            make(kit, folder)
    said = (folder / "vda.qcow2.partial.json").read_text()
    assert "chain" in said
    restore(kit.repository, point, options, Silent())
    assert content(folder / "vda.qcow2") == kit.disk().data
