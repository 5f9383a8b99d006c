"""A guest's file system that is damaged, by a real libguestfs: what can be read comes, and what cannot is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.appliance import ApplianceError, kernel
from tests.lab.guest_disks import LINUX, DiskError, _image, _joined
from tests.unit.engine.kit import RamKit
from vmbackup.engine.files.files import guest_files
from vmbackup.errors import GuestFilesError
from vmbackup.progress import Silent

pytestmark = [pytest.mark.torture, pytest.mark.real, pytest.mark.timeout(600)]

TREE = {
    "cut/a": "a", "cut/nowhere": "x", "shop/bad": "bad", "shop/sub/good": "good", "slash/name": "x", "slash/near": "y",
}  # fmt: skip
BLOCK = 1024


def damaged_disk(folder: Path) -> Path:
    """A root with three folders that are damaged, each in a way of its own; and a file system that is whole."""
    for name, text in TREE.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "whole").mkdir()
    (folder / "whole" / "file").write_text("whole")
    options = ["-q", "-t", "ext4", "-b", str(BLOCK), "-O", "^metadata_csum"]
    broken = _image(folder / "one", 16, "mke2fs", *options, "-d", str(folder / "tree"))
    _image(folder / "two", 16, "mke2fs", *options, "-d", str(folder / "whole"))
    data = bytearray(broken.read_bytes())
    at = data.index(b"nowhere")
    data[at - 8 : at - 4] = b"\xf0\xff\xff\xff"  # an inode that there is not: the kernel passes over the rest
    at = data.index(b"name")
    data[at : at + 4] = b"../n"
    at = data.index(b"bad\0")
    data[at - 8 : at - 4] = b"\x03\0\0\0"  # an inode of the file system's own
    broken.write_bytes(data)
    return _joined(folder, [("one", LINUX), ("two", LINUX)])


def test_what_can_be_read_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        environment = kernel()
        disk = damaged_disk(tmp_path)
    except (ApplianceError, DiskError) as error:
        pytest.skip(str(error))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    kit = RamKit(tmp_path, {"vda": disk.stat().st_size}, 64 << 10)
    kit.disk("vda").write(0, disk.read_bytes())
    kit.backup()
    warnings: list[str] = []
    out = tmp_path / "out"
    with guest_files(
        kit.repository, kit.points()[0], ("vda",), tmp_path / "cache", Silent(), warn=warnings.append
    ) as files:
        with pytest.raises(GuestFilesError):
            files.listing("/dev/vda1:/slash")
        assert "nowhere" not in [entry.name for entry in files.listing("/dev/vda1:/cut")]
        assert [entry.name for entry in files.listing("/dev/vda2:/")] == ["file", "lost+found"]
        done = files.fetch(["/dev/vda1:/shop", "/dev/vda1:/slash/near", "/dev/vda2:/file"], out, Silent())
        assert [each.path for each in done.left_out] == ["bad"]
        with pytest.raises(GuestFilesError):
            files.fetch(["/dev/vda1:/slash"], out, Silent())
    texts = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert texts == {"shop/sub/good": "good", "near": "y", "file": "whole"}
    assert len(warnings) == 1
    assert warnings[0].startswith("/dev/vda1 is damaged in the guest, and files may be missing: EXT4-fs error: ")
