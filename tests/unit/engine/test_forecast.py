"""`--dry-run` refuses what would keep the restore from ending well, and touches nothing."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import nbd_target
from vmbackup.engine.restore.chained import ChainOptions, chain_cost, chain_points, restore_chain
from vmbackup.engine.restore.cost import Foreseen
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.engine.restore.forecast import forecast
from vmbackup.errors import DamageError, TargetError
from vmbackup.progress import Silent
from vmbackup.repository.points import Point

MIB = 1 << 20
CHUNK = 64 << 10
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs, or changes an attribute: run as root")


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Two points: 8 MiB of data, then 1 MiB of it changed."""
    made = RamKit(tmp_path, {"vda": 16 * MIB}, chunk_size=CHUNK)
    made.disk().write(0, random.Random(1).randbytes(8 * MIB))
    made.backup()
    made.disk().write(0, random.Random(2).randbytes(MIB))
    made.backup()
    return made


@pytest.fixture
def options(tmp_path: Path) -> RestoreOptions:
    return RestoreOptions(tmp_path / "out", workers=2, state_dir=tmp_path / "state", sync_seconds=0)


def points(kit: RamKit) -> list[Point]:
    found = kit.points()
    return chain_points(found, found[0], None)


def told(kit: RamKit, options: RestoreOptions) -> list[Foreseen]:
    return forecast(kit.repository, kit.points()[0], options)


def told_of_chain(kit: RamKit, options: RestoreOptions) -> list[Foreseen]:
    return chain_cost(kit.repository, points(kit), ChainOptions(options.output or Path(), workers=2))


def done(kit: RamKit, options: RestoreOptions) -> object:
    return restore(kit.repository, kit.points()[0], options, Silent())


def done_as_chain(kit: RamKit, options: RestoreOptions) -> object:
    return restore_chain(kit.repository, points(kit), ChainOptions(options.output or Path(), workers=2), Silent())


WAYS = [(told, done), (told_of_chain, done_as_chain)]


@pytest.mark.parametrize(("way", "real"), WAYS)
@pytest.mark.parametrize("cut", [False, True])
def test_packs_that_are_lost_or_cut(
    kit: RamKit,
    options: RestoreOptions,
    tmp_path: Path,
    way: Callable[[RamKit, RestoreOptions], object],
    real: Callable[[RamKit, RestoreOptions], object],
    cut: bool,
) -> None:
    """They are named, with the point and the disk, and with the kind of error of the restore itself."""
    kit.reopen()
    packs = sorted((tmp_path / "repository/data").rglob("*-*"), key=lambda path: path.stat().st_mtime)
    old = packs[0]
    if cut:
        old.chmod(0o600)
        os.truncate(old, old.stat().st_size // 2)
    else:
        old.unlink()
    with pytest.raises(DamageError) as refused:
        way(kit, options)
    point = points(kit)[0 if way is told_of_chain else 1].id
    name = str(old.relative_to(tmp_path / "repository"))
    assert refused.value.message.startswith(f"restore point {point}, disk vda cannot be restored: {name} ")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DamageError):
        real(kit, options)


def test_a_pack_that_is_not_needed_is_not_missed(tmp_path: Path, options: RestoreOptions) -> None:
    kit = RamKit(tmp_path, {"vda": MIB}, chunk_size=CHUNK)
    kit.disk().write(0, random.Random(1).randbytes(MIB))
    kit.backup()
    kit.disk().write(0, random.Random(2).randbytes(MIB))
    kit.backup()
    min((tmp_path / "repository/data").rglob("*-*"), key=lambda path: path.stat().st_mtime).unlink()
    (one,) = told(kit, options)
    assert one.cost.data_bytes == MIB


def test_a_chain_is_told_level_by_level(kit: RamKit, options: RestoreOptions) -> None:
    base, top = told_of_chain(kit, options)
    assert (base.cost.data_bytes, base.backing) == (8 * MIB, None)
    assert (top.cost.data_bytes, top.backing) == (MIB, base.path.name)
    assert top.path == (options.output or Path()) / "vda.qcow2"
    assert not (options.output or Path()).exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 7 MiB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@needs_root
@pytest.mark.parametrize("way", [told, told_of_chain])
def test_too_little_space(
    kit: RamKit, options: RestoreOptions, small: Path, way: Callable[[RamKit, RestoreOptions], object]
) -> None:
    with pytest.raises(TargetError, match=rf"needs about \d+ bytes at {small}, and {7 * MIB} are free there"):
        way(kit, replace(options, output=small / "out"))
    assert os.listdir(small) == []


@needs_root
def test_space_that_suffices(kit: RamKit, options: RestoreOptions, small: Path) -> None:
    """What is there already counts: half an image, or the blocks of an image that is written over."""
    subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
    (small / "out").mkdir()
    (small / "out/vda.qcow2.partial").write_bytes(random.Random(3).randbytes(4 * MIB))
    told(kit, replace(options, output=small / "out"))
    with pytest.raises(TargetError, match=f"needs about {12 * MIB} bytes"):
        told(kit, replace(options, output=small / "out", preallocation="full"))
    os.rename(small / "out/vda.qcow2.partial", small / "image")
    os.truncate(small / "image", 16 * MIB)
    told(kit, replace(options, output=None, to={"vda": small / "image"}))
    os.truncate(small / "image", 0)
    (small / "other").write_bytes(random.Random(4).randbytes(4 * MIB))
    os.truncate(small / "image", 16 * MIB)
    with pytest.raises(TargetError, match=f"needs about {8 * MIB} bytes"):
        told(kit, replace(options, output=None, to={"vda": small / "image"}))


def image(folder: Path) -> Path:
    path = folder / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(16 * MIB)], check=True)
    return path


def test_a_damaged_image(kit: RamKit, options: RestoreOptions, tmp_path: Path) -> None:
    """As the restore itself would; but not what the same restore has left half written, which it goes on with."""
    path = image(tmp_path)
    onto = replace(options, output=None, to={"vda": path})
    told(kit, onto)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbd_target.NbdWriter, "close", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            done(kit, onto)
    with open(path, "r+b") as file:
        file.seek(40)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((1 << 40).to_bytes(8, "big"))
    before = path.read_bytes()
    told(kit, onto)
    (note,) = (tmp_path / "state/restores").iterdir()
    note.unlink()
    with pytest.raises(TargetError, match=r"image\.qcow2 is damaged"):
        told(kit, onto)
    assert path.read_bytes() == before
    assert list((tmp_path / "state/restores").iterdir()) == []


@needs_root
def test_an_image_that_may_not_be_written(kit: RamKit, options: RestoreOptions, small: Path) -> None:
    path = image(small)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    with pytest.raises(TargetError, match=f"cannot write {path}: Read-only file system"):
        told(kit, replace(options, output=None, to={"vda": path}))


def test_another_domain_xml_in_the_folder(kit: RamKit, options: RestoreOptions) -> None:
    folder = options.output or Path()
    folder.mkdir()
    (folder / "domain.xml").write_text("<domain/>")
    for way in (told, told_of_chain):
        with pytest.raises(TargetError, match=r"domain\.xml is already there"):
            way(kit, options)
