"""libvirt's errors as errors of this project: code first, text only within a code.

Source of the codes and texts: what libvirt 9.0 and 11.3 answered when each was provoked.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vmbackup.errors import HypervisorError, JobConflictError, NotFoundError, QuiesceError, VmbackupError
from vmbackup.hypervisor import _libvirt as lv

_AGAIN = "nothing was committed and the earlier restore points are good: run the backup again"
_REPORT = "tell the makers of vmbackup, with the versions that 'vmbackup doctor' shows"
_TRY_LATER = "try again when it has ended; 'virsh domjobinfo {domain}' shows it"
# (code or None, pattern, kind, message, hint). The first that fits is taken. {text} is libvirt's own sentence.
_RULES: tuple[tuple[int | None, str, type[VmbackupError], str, str], ...] = (
    (lv.OPERATION_TIMEOUT, "FSFreeze|FSThaw|agent", QuiesceError,
     "a call of the guest agent of {domain} hangs and holds the domain", "restart qemu-guest-agent in the guest"),
    (lv.OPERATION_TIMEOUT, "", JobConflictError, "another job holds domain {domain}: {text}", _TRY_LATER),
    (lv.OPERATION_UNSUPPORTED, "active block job", JobConflictError,
     "a block job runs on a disk of {domain}: {text}", "try again when it has ended; 'virsh blockjob' shows it"),
    (None, "has a blockjob assigned", JobConflictError,
     "a block job runs on a disk of {domain}: {text}", "try again when it has ended; 'virsh blockjob' shows it"),
    (None, "NBD server already running", JobConflictError,
     "QEMU's NBD server of {domain} is in use, by a migration or by somebody's tool", _TRY_LATER),
    (lv.OPERATION_UNSUPPORTED, "inactive domain", HypervisorError,
     "domain {domain} is not running", "start it with 'virsh start {domain}'"),
    (lv.OPERATION_INVALID, "domain is not running", HypervisorError,
     "domain {domain} is not running", "start it with 'virsh start {domain}'"),
    (lv.OPERATION_UNSUPPORTED, "incremental backup is not supported", HypervisorError,
     "this libvirt or QEMU cannot do incremental backups", "libvirt 7.6 and QEMU 6.1 are the least that can"),
    (None, "qcow2 v2 files", HypervisorError,
     "an image of {domain} has the old format qcow2 v2, which holds no bitmaps",
     "with the domain shut off: qemu-img amend -f qcow2 -o compat=1.1 IMAGE"),
    (None, "failed to create image file", HypervisorError,
     "the scratch file could not be made: {text}", "make the scratch folder, mode 0711, on a local file system"),
    (None, "Failed to bind socket: Cannot assign requested address", HypervisorError,
     "QEMU cannot listen at an address that is not its host's: {text}",
     "[libvirt] nbd_address must be one of the hypervisor's own, as the host of uri must without it"),
    (None, "object-add.*(?:credentials|[Cc]ertificate)", HypervisorError,
     "QEMU on the hypervisor has no certificates that it can use for NBD: {text}",
     "put them where backup_tls_x509_cert_dir in its qemu.conf says, for QEMU's user to read; docs/operations.md, 32"),
    (None, "End of file from qemu monitor", HypervisorError, "QEMU of {domain} ended meanwhile", _AGAIN),
    (None, "Failed to (?:bind|unlink) socket", HypervisorError,
     "QEMU could not make the NBD socket: {text}",
     "the domain's folder must belong to QEMU's user; AppArmor's messages are in 'dmesg'"),
    (None, "blockdev-add.*Permission denied", HypervisorError,
     "QEMU's user cannot open its scratch file: {text}",
     "the scratch folder must be searchable for it: chmod 0711; AppArmor's messages are in 'dmesg'"),
    (None, "blockdev-add.*No such file", HypervisorError,
     "QEMU does not see its scratch file: {text}",
     "a file system mounted after its start is not seen by a domain: restart {domain}, or use another scratch_dir"),
    (lv.CHECKPOINT_INCONSISTENT, "", HypervisorError, "a bitmap of {domain} is missing or broken: {text}", _AGAIN),
    (lv.NO_DOMAIN_CHECKPOINT, "", HypervisorError, "libvirt has lost a checkpoint of {domain}: {text}", _AGAIN),
    (lv.NO_DOMAIN_BACKUP, "", HypervisorError, "no backup job runs on domain {domain} any more", _AGAIN),
    (None, "Bitmap already exists|domain moment .* already exists", HypervisorError,
     "{domain} has a bitmap or checkpoint of that name already: {text}", "'vmbackup purge {domain}' takes ours off"),
    (None, "not found in backing chain", HypervisorError,
     "a checkpoint of {domain} has lost its bitmap: {text}", "'vmbackup purge {domain}' takes ours off"),
    (lv.OPERATION_INVALID, "cannot delete inactive domain with", HypervisorError,
     "libvirt keeps {domain} while it has checkpoints: {text}", "'vmbackup purge {domain}' takes ours off"),
    (lv.CONFIG_UNSUPPORTED, "unsupported for storage type|no disk named|has no media|empty or readonly",
     HypervisorError, "the disks of {domain} are not what they were when the run began: {text}", _AGAIN),
    (lv.INVALID_ARG, "for backup of .* exists", HypervisorError,
     "there is a scratch file of that name already: {text}", "delete it: no run uses a name twice"),
    (lv.INVALID_ARG, "unsupported flags", HypervisorError,
     "this libvirt does not know what vmbackup asks for: {text}", "'vmbackup doctor' tells whether it is new enough"),
    (lv.XML_INVALID_SCHEMA, "", HypervisorError, "libvirt refuses what vmbackup asks for: {text}", _REPORT),
    (None, "already has export named", HypervisorError, "two disks of {domain} have one name: {text}", _REPORT),
    (None, "path .* is too long", HypervisorError,
     "the path of QEMU's NBD socket is too long: {text}", "give {domain} a shorter name"),
    (lv.NO_DOMAIN, "", NotFoundError, "there is no domain {domain}", "'virsh list --all' names them"),
    (lv.AGENT_UNSUPPORTED, "", QuiesceError,
     "domain {domain} has no guest agent", "add the channel org.qemu.guest_agent.0 and install qemu-guest-agent"),
    (lv.AGENT_UNRESPONSIVE, "", QuiesceError,
     "the guest agent of {domain} does not answer: {text}", "start qemu-guest-agent in the guest"),
    (lv.AGENT_COMMAND_TIMEOUT, "", QuiesceError,
     "the guest agent of {domain} does not answer: {text}", "restart qemu-guest-agent in the guest"),
    (lv.AUTH_FAILED, "", HypervisorError, "libvirt refuses access: {text}", "run as root, or join the group libvirt"),
    (lv.ACCESS_DENIED, "", HypervisorError, "libvirt refuses access: {text}", "run as root, or join the group libvirt"),
)  # fmt: skip
_LOGS = "'journalctl -u libvirtd' (or virtqemud) and the guest's log in /var/log/libvirt/qemu tell more"
_LOST = (lv.RPC, lv.INVALID_CONN)
_BROKEN_DISK = re.compile(r"(?:for|of) disk '([^']+)'")
_ABSENT_DISK = re.compile(r"not found in backing chain of '([^']+)'")


def translate(error: Exception, doing: str, domain: str = "") -> VmbackupError:
    """The error of ours for a libvirtError raised while `doing` ("list the domains")."""
    code, text = code_of(error), text_of(error)
    for wanted, pattern, kind, message, hint in _RULES:
        if wanted in (None, code) and re.search(pattern, text):
            told = message.format(domain=domain or "(unknown)", text=text)
            return kind(told, hint.format(domain=shlex.quote(domain or "DOMAIN")))
    if code in _LOST:
        return HypervisorError(f"the connection to libvirt broke: {text}", "'systemctl status libvirtd' tells more")
    return HypervisorError(f"libvirt could not {doing}: {text}", _LOGS)


@contextmanager
def translated(doing: str, domain: str = "") -> Iterator[None]:
    """Turns a libvirtError from inside into ours."""
    try:
        yield
    except lv.binding().libvirtError as error:
        raise translate(error, doing, domain) from error


def code_of(error: Exception) -> int | None:
    """The virErrorNumber of a libvirtError; None for anything else."""
    get: Any = getattr(error, "get_error_code", None)
    code: int | None = get() if get else None
    return code


def text_of(error: Exception) -> str:
    """Libvirt's sentence, without the class of error that it puts in front."""
    get: Any = getattr(error, "get_error_message", None)
    text = (get() if get else None) or str(error)
    text = " ".join(str(text).split())  # some are several lines
    return re.sub(r"^(internal error|operation failed|Requested operation is not valid|unsupported configuration): ",
                  "", text)  # fmt: skip


def broken_disk(error: Exception) -> str | None:
    """The target whose bitmap, or its checkpoint, is missing or broken; None for other errors."""
    if code_of(error) not in (lv.CHECKPOINT_INCONSISTENT, lv.NO_DOMAIN_CHECKPOINT):
        return None
    match = _BROKEN_DISK.search(text_of(error))
    return match[1] if match else None


def port_taken(error: Exception) -> bool:
    """Whether QEMU's NBD server found its port in use."""
    return "Address already in use" in text_of(error)


def absent_bitmap_disk(error: Exception) -> str | None:
    """The target on which a delete found no bitmap; None for other errors."""
    match = _ABSENT_DISK.search(text_of(error))
    return match[1] if match else None
