"""What doctor finds of a guest beside its disks: what no restore point holds, what ends its next backup."""

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vmbackup.errors import VmbackupError
from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.disks import DomainDisk
from vmbackup.hypervisor.documents import read_documents
from vmbackup.hypervisor.domains import PAUSED_BY_IO_ERROR
from vmbackup.hypervisor.live import scratch
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy import checkpoints

_BACKUP_BLOCK_JOB = 5  # VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: the job of a backup tells it in other words
_FAILED = {1: "an error", 2: "no space left"}  # virDomainDiskErrorCode


def guest_checks(
    domain: Any, info: DomainInfo, disks: Sequence[DomainDisk], scratch_dir: str, free: Callable[[str], float]
) -> Iterator[Check]:
    """The conditions of a virDomain that runs, under its lock; `disks` are all of it. Changes nothing.

    `free` gives the bytes that are free in `scratch_dir`: infinite where nobody can tell.
    """
    yield from _state(domain, info)
    if not info.persistent:
        message = "it is transient: libvirt forgets it, and our checkpoint, when it stops; restore points keep its XML"
        # With its secrets, a screen's password for one, which nobody else may read meanwhile.
        dump = f"(umask 077; virsh dumpxml --security-info {_q(info.name)} >guest.xml)"
        define = f"{dump} && virsh define guest.xml"
        yield Check("definition", info.name, "warn", message, define)
    kept = [disk for disk in disks if not disk.left_out]
    if not kept:
        yield Check("disks", info.name, "fail", "it has no disk that can be backed up")
        return
    yield from _block_jobs(domain, info, kept)
    yield from _strays(domain, info, kept)
    yield _space(info, kept, scratch_dir, free)


def beside_checks(domain: Any, name: str, domain_folders: str, *, far: bool) -> Iterator[Check]:
    """What of a virDomain, running or off, lies beside its disks and would be in no restore point."""
    for path, note in read_documents(domain, domain_folders).unread.items():
        look = "run vmbackup on the hypervisor itself, with the same repository"
        fix = look if far else f"ls -l {_q(path)}   # libvirt makes one that is missing as the guest starts"
        yield Check("beside-disks", name, "warn", note, fix)


def _state(domain: Any, info: DomainInfo) -> Iterator[Check]:
    if tuple(domain.state()) == PAUSED_BY_IO_ERROR:
        failed = {target: _FAILED.get(code, "an error") for target, code in domain.diskErrors().items()}
        told = ", ".join(f"{target}: {why}" for target, why in sorted(failed.items())) or "a disk, or our scratch"
        message = f"QEMU stopped it, for a write failed ({told}): make room first"
        yield Check("state", info.name, "fail", message, f"virsh resume {_q(info.name)}")
    elif info.state == "crashed":
        message = "its system has crashed: restore points show it as it stands"
        yield Check("state", info.name, "warn", message, f"virsh reset {_q(info.name)} && virsh resume {_q(info.name)}")


def _block_jobs(domain: Any, info: DomainInfo, disks: Sequence[DomainDisk]) -> Iterator[Check]:
    for disk in disks:
        kind = domain.blockJobInfo(disk.target, 0).get("type")
        if kind is not None and kind != _BACKUP_BLOCK_JOB:
            message = "a block job (commit, pull or copy) runs on it: no backup until it has ended"
            fix = f"virsh blockjob {_q(info.name)} {_q(disk.target)}"
            yield Check("block-job", f"{info.name}/{disk.target}", "warn", message, fix)


def _strays(domain: Any, info: DomainInfo, disks: Sequence[DomainDisk]) -> Iterator[Check]:
    """Bitmaps of ours that libvirt knows nothing of: after an undefine, a migration, an older image."""
    known = {str(name) for name in checkpoints.own_checkpoints(domain, None)}
    found = {name for disk in disks for name in disk.bitmaps if CheckpointName.parse(name)} - known
    if found:
        message = f"bitmaps without a checkpoint, which the next backup uses or removes: {', '.join(sorted(found))}"
        yield Check("stray-bitmaps", info.name, "warn", message, f"vmbackup backup {_q(info.name)}")


def _space(info: DomainInfo, disks: Sequence[DomainDisk], folder: str, free_in: Callable[[str], float]) -> Check:
    need = scratch.needed_bytes(disk.info.virtual_size for disk in disks)
    try:
        free = free_in(folder)
    except VmbackupError as error:
        return Check("scratch-need", info.name, "fail", error.message, error.hint)
    there = "what is free cannot be told" if math.isinf(free) else f"{free / (1 << 30):.1f} GiB are free"
    told = f"its backup wants {need / (1 << 30):.1f} GiB of scratch space, {there}"
    if free < need:
        return Check("scratch-need", info.name, "fail", told, f"df -h {_q(folder)}   # or set [libvirt] scratch_dir")
    return Check("scratch-need", info.name, "ok", told)


def _q(word: str) -> str:
    return shlex.quote(word)
