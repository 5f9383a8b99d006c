"""Disks as guests have them, made without mounting: ext4, vfat, NTFS and LVM in partitions, and XFS on a whole disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1 << 20
LINUX, ESP, DATA, LVM = (
    "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
    "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    "E6D6D379-F507-44C2-A23C-238F2A3DF928",
)
FSTAB = """\
LABEL=root / ext4 errors=remount-ro 0 1
LABEL=data /srv xfs defaults 0 2
/dev/mapper/vg0-logs /var/log ext4 defaults 0 2
LABEL=ESP /boot/efi vfat umask=0077 0 1
UUID=0b5c1a1e-0000-4000-8000-000000000000 /home ext4 defaults 0 2
"""
LOGS = """
	logical_volumes {
		logs {
			id = "abcdef-0123-4567-89ab-cdef-0123-456789"
			status = ["READ", "WRITE", "VISIBLE"]
			flags = []
			segment_count = 1
			segment1 {
				start_extent = 0
				extent_count = 3
				type = "striped"
				stripe_count = 1
				stripes = ["pv0", 0]
			}
		}
	}
"""
"""A volume of 12 MiB at the start of its group, as vgcfgbackup writes it: lvcreate needs the kernel's device mapper."""


class DiskError(Exception):
    """A disk cannot be made here."""


def system_disk(folder: Path) -> Path:
    """A root of ext4, an EFI partition, a Windows one, a volume group with a volume."""
    tree = folder / "root"
    for name in ("etc", "srv", "home", "var/log", "boot/efi", "odd"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/fstab").write_text(FSTAB)
    (tree / "etc/hostname").write_text("guest\n")
    (tree / "etc/big").write_bytes(os.urandom(3 * MIB))
    (tree / "etc/alias").symlink_to("hostname")
    odd = tree / "odd"
    (odd / "outside").symlink_to("/etc/shadow")
    (odd / "near").symlink_to("setuid")
    (odd / "setuid").write_text("program")
    (odd / "setuid").chmod(0o4755)
    os.mkfifo(odd / "fifo")
    _holes(odd / "holes")
    Path(os.fsdecode(os.fsencode(odd) + b"/bad\n\x1b[31m\xff")).write_text("odd")
    _image(folder / "ext4", 32, "mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", str(tree))
    (folder / "word").write_text("word\n")
    _image(folder / "esp", 34, "mkfs.vfat", "-n", "ESP")
    _run("mmd", "-i", str(folder / "esp"), "::/EFI")
    _run("mcopy", "-i", str(folder / "esp"), str(folder / "word"), "::/EFI/Grub.cfg")
    _image(folder / "ntfs", 8, "mkntfs", "-q", "-F", "-L", "win")
    _run("ntfscp", "-f", str(folder / "ntfs"), str(folder / "word"), "Word.txt")
    _volume_group(folder)
    parts = [("ext4", LINUX), ("esp", ESP), ("ntfs", DATA), ("lvm", LVM)]
    return _joined(folder, parts)


def _holes(path: Path) -> None:
    with path.open("wb") as file:
        file.seek(20 * MIB)
        file.write(b"middle")
        file.truncate(40 * MIB)


def data_disk(folder: Path) -> Path:
    """XFS on a whole disk, filled as it is made."""
    (folder / "page").write_text("a page\n")
    listed = f"d--755 0 0\nweb d--755 0 0\nindex ---644 33 33 {folder}/page\n$\n$\n"
    (folder / "proto").write_text(f"/dev/null\n0 0\n{listed}")
    return _image(folder / "xfs", 300, "mkfs.xfs", "-q", "-L", "data", "-p", str(folder / "proto"))


def _volume_group(folder: Path) -> None:
    tree = folder / "logs"
    tree.mkdir()
    (tree / "syslog").write_text("a line\n")
    volume = _image(folder / "volume", 12, "mke2fs", "-q", "-t", "ext4", "-L", "logs", "-d", str(tree))
    group = folder / "lvm"
    _sized(group, 20)
    with _loop(group) as device:
        only = ["--config", f'devices{{filter=["a|^{device}$|","r|.*|"]}}']
        _run("pvcreate", "-qq", *only, device)
        _run("vgcreate", "-qq", *only, "vg0", device)
        _run("vgcfgbackup", "-qq", *only, "-f", str(folder / "vg"), "vg0")
        text = (folder / "vg").read_text()
        end = _end_of_block(text, text.index("physical_volumes {"))
        (folder / "vg").write_text(text[:end] + LOGS + text[end:])
        _run("vgcfgrestore", "-qq", *only, "-f", str(folder / "vg"), "vg0")
    _put(volume, group, 1)  # where the first extent begins


def _end_of_block(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0 and text[at] == "}":
            return at + 1
    raise DiskError("vgcfgbackup wrote something else")


@contextmanager
def _loop(path: Path) -> Iterator[str]:
    device = _run("losetup", "-f", "--show", str(path)).strip()
    try:
        yield device
    finally:
        _run("losetup", "-d", device)


def _joined(folder: Path, parts: list[tuple[str, str]]) -> Path:
    """A disk with a GPT."""
    disk, script, at = folder / "disk", "label: gpt\n", 1
    places = []
    for name, kind in parts:
        size = (folder / name).stat().st_size // MIB
        script += f"start={at}MiB, size={size}MiB, type={kind}\n"
        places.append((folder / name, at))
        at += size
    _sized(disk, at + 1)
    _run("sfdisk", "-q", str(disk), text=script)
    for part, place in places:
        _put(part, disk, place)
    return disk


def _image(path: Path, mib: int, *command: str) -> Path:
    _sized(path, mib)
    _run(*command, str(path))
    return path


def _sized(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        file.truncate(mib * MIB)


def _put(source: Path, disk: Path, mib: int) -> None:
    _run("dd", f"if={source}", f"of={disk}", "bs=1M", f"seek={mib}", "conv=notrunc,sparse", "status=none")


def _run(*command: str, text: str | None = None) -> str:
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LVM_SUPPRESS_FD_WARNINGS": "1", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=path)
    if done.returncode:
        raise DiskError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
