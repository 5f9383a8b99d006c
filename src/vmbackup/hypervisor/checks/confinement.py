"""What confines QEMU on this host, and whether it lets a guest start from the repository.

A backup needs no rule: its socket stands in the domain's own folder, and libvirt gives QEMU each scratch file by name.
A guest that `boot` or `drill` starts opens a socket of ours below scratch_dir.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.xmltree import parse

# Where a rule of the operator's stands: Debian 12 and Ubuntu 22.04 read the first, later ones any file of the second.
_LOCAL, _FOLDER = "etc/apparmor.d/local/abstractions/libvirt-qemu", "etc/apparmor.d/abstractions/libvirt-qemu.d"
_MODULE = "vmbackup"  # the name of systemd/vmbackup.cil
_SHIPPED = Path("/usr/share/doc/vmbackup/vmbackup.cil")
_TIMEOUT = 30.0  # seconds; semodule reads a store


def confinement_checks(capabilities_xml: str, scratch_dir: str, root: Path = Path("/")) -> Iterator[Check]:
    """A check for each of libvirt's security models that keeps QEMU from files; `root` is the file system's."""
    models = {model.findtext("model") for model in parse(capabilities_xml).findall("./host/secmodel")}
    if "apparmor" in models:
        yield _apparmor(scratch_dir, root)
    if "selinux" in models:
        yield _selinux()


def apparmor_rule(scratch_dir: str) -> str:
    """What lets QEMU open the sockets of booted guests."""
    return f"{scratch_dir.rstrip('/')}/boot/*/nbd.sock rw,"


def _apparmor(scratch_dir: str, root: Path) -> Check:
    rule, local, folder = apparmor_rule(scratch_dir), root / _LOCAL, root / _FOLDER
    files = [local, *(folder.iterdir() if folder.is_dir() else ())]
    if any(rule in _text(file).splitlines() for file in files):
        return Check("apparmor", "QEMU", "ok", "it may open the sockets of booted guests")
    target = f"/{_FOLDER}/vmbackup" if folder.is_dir() else f"/{_LOCAL}"
    message = "it is kept from the sockets of booted guests: backups work, 'boot' and 'drill' do not"
    return Check("apparmor", "QEMU", "warn", message, f"echo {shlex.quote(rule)} >>{target}")


def _selinux() -> Check:
    try:
        done = subprocess.run(["semodule", "-l"], capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        known = _MODULE in done.stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        known = False
    if known:
        return Check("selinux", "QEMU", "ok", f"the module {_MODULE} is loaded")
    message = "the module that lets it open the sockets of booted guests is not loaded: 'boot' and 'drill' may fail"
    tool = "" if shutil.which("semodule") else "dnf install policycoreutils && "
    return Check("selinux", "QEMU", "warn", message, f"{tool}semodule -i {_shipped(Path(sys.prefix))}")


def _shipped(environment: Path) -> Path:
    """Where `make install` has put the module, whose program is in PREFIX/lib/vmbackup."""
    own = environment.parent.parent / _SHIPPED.relative_to("/usr")
    return own if own.is_file() else _SHIPPED


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
