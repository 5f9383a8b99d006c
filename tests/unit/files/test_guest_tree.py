"""Which file system is the root, what it mounts, and what is said where there is none."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from vmbackup.engine.files.guest_layout import FileSystem, FstabEntry, guest_name, parse_fstab
from vmbackup.engine.files.guest_process import GuestRefusal
from vmbackup.engine.files.guest_tree import GuestTree
from vmbackup.errors import GuestFilesError, NotFoundError, UsageError

DEBIAN = """\
# /etc/fstab: static file system information.
UUID=11AA-22bb   /boot/efi  vfat  umask=0077  0 1
/dev/mapper/vg--0-root  /  ext4 errors=remount-ro 0 1
LABEL=srv /srv\\040data xfs defaults 0 2
UUID="ffff" /var ext4
/dev/mapper/vg--0-log--1 /log ext4 defaults 0 2
/dev/vda3 none swap sw 0 0
tmpfs /tmp tmpfs defaults 0 0
broken
"""


class Machine:
    """File systems in memory, asked as the confined process is."""

    def __init__(self, **contents: dict[str, str]) -> None:
        self.contents = {f"/dev/{name.replace('_', '/')}": files for name, files in contents.items()}
        self.mounted: dict[str, str] = {}

    def ask(self, do: str, **given: Any) -> Any:
        return getattr(self, f"do_{do}")(**given)

    def do_unmount(self) -> None:
        self.mounted = {}

    def do_mount(self, options: str, mountable: str, point: str) -> None:
        assert options.startswith("ro")
        if mountable not in self.contents:
            raise GuestRefusal("wrong fs type", 0)
        self.mounted[point] = mountable

    def _find(self, path: str) -> str:
        point = max((p for p in self.mounted if path == p or path.startswith(p.rstrip("/") + "/")), key=len)
        rest = path[len(point.rstrip("/")) :] or "/"
        files = self.contents[self.mounted[point]]
        if rest == "/" or any(name.startswith(rest.rstrip("/") + "/") for name in files):
            return ""
        if rest not in files:
            raise GuestRefusal("no such file", errno.ENOENT)
        return files[rest]

    def do_real_path(self, path: str) -> str:
        self._find(path)
        return path

    def do_written_path(self, path: str) -> str:
        return next((name for name in self.contents[self.mounted["/"]] if name.lower() == path.lower()), path)

    def do_stat(self, path: str) -> None:
        self._find(path)

    def do_read(self, path: str, most: int) -> str:
        return self._find(path)[:most]


def fs(device: str, kind: str = "ext4", *, label: str = "", uuid: str = "") -> FileSystem:
    return FileSystem(device.replace("vd", "sd"), device, kind, label, uuid, 1 << 30)


def tree(machine: Machine, *known: FileSystem) -> GuestTree:
    made: Any = machine
    return GuestTree(made, known)


def test_names_are_the_guests() -> None:
    targets = ["vda", "sdb"]
    names = {"/dev/sda1": "/dev/vda1", "/dev/sdb": "/dev/sdb", "/dev/vg/lv": "/dev/vg/lv", "/dev/sdz1": "/dev/sdz1"}
    assert {name: guest_name(name, targets) for name in names} == names
    assert guest_name("/dev/sdaa2", [str(n) for n in range(27)]) == "/dev/262"


def test_fstab() -> None:
    entries = parse_fstab(DEBIAN)
    assert [(e.spec, e.point) for e in entries] == [
        ("UUID=11AA-22bb", "/boot/efi"), ("/dev/mapper/vg--0-root", "/"),
        ("LABEL=srv", "/srv data"), ('UUID="ffff"', "/var"), ("/dev/mapper/vg--0-log--1", "/log"),
    ]  # fmt: skip
    assert entries[1] == FstabEntry("/dev/mapper/vg--0-root", "/", "ext4", ("errors=remount-ro",))


def test_a_linux_guest() -> None:
    """Its tree is put together as its /etc/fstab says, by whatever names."""
    root = {"vg-0_root": {"/etc/fstab": DEBIAN, "/etc/hosts": "h"}}
    machine = Machine(**root, **{"vg-0_log-1": {"/x": "l"}}, sda1={"/EFI/x": "e"}, sdb={"/web/i": "w"})
    known = [fs("/dev/vda1", "vfat", uuid="11aa-22BB"), fs("/dev/vg-0/root"), fs("/dev/vdb", "xfs", label="srv")]
    found = tree(machine, *known, fs("/dev/vda2", "LVM2_member"), fs("/dev/vg-0/log-1"))
    assert [each.mount_point for each in found.filesystems()] == ["/boot/efi", "/", "/srv data", None, "/log"]
    assert found.enter("/etc/hosts") == "/etc/hosts"
    assert found.enter("/srv data/web/i") == "/srv data/web/i"
    there = {"/": "/dev/vg-0/root", "/boot/efi": "/dev/sda1", "/srv data": "/dev/sdb", "/log": "/dev/vg-0/log-1"}
    assert machine.mounted == there
    assert found.enter("/dev/vda1:/EFI") == "/EFI"
    assert machine.mounted == {"/": "/dev/sda1"}


def test_a_part_of_the_tree_on_another_disk_is_told() -> None:
    found = tree(Machine(sda1={"/etc/fstab": "UUID=ff / ext4\nUUID=aa /var ext4\n"}), fs("/dev/vda1", uuid="ff"))
    with pytest.raises(NotFoundError) as told:
        found.enter("/var/log/syslog")
    assert "/var is another file system, UUID=aa" in told.value.hint
    with pytest.raises(NotFoundError) as told:
        found.enter("/etc/nothing")
    assert "--with" not in told.value.hint


def test_a_windows_guest() -> None:
    """Its root is where Windows is, and case does not matter."""
    machine = Machine(sda1={"/bootmgr": ""}, sda2={"/Windows/System32": "", "/Users/me": "m"})
    found = tree(machine, fs("/dev/vda1", "ntfs"), fs("/dev/vda2", "ntfs"))
    assert [each.mount_point for each in found.filesystems()] == [None, "/"]
    assert found.enter("/users/ME") == "/Users/me"
    with pytest.raises(NotFoundError):
        found.enter("/users/you")


def test_a_disk_of_one_file_system_is_meant() -> None:
    assert tree(Machine(sda={"/data": ""}), fs("/dev/vda")).enter("/data") == "/data"


def test_of_two_systems_the_named_disks_is_meant() -> None:
    machine = Machine(sda1={"/etc/fstab": "", "/a": ""}, sdb1={"/etc/fstab": "", "/b": ""})
    assert tree(machine, fs("/dev/vda1"), fs("/dev/vdb1")).enter("/a") == "/a"


def test_volumes_of_a_btrfs() -> None:
    """The root is one of them, and so is what /etc/fstab says of others."""

    class Btrfs(Machine):
        def do_mount(self, options: str, mountable: str, point: str) -> None:
            volume = options.partition("subvol=")[2]
            super().do_mount(options, f"{mountable}/{volume}" if volume else mountable, point)

    fstab = "UUID=aa / btrfs subvol=@,compress=zstd 0 0\nUUID=aa /home btrfs subvol=@home 0 0\n"
    machine = Btrfs(**{"sda1": {"/@/etc/fstab": "x"}, "sda1_@": {"/etc/fstab": fstab}, "sda1_@home": {"/me": "m"}})
    found = tree(machine, fs("/dev/vda1", "btrfs", uuid="aa"))
    assert found.enter("/home/me") == "/home/me"
    assert machine.mounted == {"/": "/dev/sda1/@", "/home": "/dev/sda1/@home"}
    assert [each.mount_point for each in found.filesystems()] == ["/"]


def test_several_that_may_be_meant() -> None:
    found = tree(Machine(sda1={"/a": ""}, sda2={"/b": ""}), fs("/dev/vda1"), fs("/dev/vda2"))
    with pytest.raises(UsageError) as told:
        found.enter("/a")
    assert "/dev/vda1:/" in told.value.hint
    assert found.enter("/dev/vda2:/b") == "/b"


@pytest.mark.parametrize(("kind", "word"), [("crypto_LUKS", "LUKS"), ("BitLocker", "BitLocker")])
def test_what_is_encrypted(kind: str, word: str) -> None:
    found = tree(Machine(), fs("/dev/vda1", kind))
    for path in ("/etc/passwd", "/dev/vda1:/etc/passwd"):
        with pytest.raises(GuestFilesError, match=word) as told:
            found.enter(path)
        assert "vmbackup boot" in told.value.hint
    assert found.filesystems()[0].remark == "encrypted"


def test_what_is_unknown() -> None:
    found = tree(Machine(), fs("/dev/vda", "unknown"), fs("/dev/vdb1", "swap"))
    with pytest.raises(GuestFilesError, match="no file system that is known"):
        found.enter("/etc")
    with pytest.raises(GuestFilesError, match="no known file system"):
        found.enter("/dev/vda:/etc")
    with pytest.raises(GuestFilesError, match="swap"):
        found.enter("/dev/vdb1:/etc")


def test_wrong_names() -> None:
    found = tree(Machine(sda1={"/a": ""}), fs("/dev/vda1"))
    with pytest.raises(NotFoundError, match="/dev/vda9"):
        found.enter("/dev/vda9:/a")
    with pytest.raises(UsageError, match="no path"):
        found.enter("a")
    with pytest.raises(NotFoundError):
        found.enter("/dev/vda1:/b")
