"""The files that a guest is started from, written beside its restored disks, or found on this host as they were."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.test_boot_files import KIB, Guest, noise
from vmbackup.engine.restore.boot_files import BootFiles, _names
from vmbackup.engine.restore.chained import ChainOptions, restore_chain
from vmbackup.engine.restore.flat import RestoreOptions, RestoreSummary, restore
from vmbackup.errors import DamageError, TargetError
from vmbackup.hypervisor.source import BootFile
from vmbackup.progress import Silent
from vmbackup.repository.nodes import zero_ref
from vmbackup.repository.points import Point
from vmbackup.repository.records import FileRecord


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def restored(guest: Guest, point: Point, folder: Path, **options: Any) -> RestoreSummary:
    return restore(guest.kit.repository, point, RestoreOptions(folder, "raw", workers=2, **options), Silent())


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "boot-files").iterdir()}


def test_beside_the_disks(guest: Guest, tmp_path: Path) -> None:
    """For their owner only, each point its own; a second restore of another disk leaves what is right there."""
    first = guest.backup()
    old = guest.initrd.read_bytes()
    guest.initrd.write_bytes(noise(3, 70 * KIB))
    second = guest.backup()
    kernel = guest.kernel.read_bytes()
    guest.kernel.unlink()
    done = restored(guest, first, tmp_path / "a")
    assert held(tmp_path / "a") == {"vmlinuz": kernel, "initrd": old}
    assert [(file.path, file.kind, file.restored.name) for file in done.boot_files] == [
        (str(guest.kernel), "kernel", "vmlinuz"), (str(guest.initrd), "initrd", "initrd"),
    ]  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a/boot-files").iterdir()} == {0o600}
    restored(guest, second, tmp_path / "b")
    assert held(tmp_path / "b") == {"vmlinuz": kernel, "initrd": guest.initrd.read_bytes()}
    (tmp_path / "a/vda.raw").unlink()
    inode = (tmp_path / "a/boot-files/vmlinuz").stat().st_ino
    assert len(restored(guest, first, tmp_path / "a").boot_files) == 2
    assert (tmp_path / "a/boot-files/vmlinuz").stat().st_ino == inode
    (tmp_path / "a/vda.raw").unlink()
    with pytest.raises(TargetError, match="initrd is already there"):
        restored(guest, second, tmp_path / "a")
    assert held(tmp_path / "a") == {"vmlinuz": kernel, "initrd": old}
    assert not (tmp_path / "a/vda.raw").exists()


def test_beside_a_chain(guest: Guest, tmp_path: Path) -> None:
    """Those of its newest point."""
    first = guest.backup()
    guest.initrd.write_bytes(noise(3, 70 * KIB))
    second = guest.backup()
    done = restore_chain(guest.kit.repository, [first, second], ChainOptions(tmp_path / "c"), Silent())
    assert held(tmp_path / "c") == {"vmlinuz": guest.kernel.read_bytes(), "initrd": guest.initrd.read_bytes()}
    assert (len(done.boot_files), done.warnings) == (2, ())


@pytest.mark.parametrize("length", [0, 1, 511, 4096, 4097])
def test_of_any_size(guest: Guest, tmp_path: Path, length: int) -> None:
    guest.kernel.write_bytes(noise(1, length))
    restored(guest, guest.backup(), tmp_path / "a")
    assert held(tmp_path / "a")["vmlinuz"] == guest.kernel.read_bytes()


def test_a_damaged_one_costs_no_disk(guest: Guest, tmp_path: Path) -> None:
    """It is said, and nothing half of it stays."""
    point = guest.backup(workers=1)
    for pack in (guest.kit.root / "repository/data").rglob("*-*"):
        pack.unlink()
    guest.kit.reopen()
    done = restored(guest, point, tmp_path / "a")
    assert (tmp_path / "a/vda.raw").read_bytes() == bytes(64 * KIB)
    assert done.boot_files == ()
    assert [text.partition(" is damaged")[0] for text in done.warnings] == [
        f"kernel {guest.kernel}", f"initrd {guest.initrd}",
    ]  # fmt: skip
    assert not (tmp_path / "a/boot-files").exists()


def test_nothing_stays_of_a_restore_that_fails(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the folder either."""
    point = guest.backup()

    def failing(*_: Any) -> None:
        raise TargetError("no space")

    monkeypatch.setattr("vmbackup.engine.restore.flat._restore_new", failing)
    with pytest.raises(TargetError, match="no space"):
        restored(guest, point, tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_what_is_here_as_it_was(guest: Guest, tmp_path: Path) -> None:
    """Is used where it lies; anything else, of the same length too, is not."""
    point = guest.backup()
    files = BootFiles(guest.kit.repository, point)
    kernel, initrd = files.records
    folder = tmp_path / "a"
    assert files.places(folder) == ({}, [])
    data = bytearray(guest.initrd.read_bytes())
    for at in (0, 29 * KIB, 40 * KIB, len(data) - 1):  # the third is where it had zeros
        guest.initrd.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
        assert not files.is_here(initrd, guest.initrd)
    for other in (data[:-1], data + b"\0"):
        guest.initrd.write_bytes(other)
        assert not files.is_here(initrd, guest.initrd)
    guest.kernel.unlink()
    assert files.places(folder) == (
        {str(guest.kernel): folder / "vmlinuz", str(guest.initrd): folder / "initrd"}, [],
    )  # fmt: skip
    assert files.places(None)[1] == [f"the initrd {guest.initrd} of this host is another file than the restore point's"]
    guest.kernel.mkdir()
    assert not files.is_here(kernel, guest.kernel)


def test_laid_out(guest: Guest, tmp_path: Path) -> None:
    """Those that lack, or every one; whatever the umask, QEMU's user passes to them."""
    files = BootFiles(guest.kit.repository, guest.backup())
    assert files.lay_out(tmp_path / "none", Silent()) == {}
    assert not (tmp_path / "none").exists()
    old = os.umask(0o077)
    try:
        every = files.lay_out(tmp_path / "every", Silent(), every=True)
        guest.initrd.unlink()
        some = files.lay_out(tmp_path / "some", Silent())
        restored(guest, guest.kit.points()[0], tmp_path / "a")
    finally:
        os.umask(old)
    assert every == {str(path): tmp_path / "every" / path.name for path in (guest.kernel, guest.initrd)}
    assert every[str(guest.kernel)].read_bytes() == guest.kernel.read_bytes()
    assert list(some) == [str(guest.initrd)]
    for folder in (tmp_path / "every", tmp_path / "some", tmp_path / "a/boot-files"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o711


def test_a_damaged_one_is_no_place(guest: Guest, tmp_path: Path) -> None:
    """Found out before a byte is restored."""
    point = guest.backup(workers=1)
    guest.kernel.unlink()
    (pack,) = (guest.kit.root / "repository/data").rglob("*-*")
    pack.unlink()
    guest.kit.reopen()
    files = BootFiles(guest.kit.repository, point)
    found, notes = files.places(tmp_path)
    assert found == {}
    assert notes[0].startswith(f"the restore point's kernel {guest.kernel} is of no use: ")
    with pytest.raises(DamageError):
        files.check(files.records[0])


def test_names() -> None:
    """Each a name of its own that leads nowhere else, whatever a guest's XML says."""
    paths = ["/boot/vmlinuz", "/srv/vmlinuz", "/a/2-vmlinuz", "/x/..", "/x/.hidden", "/x/a b\n", "/y/z.partial", "/"]
    paths.append("/long/" + "x" * 250)
    records = [FileRecord(path, "kernel", 0, 0o644, None, 4096, zero_ref(0, 0), 0) for path in paths]
    found = list(_names(records).values())
    assert found[:8] == [
        "vmlinuz", "2-vmlinuz", "2-2-vmlinuz", "kernel", "hidden", "a_b_", "z.partial_", "2-kernel",
    ]  # fmt: skip
    assert found[8] == "x" * 150


def test_two_of_one_name(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/vmlinuz").write_bytes(b"table")
    guest.kit.guest.boot_files.append(BootFile("acpi", str(tmp_path / "other/vmlinuz")))
    restored(guest, guest.backup(), tmp_path / "a")
    assert held(tmp_path / "a")["2-vmlinuz"] == b"table"
