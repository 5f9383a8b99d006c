"""A guest that is a hypervisor itself: Debian with systemd, AppArmor, libvirt and QEMU, and vmbackup installed in it.

Its image is made once, like that of every guest. What is under test is installed by `make install DESTDIR=...` in
the image's own file system, by its own Python, and brought into the running guest on a second disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from . import machine
from .guest_image import CONFIGURE, PACKAGES, GuestImage, GuestImageError, Recipe, guest_image

ROOT = Path(__file__).parents[2]
SOURCES = ("src", "nbd", "storage_backends", "systemd", "docs", "pyproject.toml", "README.md", "LICENSE", "Makefile",
           "MANIFEST.in", "CHANGELOG.md", "CONTRIBUTING.md", "config.example.toml")
HYPERVISOR = Recipe(
    "hypervisor",
    "6G",
    PACKAGES,
    CONFIGURE + "rm -f /etc/libvirt/qemu/networks/autostart/*\n",
    "make python3 python3-venv python3-libvirt libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients "
    "qemu-system-x86 qemu-utils apparmor polkitd dbus",
    keep_system=True,
)


def hypervisor_image(note: Callable[[str], None] = lambda _: None) -> GuestImage:
    """The cached image (2 to 3 minutes and 3 GB of disk where it has to be made). Raises GuestImageError."""
    return guest_image(note, HYPERVISOR)


def wheels() -> Path:
    """A folder with the packages that an installation needs, kept for as long as pyproject.toml asks for the same."""
    asked = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()[:8]
    folder = machine.CACHE_DIR / f"wheels-{asked}"
    if not folder.is_dir():
        for old in machine.CACHE_DIR.glob("wheels-*"):
            shutil.rmtree(old, ignore_errors=True)
        making = machine.CACHE_DIR / f"making-wheels-{os.getpid()}"
        shutil.rmtree(making, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "wheel", "-q", "-w", str(making), str(ROOT), "setuptools>=77"])
        for own in making.glob("vmbackup-*"):
            own.unlink()
        making.rename(folder)
    return folder


def installed(image: GuestImage, folder: Path) -> Path:
    """A disk (ext4) with the files that `make install` puts into the guest, made in `folder`."""
    upper, work, merged = (folder / name for name in ("upper", "work", "merged"))
    source = upper / "source"
    for path in (upper, work, merged, source):
        path.mkdir(mode=0o755)
    for name in SOURCES:
        _run(["cp", "-a", str(ROOT / name), str(source)])
    shutil.copytree(wheels(), upper / "wheels")
    options = f"lowerdir={image.system},upperdir={upper},workdir={work}"
    inside = "cd /source && exec make install DESTDIR=/stage PYTHON=/usr/bin/python3"
    script = (
        f"mount -t overlay overlay -o {options} {merged} && mount -t devtmpfs dev {merged}/dev && "
        f"exec chroot {merged} env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "
        f"PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PIP_ROOT_USER_ACTION=ignore sh -c '{inside}'"
    )
    _run(["unshare", "--mount", "--propagation", "private", "sh", "-euc", script])
    disk = folder / "installed.raw"
    with disk.open("wb") as file:
        file.truncate(512 << 20)
    _run([machine.program("mke2fs"), "-q", "-t", "ext4", "-d", str(upper / "stage"), str(disk)])
    for path in (upper, work, merged):
        shutil.rmtree(path, ignore_errors=True)
    return disk


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise GuestImageError(f"`{command[0]}` failed ({done.returncode}): {tail}")
