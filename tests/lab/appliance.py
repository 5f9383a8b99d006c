"""What libguestfs makes its appliance of: this machine's kernel, or, where there is none, one that is only unpacked."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import machine

PACKAGES = "libguestfs0 libguestfs-xfs xfsprogs ntfs-3g dosfstools mtools lvm2"
PROGRAMS = ("supermin", "mkfs.xfs", "mkntfs", "ntfscp", "mkfs.vfat", "mcopy", "vgcfgrestore", "losetup", "sfdisk")
KERNEL = "linux-image-cloud-amd64"


class ApplianceError(Exception):
    """Guests' file systems cannot be looked into here; the message says what lacks."""


def kernel() -> dict[str, str]:
    """What must stand in the environment that makes the appliance. Raises ApplianceError."""
    absent = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if absent:
        raise ApplianceError(f"{', '.join(absent)} missing: apt-get install --no-install-recommends {PACKAGES}")
    if any(Path("/boot").glob("vmlinuz-*")) and any(Path("/lib/modules").glob("*/modules.dep")):
        return {}
    Path("/lib/modules").mkdir(exist_ok=True)  # supermin looks at its age
    return _unpacked()


def _unpacked() -> dict[str, str]:
    folder = machine.CACHE_DIR / "appliance-kernel"
    machine.CACHE_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (machine.CACHE_DIR / "appliance-lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=machine.CACHE_DIR, prefix="making-kernel-") as making:
                _fetch(Path(making))
                (Path(making) / "system").rename(folder)
    (image,) = (folder / "boot").glob("vmlinuz-*")
    version = image.name.removeprefix("vmlinuz-")
    modules = folder / "lib" / "modules" / version
    return {"SUPERMIN_KERNEL": str(image), "SUPERMIN_KERNEL_VERSION": version, "SUPERMIN_MODULES": str(modules)}


def _fetch(making: Path) -> None:
    """A package of 27 MB; 106 MB unpacked."""
    depends = _run("apt-cache", "depends", "--important", KERNEL, cwd=making)
    names = [w for w in depends.split() if w.startswith("linux-image-") and w != KERNEL]
    if not names:
        raise ApplianceError(f"apt knows no {KERNEL}: apt-get update")
    _run("apt-get", "download", "-q", names[0], cwd=making)
    (archive,) = making.glob("*.deb")
    _run("dpkg", "-x", str(archive), "system", cwd=making)
    (modules,) = (making / "system/lib/modules").iterdir()
    _run("depmod", "-b", "system", modules.name, cwd=making)


def _run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise ApplianceError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
