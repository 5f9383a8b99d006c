"""The files that a booted guest is started from, on their way beside its disks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vmbackup.engine.boot import boot_files
from vmbackup.engine.boot.records import Booted
from vmbackup.errors import TargetError


@pytest.fixture
def booted(tmp_path: Path) -> Booted:
    """It has two, and is on its way to a folder."""
    folder = tmp_path / "boot"
    (folder / "boot-files").mkdir(parents=True)
    for name in ("vmlinuz", "initrd"):
        (folder / "boot-files" / name).write_bytes(name.encode())
    owner = os.geteuid(), os.getegid()
    return Booted("b", "", "p", "o", "", str(folder), owner, (), (), output=str(tmp_path / "disks"))


def held(booted: Booted) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (Path(booted.output or "") / "boot-files").iterdir()}


def test_moved_again_after_a_kill(booted: Booted) -> None:
    """What is there is not written twice, what a kill left half is written anew."""
    boot_files.check_free(booted)
    folder = Path(booted.output or "") / "boot-files"
    folder.mkdir(parents=True)
    (folder / "vmlinuz.partial").write_bytes(b"vml")
    moved = boot_files.move(booted)
    assert moved == {f"{booted.folder}/boot-files/{name}": str(folder / name) for name in ("initrd", "vmlinuz")}
    assert held(booted) == {"vmlinuz": b"vmlinuz", "initrd": b"initrd"}
    inodes = [path.stat().st_ino for path in sorted(folder.iterdir())]
    assert boot_files.move(booted) == moved
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == inodes
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    boot_files.remove(booted)
    assert not folder.exists()


def test_nothing_of_somebody_elses_is_replaced(booted: Booted) -> None:
    """Neither before the move nor in it, nor where it is given up."""
    folder = Path(booted.output or "") / "boot-files"
    folder.mkdir(parents=True)
    (folder / "initrd").write_bytes(b"other!")
    with pytest.raises(TargetError, match="initrd is already there"):
        boot_files.check_free(booted)
    with pytest.raises(TargetError, match="initrd is already there"):
        boot_files.move(booted)
    boot_files.remove(booted)
    assert held(booted) == {"initrd": b"other!"}


def test_a_guest_without_any(booted: Booted) -> None:
    for path in boot_files.folder_of(booted).iterdir():
        path.unlink()
    boot_files.folder_of(booted).rmdir()
    boot_files.check_free(booted)
    assert boot_files.move(booted) == {}
    boot_files.remove(booted)
    assert not Path(booted.output or "").exists()
