"""Debian 13's libvirt and QEMU in a folder, for `SecondLibvirt`: made once by debootstrap, and kept in the lab's cache.

It is never changed by what runs there: a second libvirt has folders of its own in its place.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import tempfile
from pathlib import Path

from . import machine
from .guest_image import GuestImageError, apt_settings, mirror_of_host, run_as_maker

RELEASE = "trixie"
PACKAGES = ("libvirt-daemon libvirt-daemon-log libvirt-daemon-driver-qemu libvirt-daemon-system libvirt-clients "
            "qemu-system-x86 qemu-utils")
# With no service started, and nothing synced: a folder that was not made whole is made anew.
INSTALL = f"""set -e
mount -t proc proc /proc
echo force-unsafe-io > /etc/dpkg/dpkg.cfg.d/unsafe-io
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
apt-get -qq update
apt-get -qq install -y --no-install-recommends {PACKAGES}
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
_ISOLATED = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")


class TrixieError(Exception):
    """It could not be made; the message says what lacks, or which program failed."""


def trixie_root() -> Path:
    """The folder with Debian 13 in it; made if there is none (about 40 s, 400 MB). Raises TrixieError."""
    folder = machine.CACHE_DIR / f"{RELEASE}-{hashlib.sha256(INSTALL.encode()).hexdigest()[:8]}"
    machine.CACHE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (machine.CACHE_DIR / f"{RELEASE}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            if reason := machine.missing(guest=True):
                raise TrixieError(reason)
            for old in machine.CACHE_DIR.glob(f"{RELEASE}-*"):   # older recipes, and what a killed run left
                shutil.rmtree(old, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=machine.CACHE_DIR, prefix=f"{RELEASE}-making-") as making:
                _make(Path(making) / "root")
                (Path(making) / "root").rename(folder)
    return folder


def _make(root: Path) -> None:
    try:
        run_as_maker(*_ISOLATED, machine.program("debootstrap"), "--variant=minbase", RELEASE, str(root),
                     mirror_of_host())
        (root / "etc/apt/apt.conf.d/00outside").write_text(apt_settings())
        run_as_maker(*_ISOLATED, "chroot", str(root), "/bin/sh", "-c", INSTALL)
    except GuestImageError as error:
        raise TrixieError(f"Debian 13 could not be fetched: {error}") from error
