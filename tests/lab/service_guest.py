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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from . import machine
from .agent import Agent
from .disk import Disk
from .guest import Guest
from .guest_image import CONFIGURE, PACKAGES, GuestImage, GuestImageError, Recipe, guest_image
from .session import Lab

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


MEMORY = 1024         # MiB: the service, a run and a small QEMU beside each other
DISK_BYTES = 512 << 20   # of the disk with what is installed: 140 MB
DOMAIN = "web01"
MAKE_DOMAIN = f"""set -e
cat > /root/domain.xml <<X
<domain type='qemu'><name>{DOMAIN}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='/var/lib/libvirt/images/{DOMAIN}.qcow2'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/></devices></domain>
X
qemu-img create -q -f qcow2 /var/lib/libvirt/images/{DOMAIN}.qcow2 128M
virsh -q define /root/domain.xml
virsh -q start --paused {DOMAIN}
virsh qemu-monitor-command {DOMAIN} --hmp \
    'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P 0xab 1M 48M"'
"""
INSTALL = """set -e
mkdir -p /mnt/installed
mount -o ro /dev/vdb /mnt/installed
cp -a /mnt/installed/. /
umount /mnt/installed
systemd-sysusers
systemd-tmpfiles --create vmbackup.conf
systemctl daemon-reload
"""
# Emulated, and often beside busy neighbours: a command of vmbackup takes 10 to 60 seconds.
COMMAND_SECONDS = 600.0


class ServiceGuest:
    """A running hypervisor with vmbackup installed, and on it a domain that is paused and has 48 MiB of data."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        image = hypervisor_image()
        disk = Disk("vdb", DISK_BYTES, "raw")
        self._guest = Guest(lab, image, overlay=True, images=[(disk, installed(image, folder))], memory=MEMORY)

    def __enter__(self) -> Self:
        try:
            self._guest.boot()
            self.run(INSTALL)
            self.run(MAKE_DOMAIN)
        except BaseException:
            self._guest.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._guest.remove()

    @property
    def agent(self) -> Agent:
        """The agent of its system."""
        return self._guest.agent

    def run(self, command: str) -> str:
        """What a shell command prints. Raises GuestCommandError."""
        return self.agent.run(command, timeout=COMMAND_SECONDS)

    def unit(self, name: str) -> str:
        """A property of the service's unit."""
        return self.run(f"systemctl show vmbackup --value -p {name}").strip()

    def log(self, since: str = "-1h") -> str:
        """What the service and systemd said about it."""
        return self.run(f"journalctl -u vmbackup -o cat --no-pager --since={since}")

    def until(self, command: str, wanted: Callable[[str], bool], seconds: float = COMMAND_SECONDS) -> str:
        """Runs a command again and again until `wanted` of what it prints. Raises TimeoutError with its last words."""
        deadline = time.monotonic() + seconds
        while not wanted(said := self.run(command)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"`{command}` still says after {seconds:.0f} s:\n{said}\n{self.log()[-3000:]}")
            time.sleep(1)
        return said


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
        file.truncate(DISK_BYTES)
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
