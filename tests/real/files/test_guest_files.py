"""Real file systems of a restore point, looked into by a real libguestfs: one start for all of it, as it takes long."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.appliance import ApplianceError, kernel
from tests.lab.guest_disks import DiskError, data_disk, system_disk
from tests.unit.engine.kit import RamKit
from vmbackup.engine.files.files import GuestFiles, guest_files
from vmbackup.errors import NotFoundError, TargetError, UsageError
from vmbackup.progress import Silent

# A start takes 20 to 30 s without hardware virtualisation, and several times that on a busy machine.
pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuestFiles]:
    folder = tmp_path_factory.mktemp("files")
    try:
        environment = kernel()
        disks = {"vda": system_disk(folder), "vdb": data_disk(folder)}
    except (ApplianceError, DiskError) as error:
        pytest.skip(str(error))
    kit = RamKit(folder, {target: path.stat().st_size for target, path in disks.items()}, 64 << 10)
    for target, path in disks.items():
        kit.disk(target).write(0, path.read_bytes())
    kit.backup()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        begun, warnings = time.monotonic(), []
        with guest_files(
            kit.repository, kit.points()[0], ("vda", "vdb"), folder / "cache", Silent(), warn=warnings.append
        ) as files:
            files.listing("/")
            print(f"\nfirst listing after {time.monotonic() - begun:.1f} s, load {os.getloadavg()[0]:.1f}")
            run = files._process._run.path
            yield files
    assert warnings == []
    assert processes() == []
    assert not run.exists()


def processes() -> list[Path]:
    """Those below this one that look into guests."""
    parents: dict[str, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[path.name] = (path / "stat").read_text().rpartition(") ")[2].split()[1]
    found = []
    for pid in parents:
        above = pid
        while above in parents and above != str(os.getpid()):
            above = parents[above]
        with contextlib.suppress(OSError):
            words = Path("/proc", pid, "cmdline").read_bytes()
            if above == str(os.getpid()) and (b"guestfs_worker" in words or b"guestfsd.sock" in words):
                found.append(Path("/proc", pid))
    return found


def test_file_systems(opened: GuestFiles) -> None:
    """All of them, under the guest's names, with the places that its /etc/fstab gives them."""
    found = {fs.device: (fs.type, fs.label, fs.mount_point) for fs in opened.filesystems()}
    assert found == {
        "/dev/vda1": ("ext4", "root", "/"),
        "/dev/vda2": ("vfat", "ESP", "/boot/efi"),
        "/dev/vda3": ("ntfs", "win", None),
        "/dev/vda4": ("LVM2_member", "", None),
        "/dev/vdb": ("xfs", "data", "/srv"),
        "/dev/vg0/logs": ("ext4", "logs", "/var/log"),
    }
    assert {fs.device: fs.size for fs in opened.filesystems()}["/dev/vdb"] == 300 << 20


def test_listings(opened: GuestFiles) -> None:
    """ext4, XFS, LVM and FAT in the guest's tree, NTFS by its device; links followed within the guest."""
    names = {
        path: [entry.name for entry in opened.listing(path)]
        for path in ("/etc", "/srv/web", "/var/log", "/boot/efi/EFI", "/dev/vda3:/", "/etc/alias")
    }
    assert names == {
        "/etc": ["alias", "big", "fstab", "hostname"],
        "/srv/web": ["index"],
        "/var/log": ["lost+found", "syslog"],
        "/boot/efi/EFI": ["Grub.cfg"],
        "/dev/vda3:/": ["Word.txt"],
        "/etc/alias": ["alias"],
    }
    (page,) = opened.listing("/srv/web/index")
    assert (page.type, oct(page.mode), page.uid, page.gid, page.size) == ("file", "0o100644", 33, 33, 7)
    odd = {entry.name: entry for entry in opened.listing("/odd")}
    assert odd["outside"].target == "/etc/shadow"
    assert odd["fifo"].type == "pipe"
    assert "bad\n\x1b[31m\udcff" in odd


def test_what_is_not_there(opened: GuestFiles) -> None:
    for path in ("/etc/nothing", "/dev/vda9:/", "/dev/vda3:/nothing", "/etc/hostname/below"):
        with pytest.raises(NotFoundError):
            opened.listing(path)
    with pytest.raises(NotFoundError) as told:
        opened.listing("/home/me")
    assert "/home is another file system, UUID=0b5c1a1e-0000-4000-8000-000000000000" in told.value.hint


def test_files_are_fetched(opened: GuestFiles, tmp_path: Path) -> None:
    """From five kinds of file systems at once, byte for byte."""
    paths = ("/etc/big", "/etc/alias", "/srv/web/index", "/var/log/syslog", "/dev/vda3:/Word.txt", "/dev/vda2:/EFI")
    done = opened.fetch(paths, tmp_path / "out", Silent())
    assert done.left_out == []
    out = tmp_path / "out"
    texts = {name: (out / name).read_text() for name in ("alias", "index", "syslog", "Word.txt", "EFI/Grub.cfg")}
    assert texts == {
        "alias": "guest\n", "index": "a page\n", "syslog": "a line\n", "Word.txt": "word\n", "EFI/Grub.cfg": "word\n",
    }  # fmt: skip
    source = next(p for p in tmp_path.parent.glob("files*/root/etc/big"))
    assert hashlib.sha256((out / "big").read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
    assert int((out / "big").stat().st_mtime) == int(source.stat().st_mtime)


def test_a_folder_is_fetched(opened: GuestFiles, tmp_path: Path) -> None:
    """Odd names as they are, holes as holes; links that lead out, pipes and setuid bits stay behind."""
    done = opened.fetch(["/odd"], tmp_path, Silent())
    assert {each.path: each.reason for each in done.left_out} == {
        "outside": "a link to /etc/shadow", "fifo": "a device or pipe",
    }  # fmt: skip
    odd = tmp_path / "odd"
    assert Path(os.fsdecode(os.fsencode(odd) + b"/bad\n\x1b[31m\xff")).read_text() == "odd"
    assert oct((odd / "near").stat().st_mode) == "0o100755"
    holes = odd / "holes"
    assert (holes.stat().st_size, holes.read_bytes()[20 << 20 :][:6]) == (40 << 20, b"middle")
    assert holes.stat().st_blocks * 512 < 4 << 20


def test_what_is_refused(opened: GuestFiles, tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("mine")
    with pytest.raises(TargetError, match="already there"):
        opened.fetch(["/etc/big", "/etc/hostname"], tmp_path, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["hostname"]
    with pytest.raises(UsageError, match="two of the paths"):
        opened.fetch(["/etc/hostname", "/dev/vda1:/etc/hostname"], tmp_path / "out", Silent())


def test_it_is_shut_in(opened: GuestFiles) -> None:
    """All that reads the guest's data runs as nobody, without a right, and sees no network."""
    opened.listing("/")
    running = [path for path in processes() if b"unshare" not in (path / "cmdline").read_bytes()]
    assert len(running) >= 2
    for path in running:
        status = dict(line.split(":\t", 1) for line in (path / "status").read_text().splitlines() if ":\t" in line)
        assert set(status["Uid"].split()) == {"65534"}
        assert (int(status["CapEff"], 16), int(status["CapPrm"], 16), status["NoNewPrivs"]) == (0, 0, "1")
        for space in ("net", "mnt", "pid", "ipc", "uts"):
            assert os.readlink(path / "ns" / space) != os.readlink(f"/proc/self/ns/{space}")
