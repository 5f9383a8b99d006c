"""The small Linux in which libguestfs looks into disks: made of this host's kernel and programs, kept in the cache.

libguestfs would make it itself, but as the user that reads the disks; that one must not be able to change it, and may
not read every host's kernel.
"""

import os
import platform
import subprocess
from glob import glob
from pathlib import Path

from vmbackup.errors import GuestFilesError

_PARTS = ("/usr/lib/*/guestfs/supermin.d", "/usr/lib64/guestfs/supermin.d", "/usr/lib/guestfs/supermin.d")
INSTALL = "apt install libguestfs-tools (on Fedora and RHEL: dnf install libguestfs-tools libguestfs-xfs)"
_MOST_OUTPUT = 500  # characters of a program's complaint that are shown


def appliance(cache_dir: Path) -> Path:
    """The folder with kernel, initrd and root, made (half a minute) if the host's packages changed since the last one.

    A folder named by LIBGUESTFS_PATH is taken as it is. Raises GuestFilesError.
    """
    named = os.environ.get("LIBGUESTFS_PATH")
    if named:
        return Path(named)
    parts = sorted(found for pattern in _PARTS for found in glob(pattern))
    if not parts:
        raise GuestFilesError("libguestfs is not installed, which looks into the guest's file systems", INSTALL)
    folder = cache_dir / "appliance"
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    made = folder / "appliance.d"
    given = ["--copy-kernel", "-f", "ext2", "--host-cpu", platform.machine(), "--lock", str(folder / "lock")]
    _run(["supermin", "--build", "--if-newer", *given, parts[0], "-o", str(made)])
    for name in ("kernel", "initrd", "root"):
        (made / name).chmod(0o644)
    made.chmod(0o755)
    # supermin looks at the oldest of them to see whether they are up to date, and the kernel's copy is as old as that.
    time = (made / "root").stat().st_mtime_ns
    os.utime(made / "kernel", ns=(time, time))
    (made / "README.fixed").touch(0o644)  # tells libguestfs that it is whole
    return made


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError:
        raise GuestFilesError(f"{command[0]} is not installed, which libguestfs needs", INSTALL) from None
    if done.returncode:
        told = done.stderr.strip()
        if "suitable kernel" in told:
            hint = "apt install linux-image-amd64"
            raise GuestFilesError("libguestfs needs a kernel in /boot, and there is none that it can use", hint)
        hint = "see 'libguestfs-test-tool'"
        raise GuestFilesError(f"cannot make the appliance of libguestfs: {told[-_MOST_OUTPUT:]}", hint)
