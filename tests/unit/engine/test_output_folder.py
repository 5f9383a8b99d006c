"""A folder that cannot be written, or holds half of another restore point, is refused before anything is read."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import raw_target
from vmbackup.engine.restore import output_folder
from vmbackup.engine.restore.chained import ChainOptions, restore_chain
from vmbackup.engine.restore.flat import RestoreOptions, choose_targets, restore
from vmbackup.errors import TargetError
from vmbackup.progress import Silent
from vmbackup.repository.repository import Repository

MIB = 1 << 20
Way = Callable[[RamKit, Path], object]


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": 8 * MIB})
    made.disk().write(0, random.Random(1).randbytes(8 * MIB))
    made.backup()
    return made


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def flat(kit: RamKit, folder: Path) -> object:
    return restore(kit.repository, kit.points()[0], RestoreOptions(folder, "raw", workers=2), Silent())


def chain(kit: RamKit, folder: Path) -> object:
    return restore_chain(kit.repository, kit.points()[:1], ChainOptions(folder, workers=2), Silent())


def dry(kit: RamKit, folder: Path) -> object:
    return choose_targets(kit.points()[0], RestoreOptions(folder))


@pytest.fixture(params=[flat, chain, dry])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """Each way to restore to a folder; none may read a document before it has looked at the folder."""

    def refused(kit: RamKit, folder: Path) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(Repository, "documents", lambda *_: pytest.fail("something was read"))
            found: Way = request.param
            return found(kit, folder)

    return refused


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: run as root")
def test_a_read_only_file_system(kit: RamKit, read_only: Path, way: Way) -> None:
    for folder in (read_only, read_only / "new" / "folder"):
        with pytest.raises(TargetError) as refused:
            way(kit, folder)
        assert refused.value.message == f"cannot write to {folder}: the file system of {read_only} is read-only"
        assert refused.value.hint == "name another folder with --output"
    assert os.listdir(read_only) == []


def test_a_folder_of_somebody_else(kit: RamKit, tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel tells whoever is not root."""
    monkeypatch.setattr(output_folder.os, "access", lambda path, *_args, **_more: path != tmp_path)
    with pytest.raises(
        TargetError, match=f"cannot write to {tmp_path}/out: this user may not make files in {tmp_path}"
    ):
        way(kit, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_would_be(kit: RamKit, tmp_path: Path, way: Way) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TargetError, match=f"cannot write to {tmp_path}/file/out: {tmp_path}/file is no folder"):
        way(kit, tmp_path / "file" / "out")


def begin(kit: RamKit, folder: Path) -> str:
    """Half a restore; gives the id of its point."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_target._RawWriter, "close", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        options = replace(RestoreOptions(folder, "raw", workers=2), sync_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            restore(kit.repository, kit.points()[0], options, Silent())
    assert sorted(os.listdir(folder)) == ["vda.raw.partial", "vda.raw.partial.json"]
    return kit.points()[0].id


def test_half_of_another_restore_point(kit: RamKit, tmp_path: Path, way: Way) -> None:
    """It says whose, and what to do; what is there stays, and is gone on with."""
    folder = tmp_path / "out"
    point = begin(kit, folder)
    before = (folder / "vda.raw.partial").read_bytes()
    kit.disk().write(0, b"new")
    kit.backup()
    with pytest.raises(TargetError) as refused:
        way(kit, folder)
    told = f"{folder} holds a restore of {point} of guest that was not finished (vda.raw.partial)"
    assert refused.value.message == told
    assert refused.value.hint.startswith("restore that one again to finish it, delete vda.raw.partial and")
    assert (folder / "vda.raw.partial").read_bytes() == before
    old = kit.points()[1]
    assert old.id == point
    restore(kit.repository, old, RestoreOptions(folder, "raw", workers=2), Silent())
    assert (folder / "vda.raw").read_bytes() == kit.kept[point]["vda"]


def test_notes_that_mean_nothing_are_no_hindrance(kit: RamKit, tmp_path: Path) -> None:
    """One with no image beside it, and one that makes no sense."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "gone.raw.partial.json").write_text('{"point": "another"}')
    for number, text in enumerate(("", "nonsense", "[1]", '{"point": 1}')):
        (folder / f"{number}.raw.partial.json").write_text(text)
        (folder / f"{number}.raw.partial").write_text("")
    (folder / "empty.json").write_text("")
    (folder / "vdb.raw.partial.json").write_text("")
    for name in ("empty.json", "0.raw.partial.json", "vdb.raw.partial.json"):
        os.utime(folder / name, (1, 1))
    flat(kit, folder)
    assert (folder / "vda.raw").read_bytes() == kit.disk().data
    assert not (folder / "0.raw.partial.json").exists()  # old and empty: of a restore that was killed at once
    assert not (folder / "vdb.raw.partial.json").exists()
    assert (folder / "empty.json").exists()
