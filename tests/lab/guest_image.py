"""The image of the lab's real guest: a small Debian 12 with the guest agent, made once and kept in a cache.

debootstrap fills a folder from the mirror that apt is configured with, mke2fs makes it an ext4 image, and
kernel and initrd are laid beside it for direct kernel boot. All is made in a folder of its own, which gets
its final name by one rename: a cache is whole or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import machine

RELEASE = "bookworm"
PACKAGES = "qemu-guest-agent,systemd-sysv,linux-image-cloud-amd64,udev,iproute2,e2fsprogs"
DEFAULT_MIRROR = "http://deb.debian.org/debian"

INSTALL = """set -e
mount -t proc proc /proc
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -qq update
apt-get -qq install -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io {}
apt-get clean
rm /usr/sbin/policy-rc.d /etc/apt/apt.conf.d/00outside
"""
CONFIGURE = """set -e
passwd -q -d root
echo vmbackup-lab > /etc/hostname
echo '/dev/vda / ext4 defaults 0 1' > /etc/fstab
: > /etc/machine-id
mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d
printf '[Service]\\nExecStart=\\nExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - $TERM\\n' \
    > /etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
rm -rf /var/cache/apt/archives/*.deb /var/lib/apt/lists/*
"""
"""Run inside the new system. Timers are off: the guest writes what a test tells it, and little else."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made of.

    `packages` are debootstrap's, with commas; `more`, with spaces, those that apt installs into what debootstrap made.
    With `keep_system` the folder it was made from stays beside it.
    """

    name: str
    size: str
    packages: str
    configure: str
    more: str = ""
    keep_system: bool = False

    @property
    def bytes(self) -> int:
        """Size of its root disk."""
        return int(self.size.removesuffix("G")) << 30

    @property
    def folder(self) -> str:
        """Its folder in the cache: another one whenever the recipe changes."""
        parts = f"{RELEASE} {self.size} {self.packages} {self.configure} {self.more}"
        return f"{RELEASE}-{self.name}-{hashlib.sha256(parts.encode()).hexdigest()[:8]}"


PLAIN = Recipe("plain", "4G", PACKAGES, CONFIGURE)


class GuestImageError(Exception):
    """The image could not be made; the message says which program failed, and how."""


@dataclass(frozen=True)
class GuestImage:
    """A root disk (qcow2, ext4 without partitions) and what boots it. Shared: use copies or overlays."""

    root: Path
    kernel: Path
    initrd: Path
    system: Path   # the files of the root disk, if the recipe keeps them
    size: int      # bytes of the root disk


def guest_image(note: Callable[[str], None] = lambda _: None, recipe: Recipe = PLAIN) -> GuestImage:
    """The cached image; makes it if there is none (about a minute and 450 MB of download and disk).

    `note` is told in a sentence when it has to be made. Raises GuestImageError.
    """
    folder = machine.CACHE_DIR / recipe.folder
    machine.CACHE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (machine.CACHE_DIR / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)   # a second run waits for the first one's image
        if not folder.is_dir():
            reason = machine.missing(guest=True)
            if reason:
                raise GuestImageError(reason)
            for pattern in (f"{RELEASE}-{recipe.name}-*", "making-*"):   # older recipes, and what a killed run left
                for old in machine.CACHE_DIR.glob(pattern):
                    shutil.rmtree(old, ignore_errors=True)
            note(f"making the guest's image by debootstrap (once, about a minute): {folder}")
            with tempfile.TemporaryDirectory(dir=machine.CACHE_DIR, prefix="making-") as making:
                _make(Path(making), recipe)
                (Path(making) / "image").rename(folder)
    files = (folder / name for name in ("root.qcow2", "vmlinuz", "initrd.img", "system"))
    return GuestImage(*files, size=recipe.bytes)


def _make(making: Path, recipe: Recipe) -> None:
    system, image, raw = making / "system", making / "image", making / "root.raw"
    image.mkdir(mode=0o755)
    # In namespaces of their own: no mount and no process of debootstrap outlives it, however it ends
    isolated = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    run_as_maker(*isolated, machine.program("debootstrap"), "--variant=minbase", f"--include={recipe.packages}",
                 RELEASE, str(system), mirror_of_host())
    if recipe.more:
        (system / "etc/apt/apt.conf.d/00outside").write_text(apt_settings())
        run_as_maker(*isolated, "chroot", str(system), "/bin/sh", "-c", INSTALL.format(recipe.more))
    run_as_maker(*isolated, "chroot", str(system), "/bin/sh", "-c", recipe.configure)
    for name in ("vmlinuz", "initrd.img"):
        newest = max(system.glob(f"boot/{name}-*"))
        shutil.copyfile(newest, image / name)
    with raw.open("wb") as file:
        file.truncate(recipe.bytes)
    # Lazy initialisation would have the guest's kernel write for minutes after the first boot
    run_as_maker(machine.program("mke2fs"), "-q", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
                 "-d", str(system), str(raw))
    run_as_maker(machine.program("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", str(raw),
                 str(image / "root.qcow2"))
    for path in image.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if recipe.keep_system:
        system.rename(image / "system")


def run_as_maker(*command: str) -> None:
    """Runs a program that fetches or makes a system, with apt's proxy. Raises GuestImageError."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
                   "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **_proxy()}
    done = subprocess.run(command, env=environment, check=False, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-5:])
        raise GuestImageError(f"`{shlex.join(command)[:200]}` failed ({done.returncode}): {tail}")


def mirror_of_host() -> str:
    """The mirror of Debian 12 that apt is configured with, else Debian's own."""
    output = _output("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages",
                     "Component: main")
    for line in output.splitlines():
        release, _, uri = line.partition(" ")
        if release == RELEASE and uri.startswith(("http://", "https://")):
            return uri
    return DEFAULT_MIRROR


def apt_settings() -> str:
    """How apt reaches its mirrors here."""
    wanted = ("Acquire::http", "Acquire::https", "Acquire::Check")
    return "".join(f"{line}\n" for line in _output("apt-config", "dump").splitlines() if line.startswith(wanted))


def _proxy() -> dict[str, str]:
    """apt's proxy, for debootstrap does not read apt's configuration."""
    output = _output("apt-config", "shell", "proxy", "Acquire::http::Proxy")
    words = shlex.split(output.replace("proxy=", "", 1))
    return {"http_proxy": words[0]} if words and words[0] not in ("", "DIRECT") else {}


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
