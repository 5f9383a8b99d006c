"""What the repository cannot give is told as damage, not as the input/output error that the guest's kernel sees."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.files import files
from vmbackup.engine.files.files import guest_files
from vmbackup.engine.files.guest_process import GuestRefusal, RunFolder
from vmbackup.errors import DamageError, GuestFilesError, NotFoundError, UsageError
from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import RequestFailed
from vmbackup.progress import Silent

folders: list[Path] = []


class Reader:
    """In place of the confined process: reads the whole disk, and does with an error what it is told to."""

    fails = True
    log = ""

    def __init__(self, run: RunFolder) -> None:
        self._socket = str(run.socket)
        folders.append(run.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, _appliance: Path, exports: list[str]) -> None:
        for export in exports:
            with contextlib.closing(NbdClient.connect(self._socket, export)) as client:
                try:
                    client.read_into(0, memoryview(bytearray(client.size)))
                except RequestFailed:
                    if self.fails:
                        raise GuestFilesError("input/output error") from None

    def ask(self, do: str, **_: Any) -> Any:
        return self.log if do == "kernel_errors" else []


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RamKit]:
    monkeypatch.setattr(files, "appliance", lambda _: tmp_path)
    monkeypatch.setattr(files, "GuestProcess", Reader)
    kit = RamKit(tmp_path, {"vda": 64 << 10, "vdb": 8192})
    kit.disk().write(0, random.Random(1).randbytes(64 << 10))
    kit.backup()
    yield kit
    assert not any(folder.exists() for folder in folders)


def opened(kit: RamKit, *targets: str) -> list[str]:
    warnings: list[str] = []
    with guest_files(kit.repository, kit.points()[0], targets, kit.root, Silent(), warn=warnings.append) as found:
        assert found.filesystems() == []
    return warnings


def lose_data(kit: RamKit) -> None:
    for path in (kit.root / "repository" / "data").rglob("*-*"):
        path.unlink()


def test_whole_disks(kit: RamKit) -> None:
    assert opened(kit, "vda", "vdb") == []


def test_damage_that_matters(kit: RamKit) -> None:
    lose_data(kit)
    with pytest.raises(DamageError):
        opened(kit, "vda")


def test_damage_that_does_not(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's kernel may have read ahead of what was asked for."""
    lose_data(kit)
    monkeypatch.setattr(Reader, "fails", False)
    (warning,) = opened(kit, "vda")
    assert "what was read is right" in warning


def test_another_error_stays_what_it_is(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise GuestFilesError("no kernel")

    monkeypatch.setattr(Reader, "start", start)
    with pytest.raises(GuestFilesError, match="no kernel"):
        opened(kit, "vda")


def test_damage_in_the_guest(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel passes over what it cannot read in a folder, with no error: what came may not be all."""
    where = "lrwxrwxrwx 1 0 0 0 Nov 29 09:13 sdb -> ../host2/target2:0:1/2:0:1:0/block/sdb"
    monkeypatch.setattr(
        Reader, "log", f"{where}\nEXT4-fs error (device sdb1): ext4_readdir:261: inode #17: bad entry\n"
    )
    (warning,) = opened(kit, "vda", "vdb")
    assert warning == "/dev/vdb1 is damaged in the guest, and files may be missing: EXT4-fs error: inode #17: bad entry"
    with (
        pytest.raises(GuestFilesError, match=r"/dev/vdb1 is damaged: EXT4-fs error: inode #17: bad entry") as told,
        guest_files(kit.repository, kit.points()[0], ("vda", "vdb"), kit.root, Silent(), warn=str),
    ):
        raise GuestRefusal("ls: file receive cancelled by daemon", 0)
    assert "fsck" in told.value.hint


def test_a_folder_that_breaks_off(kit: RamKit) -> None:
    """The kernel may have no word for it: a name with a slash in it is an input/output error, and that is all."""
    with (
        pytest.raises(GuestFilesError, match="ls: it broke off, as where a folder is damaged") as told,
        guest_files(kit.repository, kit.points()[0], ("vda",), kit.root, Silent(), warn=str),
    ):
        raise GuestRefusal("the guest's file system cannot be read: ls: file receive cancelled by daemon", 0)
    assert "fsck" in told.value.hint


def test_damage_in_the_repository_is_no_damage_in_the_guest(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_data(kit)
    monkeypatch.setattr(Reader, "fails", False)
    monkeypatch.setattr(Reader, "log", "EXT4-fs (sda1): group descriptors corrupted!\n")
    (warning,) = opened(kit, "vda")
    assert "what was read is right" in warning


def test_names_of_disks(kit: RamKit) -> None:
    with pytest.raises(NotFoundError, match="no disk 'vdz'"):
        opened(kit, "vdz")
    with pytest.raises(UsageError, match="twice"):
        opened(kit, "vda", "vda")
