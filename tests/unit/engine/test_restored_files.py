"""The files that a restore makes: for their owner only, never over others, one disk after the other."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import NotFoundError, TargetError
from vmbackup.progress import Silent

MIB = 1 << 20


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": MIB, "vdb": MIB})
    made.disk("vda").write(0, b"a" * 9000)
    made.disk("vdb").write(0, b"b" * 9000)
    made.backup()
    return made


def into(kit: RamKit, folder: Path, *disks: str) -> list[str]:
    point = kit.points()[0]
    restore(kit.repository, point, RestoreOptions(folder, "raw", disks or None, workers=2), Silent())
    return sorted(os.listdir(folder))


def test_one_disk_after_the_other(kit: RamKit, tmp_path: Path) -> None:
    """The second finds the point's domain.xml there, and leaves it."""
    folder = tmp_path / "out"
    assert into(kit, folder, "vda") == ["domain.xml", "vda.raw"]
    before = (folder / "domain.xml").stat()
    assert into(kit, folder, "vdb") == ["domain.xml", "vda.raw", "vdb.raw"]
    after = (folder / "domain.xml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)   # its atime is that of the look


def test_another_domain_xml_is_refused_before_anything_is_read(kit: RamKit, tmp_path: Path) -> None:
    """It is named, and nothing is written."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "domain.xml").write_text("<domain>of another</domain>")
    with pytest.raises(TargetError, match=r"out/domain\.xml is already there"):
        into(kit, folder)
    assert os.listdir(folder) == ["domain.xml"]
    assert (folder / "domain.xml").read_text() == "<domain>of another</domain>"


def test_a_file_that_appears_meanwhile_is_named(kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is in the way, and none of the restored files stays."""
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr("vmbackup.engine.restore.flat._refuse_existing", lambda *_: None)
    (folder / "vdb.raw").write_text("mine")
    with pytest.raises(TargetError, match=r"vdb\.raw in place"):
        into(kit, folder)
    assert sorted(os.listdir(folder)) == ["vdb.raw"]


def test_only_the_owner_may_read_them(kit: RamKit, tmp_path: Path) -> None:
    """Images hold the guest's secrets, its XML may hold passwords; whatever the umask."""
    before = os.umask(0)
    try:
        into(kit, tmp_path / "out")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {"domain.xml": 0o600, "vda.raw": 0o600, "vdb.raw": 0o600}


@pytest.mark.parametrize("name", ["vdb.raw", "domain.xml"])
def test_a_link_to_nowhere_is_in_the_way(kit: RamKit, tmp_path: Path, name: str) -> None:
    """It is named before anything is read, and stays."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / name).symlink_to("nowhere")
    with pytest.raises(TargetError, match=f"{name} is already there"):
        into(kit, folder)
    assert os.listdir(folder) == [name]
    assert (folder / name).readlink() == Path("nowhere")


def no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_a_file_system_without_links(kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As FAT: the files get their names all the same."""
    monkeypatch.setattr(os, "link", no_links)
    assert into(kit, tmp_path / "out") == ["domain.xml", "vda.raw", "vdb.raw"]
    assert (tmp_path / "out/vda.raw").read_bytes() == kit.disk("vda").data


def test_nothing_is_replaced_without_links(kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What appears meanwhile stays, and none of the restored files is named."""
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.setattr("vmbackup.engine.restore.flat._refuse_existing", lambda *_: None)
    monkeypatch.setattr(os, "link", no_links)
    (folder / "vdb.raw").write_text("mine")
    with pytest.raises(TargetError, match=r"vdb\.raw in place: File exists"):
        into(kit, folder)
    assert sorted(os.listdir(folder)) == ["vdb.raw"]
    assert (folder / "vdb.raw").read_text() == "mine"


def test_the_passphrase_of_a_disk_that_is_not_there(kit: RamKit, tmp_path: Path) -> None:
    """A slip of the pen must not make the disk that was meant readable."""
    options = RestoreOptions(tmp_path / "out", "raw", passphrases={"vdz": b"secret"})
    with pytest.raises(NotFoundError, match="has no disk 'vdz'"):
        restore(kit.repository, kit.points()[0], options, Silent())
    assert not (tmp_path / "out").exists()
