"""Restores onto images and devices that are there: their exact bytes, and refused where somebody works with them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.images import nbd_target, qemu_nbd
from vmbackup.engine.images.image_file import served_image
from vmbackup.engine.restore.flat import RestoreOptions, RestoreSummary, restore
from vmbackup.errors import DamageError, NotFoundError, TargetError, UsageError
from vmbackup.progress import Silent

MIB = 1 << 20
SIZE = 24 * MIB + 512 * 3  # no multiple of a chunk, nor of a page
CHUNK = 64 << 10


@dataclass(frozen=True)
class User:
    """A guest that has the image."""

    domain: str = "other"
    uuid: str = "another"
    target: str = "vda"
    active: bool = False
    below: bool = False


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": SIZE}, chunk_size=CHUNK)
    made.disk().write(0, random.Random(1).randbytes(8 * MIB))
    made.disk().write(16 * MIB, random.Random(2).randbytes(SIZE - 16 * MIB))
    made.backup()
    return made


@pytest.fixture
def options(tmp_path: Path) -> RestoreOptions:
    return RestoreOptions(None, workers=2, state_dir=tmp_path / "state", sync_seconds=0)


class Notes(Silent):
    """Keeps what the operator is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        """Kept."""
        self.texts.append(text)


def note_name(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


def qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def onto(kit: RamKit, path: Path, options: RestoreOptions) -> RestoreSummary:
    return restore(kit.repository, kit.points()[0], replace(options, to={"vda": path}), Silent())


def dirty_raw(path: Path, size: int = SIZE) -> Path:
    path.write_bytes(random.Random(3).randbytes(size))
    return path


def dirty_qcow2(folder: Path, size: int = SIZE) -> Path:
    qemu_img("convert", "-O", "qcow2", dirty_raw(folder / "old", size), folder / "old.qcow2")
    return folder / "old.qcow2"


def content(path: Path, folder: Path) -> bytes:
    qemu_img("convert", "-O", "raw", path, folder / "content")
    return (folder / "content").read_bytes()


def test_a_raw_file(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """What the file held is gone, where the disk has zeros too; nothing is left beside it."""
    path = dirty_raw(tmp_path / "image")
    done = onto(kit, path, options)
    assert path.read_bytes() == kit.disk().data
    assert (done.files[0].format, done.files[0].path, done.warnings) == ("raw", path, ())
    assert list((tmp_path / "state/restores").iterdir()) == []


def test_a_qcow2_image(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """It stays qcow2, and sound."""
    path = dirty_qcow2(tmp_path)
    assert onto(kit, path, options).files[0].format == "qcow2"
    assert content(path, tmp_path) == kit.disk().data
    qemu_img("check", path)


def test_a_larger_one(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """Behind the disk's end it reads as zeros, and that is said."""
    path = dirty_raw(tmp_path / "image", SIZE + 5 * MIB)
    done = onto(kit, path, options)
    assert path.read_bytes() == kit.disk().data + bytes(5 * MIB)
    assert done.warnings == (f"{path} is larger than disk vda: the guest finds zeros behind its end",)


def test_one_that_is_too_small(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """It is refused, and stays as it was."""
    for path in (dirty_raw(tmp_path / "image", SIZE - 512), dirty_qcow2(tmp_path, SIZE - 512)):
        before = path.read_bytes()
        with pytest.raises(TargetError, match="is too small: it has"):
            onto(kit, path, options)
        assert path.read_bytes() == before


def test_one_that_is_not_there(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    with pytest.raises(NotFoundError, match=f"there is no {tmp_path}/none"):
        onto(kit, tmp_path / "none", options)


def test_one_that_qemu_has_open(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """Its locks tell, on raw and qcow2."""
    for path in (dirty_raw(tmp_path / "image"), dirty_qcow2(tmp_path)):
        before = path.read_bytes()
        with opened(path, tmp_path), pytest.raises(TargetError, match="is in use: QEMU has it open"):
            onto(kit, path, options)
        assert path.read_bytes() == before


@contextlib.contextmanager
def opened(path: Path, folder: Path) -> Iterator[None]:
    """As a running guest has it open."""
    format_ = "qcow2" if path.suffix else "raw"
    pid_file = folder / "pid"
    command = ["qemu-nbd", "-f", format_, "-t", "-k", str(folder / "socket"), "--pid-file", str(pid_file), str(path)]
    with subprocess.Popen(command) as process:
        try:
            while not pid_file.exists():
                assert process.poll() is None
            yield
        finally:
            process.terminate()
    pid_file.unlink(missing_ok=True)


def test_a_disk_of_a_guest(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """Of one that runs never, of another never; its own guest's, while that is off."""
    path, own = dirty_raw(tmp_path / "image"), kit.points()[0].uuid
    before = path.read_bytes()
    with pytest.raises(TargetError, match="it is disk vda of the guest guest, which runs"):
        onto(kit, path, replace(options, users=lambda _: [User("guest", own, active=True)]))
    with pytest.raises(TargetError, match="is disk vda of another guest, other"):
        onto(kit, path, replace(options, users=lambda _: [User()]))
    with pytest.raises(TargetError, match="lies below disk vda of the guest guest, as its backing file"):
        onto(kit, path, replace(options, users=lambda _: [User("guest", own, below=True)]))
    assert path.read_bytes() == before
    onto(kit, path, replace(options, users=lambda _: [User("guest", own)]))
    assert path.read_bytes() == kit.disk().data


def test_a_header_that_names_another_file(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """What a guest wrote into its raw disk must not make us open a file of the host; who has an overlay says so."""
    base = dirty_qcow2(tmp_path)
    path = tmp_path / "overlay"
    qemu_img("create", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
    before = base.read_bytes()
    with pytest.raises(TargetError, match="builds on another file, as its content says"):
        onto(kit, path, options)
    onto(kit, path, replace(options, format="qcow2"))
    assert content(path, tmp_path) == kit.disk().data
    assert base.read_bytes() == before


def test_a_format_that_is_not_ours(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    path = tmp_path / "image.vmdk"
    qemu_img("create", "-f", "vmdk", path, str(SIZE))
    with pytest.raises(TargetError, match="is a vmdk image"):
        onto(kit, path, options)


def test_where_disks_go(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """A disk must be one of the point's, and go somewhere."""
    path = dirty_raw(tmp_path / "image")
    point = kit.points()[0]
    with pytest.raises(NotFoundError, match="has no disk 'vdx'"):
        restore(kit.repository, point, replace(options, to={"vdx": path}), Silent())
    with pytest.raises(UsageError, match="nothing says where disk vda goes"):
        restore(kit.repository, point, replace(options, disks=("vda",)), Silent())


def test_gone_on_with(kit: RamKit, tmp_path: Path, options: RestoreOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted, it is half written; the same command goes on, and fetches only what is not right there."""
    path = dirty_qcow2(tmp_path)
    write, left = nbd_target.NbdWriter.write, iter(range(8))

    def failing(self: Any, offset: int, pieces: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(self, offset, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(nbd_target.NbdWriter, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            onto(kit, path, options)
    assert len(os.listdir(tmp_path / "state/restores")) == 1
    done = onto(kit, path, options)
    assert content(path, tmp_path) == kit.disk().data
    assert 0 < done.files[0].fetched_bytes < 13 * MIB
    assert os.listdir(tmp_path / "state/restores") == []


def test_two_names_of_one_image(tmp_path: Path, options: RestoreOptions) -> None:
    """Two disks do not go over one another, whatever the image is called."""
    kit = RamKit(tmp_path, {"vda": MIB, "vdb": MIB})
    kit.backup()
    path = dirty_raw(tmp_path / "image", MIB)
    before = path.read_bytes()
    (tmp_path / "link").hardlink_to(path)
    with pytest.raises(UsageError, match="two disks cannot go onto one image"):
        to = {"vda": path, "vdb": tmp_path / "link"}
        restore(kit.repository, kit.points()[0], replace(options, to=to), Silent())
    assert path.read_bytes() == before


def test_a_damaged_image(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """It is refused: writes to it could go over one another."""
    path = dirty_qcow2(tmp_path)
    with open(path, "r+b") as file:
        file.seek(40)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((1 << 40).to_bytes(8, "big"))
    before = path.read_bytes()
    with pytest.raises(TargetError, match=r"old\.qcow2 is damaged"):
        onto(kit, path, options)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path / "state/restores") == []


def test_a_failure_before_anything_is_written_leaves_no_note(tmp_path: Path, options: RestoreOptions) -> None:
    """Nor is the image called half written; what an earlier restore left there half written stays noted."""
    kit = RamKit(tmp_path, {"vda": MIB}, chunk_size=CHUNK)
    kit.disk().write(0, random.Random(1).randbytes(MIB))
    kit.backup()
    for pack in (tmp_path / "repository/data").rglob("*-*"):
        pack.unlink()
    path, notes = dirty_raw(tmp_path / "image", MIB), Notes()
    before, folder = path.read_bytes(), tmp_path / "state/restores"
    for text in ("", '{"point": "another"}'):
        if text:
            (folder / f"{note_name(path)}.json").write_text(text)
        with pytest.raises(DamageError):
            restore(kit.repository, kit.points()[0], replace(options, to={"vda": path}), notes)
        assert [note.read_text() for note in folder.iterdir()] == ([text] if text else [])
    assert path.read_bytes() == before
    assert notes.texts == []


def test_empty_notes_of_killed_restores_are_removed(kit: RamKit, tmp_path: Path, options: RestoreOptions) -> None:
    """Old ones that nobody holds; one that says something is of an image that is half written."""
    folder = tmp_path / "state/restores"
    folder.mkdir(parents=True)
    for name, text in {"old": "", "young": "", "held": "", "half": "{}"}.items():
        (folder / f"{name}.json").write_text(text)
        if name != "young":
            os.utime(folder / f"{name}.json", (1, 1))
    with open(folder / "held.json") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        onto(kit, dirty_raw(tmp_path / "image"), options)
    assert sorted(os.listdir(folder)) == ["half.json", "held.json", "young.json"]


def test_one_that_may_not_be_written(tmp_path: Path) -> None:
    """What qemu-nbd says of it is no reason to install it."""
    error = qemu_nbd._not_started(tmp_path, "qemu-nbd: Could not open 'x': Operation not permitted")
    assert (error.message, error.hint) == (
        f"cannot write {tmp_path}: Operation not permitted", "look at its attributes (lsattr) and its file system",
    )  # fmt: skip


def test_a_restore_in_another_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees no process of this one, and leaves its socket alone; what a killed one left it takes away."""
    path = dirty_raw(tmp_path / "image", MIB)
    with tempfile.TemporaryDirectory(prefix="v-") as short:  # a socket's path has 107 bytes
        monkeypatch.setattr("tempfile.tempdir", short)
        monkeypatch.setattr(os, "getpid", lambda: 1 << 23)
        dead = Path(short, f"vmbackup-restore-{1 << 23}-dead")
        dead.mkdir()
        nbd = qemu_nbd.QemuNbd(path, served_image(path, "raw"), 1)
        try:
            qemu_nbd._sweep()
            nbd.connect().close()
            assert not dead.exists()
        finally:
            nbd.abandon()
        assert list(Path(short).glob("vmbackup-restore-*")) == []


def test_an_image_that_takes_too_long_to_open(kit: RamKit, options: RestoreOptions, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """That is said; that qemu-nbd is not installed is not."""
    path = dirty_raw(tmp_path / "image")
    before = path.read_bytes()
    monkeypatch.setattr(qemu_nbd, "_START_SECONDS", -1.0)
    with pytest.raises(TargetError, match=r"qemu-nbd has not opened .*/image within"):
        onto(kit, path, options)
    assert path.read_bytes() == before
