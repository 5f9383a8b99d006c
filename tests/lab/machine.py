"""What this machine offers to the lab, and what it lacks."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import importlib.util
import os
import pwd
import re
import shutil
from pathlib import Path

PREFIX = "vmbackup-lab-"
"""First part of the name of every domain and folder of the lab."""

LAB_DIR = Path(os.environ.get("VMBACKUP_LAB_DIR", "/var/tmp/vmbackup-lab"))
"""Images and repositories of running labs. On a disk: QEMU and O_DIRECT need a real file system."""

CACHE_DIR = Path(os.environ.get("VMBACKUP_LAB_CACHE", "/var/cache/vmbackup-lab"))
"""The guest's image, made once."""

RUN_DIR = Path("/run/vmbackup-lab")
"""Locks, and the note which daemons the lab has started."""

KVM_DEVICE = Path("/dev/kvm")
KVM_CREATE_VM = 0xAE01   # ioctl of linux/kvm.h

PROGRAMS = {
    "libvirtd": "libvirt-daemon libvirt-daemon-system",
    "virtlogd": "libvirt-daemon libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils",
    "nbdcopy": "libnbd-bin",
    "nbdinfo": "libnbd-bin",
    "mke2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "debugfs": "e2fsprogs",
}
"""Program and the Debian packages that bring it."""

GUEST_PROGRAMS = {"debootstrap": "debootstrap"}
"""What the real guest's image needs beyond PROGRAMS, for the time of its making."""


def missing(*, guest: bool = False) -> str | None:
    """What the lab lacks here and the command that brings it, as one sentence; None if nothing is missing."""
    if os.geteuid() != 0:
        return "the lab needs root: libvirt's qemu:///system, disk images owned by QEMU's user"
    wanted = PROGRAMS | (GUEST_PROGRAMS if guest else {})
    absent = {name: package for name, package in wanted.items() if not _find(name)}
    if absent:
        packages = " ".join(sorted({word for package in absent.values() for word in package.split()}))
        return f"the lab needs {', '.join(absent)}: apt-get install --no-install-recommends {packages}"
    if importlib.util.find_spec("libvirt") is None:
        return "the lab needs Python's libvirt module: make setup"
    return None


def _find(program: str) -> str | None:
    """Finds daemons too where /usr/sbin is not on the PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def program(name: str) -> str:
    """Absolute path of a program that `missing` has looked for."""
    return _find(name) or name


def qemu_user() -> tuple[int, int]:
    """User and group id under which libvirt runs QEMU: Debian's libvirt-qemu, elsewhere qemu, else root."""
    for user, group in (("libvirt-qemu", "kvm"), ("qemu", "qemu")):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    return 0, 0


def kvm_works() -> bool:
    """True where guests run under KVM: the CPU shows vmx or svm, and the kernel makes a virtual machine.

    The device alone is not enough, nor is a kernel that makes machines on a CPU without the flag: seen
    there, a guest dies with "emulation failure" while its kernel starts.
    """
    if not re.search(r"^flags\b.*\s(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        return False
    try:
        fd = os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(fd, KVM_CREATE_VM, 0))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def kvm_closed_to_qemu() -> bool:
    """True if /dev/kvm exists, but QEMU's user may not open it.

    libvirt then finds that its cached capabilities (made as root, with KVM) do not fit QEMU's user and
    probes QEMU again at each call: a define takes 48 s instead of 0.1 s.
    """
    try:
        status = KVM_DEVICE.stat()
    except OSError:
        return False
    uid, gid = qemu_user()
    if uid == status.st_uid:
        wanted = 0o600
    elif gid == status.st_gid:
        wanted = 0o060
    else:
        wanted = 0o006
    return uid != 0 and status.st_mode & wanted != wanted
