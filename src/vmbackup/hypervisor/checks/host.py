"""What doctor asks of a host and its domains: each check is one line, with the command that mends it."""

import math
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from vmbackup.errors import JobConflictError, VmbackupError
from vmbackup.hypervisor.checks.agent import agent_check
from vmbackup.hypervisor.checks.boot_files import boot_file_checks
from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.checks.confinement import confinement_checks
from vmbackup.hypervisor.checks.guest import beside_checks, guest_checks
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.disks import DomainDisk, read_disks
from vmbackup.hypervisor.domains import MIGRATED_AWAY, handle
from vmbackup.hypervisor.live import scratch
from vmbackup.hypervisor.live.begin import domain_folder
from vmbackup.hypervisor.names import PREFIX
from vmbackup.hypervisor.places import Places
from vmbackup.hypervisor.remote.remote import Reach
from vmbackup.hypervisor.remote.scratch import free_in_pool
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tidy import checkpoints, cleanup
from vmbackup.hypervisor.tidy.half_done import HalfDoneStore
from vmbackup.hypervisor.tidy.intents import IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.xmltree import parse

# The least that can do incremental backups, as libvirt counts: major * 1,000,000 + minor * 1,000 + release.
LEAST_LIBVIRT, LEAST_QEMU = 7_006_000, 6_001_000
_VIRSHS_OWN = "qemu:///system"  # what virsh connects to, as root
# Bytes free in the scratch folder below which a warning is due: a run may want up to 10 GiB.
_LITTLE_SCRATCH = scratch.NEED_MOST
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "9p")


def check_host(connection: Connection, places: Places) -> list[Check]:
    """The conditions every backup on this host needs."""
    versions = [
        _checked("libvirt", connection.uri, lambda: _libvirt(connection)),
        _checked("qemu", connection.uri, lambda: _qemu(connection)),
        _checked("backup-capability", connection.uri, lambda: _capability(connection)),
    ]
    if reach := places.reach:
        return [
            *versions,
            _checked("nbd-tls", reach.host, lambda: _tls(reach)),
            _checked("scratch-space", places.scratch_dir, lambda: _remote_scratch(connection, places.scratch_dir)),
            _checked("state-folder", places.state_dir, lambda: _state_folder(places.state_dir)),
        ]
    return [
        *versions,
        _checked("qemu-img", "host", _qemu_img),
        _checked("scratch-folder", places.scratch_dir, lambda: _scratch_folder(connection, places.scratch_dir)),
        _checked("scratch-space", places.scratch_dir, lambda: _scratch_space(places.scratch_dir)),
        _checked("socket-folder", places.domain_folders, lambda: _socket_folder(places.domain_folders)),
        _checked("state-folder", places.state_dir, lambda: _state_folder(places.state_dir)),
        *_confinement(connection, places.scratch_dir),
    ]


def _confinement(connection: Connection, scratch_dir: str) -> list[Check]:
    try:
        capabilities = connection.call("ask for what confines QEMU", lambda raw: str(raw.getCapabilities()))
    except VmbackupError as error:
        return [Check("confinement", connection.uri, "fail", error.message, error.hint)]
    return list(confinement_checks(capabilities, scratch_dir))


def check_domain(connection: Connection, places: Places, store: IntentStore, info: DomainInfo) -> list[Check]:
    """The conditions of one domain and its disks; changes nothing."""
    found = _domain_checks(connection, places, store, info)
    return [replace(check, fix=_by(connection.uri, check.fix)) for check in found]


def _by(uri: str, fix: str) -> str:
    """The command as it is for that libvirt: virsh's own choice may be another."""
    return fix if uri == _VIRSHS_OWN else re.sub(r"\bvirsh ", lambda _: f"virsh -c {shlex.quote(uri)} ", fix)


def _domain_checks(connection: Connection, places: Places, store: IntentStore, info: DomainInfo) -> list[Check]:
    half_done = _half_done(places, info)
    if not info.active and half_done:
        return half_done
    if not info.active and places.reach:
        message = f"it is {info.state}, and its images on {places.reach.host} are out of reach: backed up when it runs"
        return [Check("running", info.name, "warn", message, f"virsh start {shlex.quote(info.name)}"), *half_done]
    if info.state == MIGRATED_AWAY:
        message = "it was migrated away, and is backed up where it runs: jobs of this host leave it out"
        forget = f"virsh undefine {shlex.quote(info.name)} --checkpoints-metadata   # this host forgets it"
        return [Check("running", info.name, "warn", message, forget), *half_done]
    found = [Check("running", info.name, "ok", f"it is {info.state}"), *half_done]
    try:
        lock = DomainLock(places.state_dir, info.uuid, info.name)
    except JobConflictError as error:
        return [*found, Check("jobs", info.name, "ok", f"{error}: looked at no further")]
    except VmbackupError as error:
        return [*found, Check("state-folder", info.name, "fail", str(error), error.hint)]
    try:
        if info.active:
            found.append(agent_check(connection, info))
        found += connection.call(
            "check the domain", lambda raw: list(_domain(raw, handle(raw, info), places, info)), info.name
        )
    except VmbackupError as error:
        found.append(Check("domain", info.name, "fail", str(error), error.hint))
    finally:
        lock.release()
    stale = store.of_domain(info.uuid)
    if stale:
        message = f"{len(stale)} runs ended without cleaning up (session {stale[-1].session})"
        found.append(Check("dead-runs", info.name, "warn", message, f"vmbackup backup {shlex.quote(info.name)}"))
    return found


def _domain(raw: Any, domain: Any, places: Places, info: DomainInfo) -> Iterator[Check]:
    far = places.reach is not None
    yield from boot_file_checks(domain, info.name, far=far)
    yield from beside_checks(domain, info.name, places.domain_folders, far=far)
    if not info.active:
        for disk in read_disks(raw, domain):
            yield _disk(info, disk)
        return
    if not far:
        yield _checked("socket-folder", info.name, lambda: ("ok", domain_folder(places, info), ""))
    yield _job(domain, info)
    disks = read_disks(raw, domain)
    for disk in disks:
        yield _disk(info, disk)
    yield from _checkpoints(domain, info)
    free = partial(free_in_pool, raw) if far else scratch.free_bytes
    yield from guest_checks(domain, info, disks, places.scratch_dir, free)


def _half_done(places: Places, info: DomainInfo) -> list[Check]:
    """Disks that a restore in place has left half changed: such a guest is not to be started."""
    mark = HalfDoneStore(places.state_dir).of(info.uuid)
    if mark.unreadable:
        message = "a restore in place was not finished, and its record cannot be read"
        return [Check("half-restored", info.name, "fail", message, f"vmbackup purge {shlex.quote(info.name)}")]
    return [
        Check(
            "half-restored", f"{info.name} {target}", "fail", f"a restore in place to {point} was not finished",
            f"with the guest off: vmbackup restore {point} --in-place --disk {target}",
        )
        for target, point in sorted(mark.disks.items())
    ]  # fmt: skip


def _job(domain: Any, info: DomainInfo) -> Check:
    if cleanup.job_type(domain) == 0:
        return Check("jobs", info.name, "ok", "no job runs")
    socket = cleanup.active_job_socket(domain) or ""
    if socket.rpartition("/")[2].startswith(PREFIX):
        message = f"a backup job of a run that is dead goes on (socket {socket}): it fills scratch space"
        return Check("jobs", info.name, "warn", message, f"vmbackup purge {shlex.quote(info.name)}")
    fix = f"virsh domjobinfo {shlex.quote(info.name)}"
    return Check("jobs", info.name, "warn", "another job runs: no backup until it ends", fix)


def _disk(info: DomainInfo, disk: DomainDisk) -> Check:
    subject = f"{info.name}/{disk.target}"
    if disk.left_out:
        return Check("disk", subject, "ok" if disk.left_out_for_good else "warn", f"left out: {disk.left_out}")
    if disk.closed:
        fix = f"virsh start {shlex.quote(info.name)}"
        return Check("disk", subject, "warn", f"no backup while the domain is off: {disk.closed}", fix)
    if disk.untracked:
        fix = f"{disk.cure}   # with the domain off" if disk.cure else ""
        return Check("disk", subject, "warn" if fix else "ok", f"read whole each time: {disk.untracked}", fix)
    if "encryption" in disk.info.attributes:
        message = "encrypted: a restore needs its passphrase (--luks-passphrase-file); keep it apart from this host"
        return Check("disk", subject, "ok", message)
    return Check("disk", subject, "ok", f"{disk.info.format}, {disk.info.virtual_size} bytes, incremental")


def _checkpoints(domain: Any, info: DomainInfo) -> Iterator[Check]:
    for name in checkpoints.own_checkpoints(domain, None):
        found = checkpoints.lookup(domain, str(name))
        broken = [t for t, size in checkpoints.dirty_bytes(found).items() if size is None] if found else []
        if broken:
            message = f"the bitmaps of {name} are missing or broken on {', '.join(broken)}: the next run reads whole"
            yield Check("checkpoint", info.name, "warn", message, f"vmbackup backup {shlex.quote(info.name)}")
        else:
            yield Check("checkpoint", info.name, "ok", f"{name} is sound")
    foreign = checkpoints.foreign_checkpoints(domain)
    if foreign:
        yield Check("foreign-checkpoints", info.name, "ok", f"of other tools, left alone: {', '.join(foreign)}")


_Verdict = tuple[Literal["ok", "warn", "fail"], str, str]


def _checked(name: str, subject: str, verdict: Callable[[], _Verdict]) -> Check:
    """A verdict as a check; an error of it is a FAIL."""
    try:
        status, message, fix = verdict()
    except VmbackupError as error:
        return Check(name, subject, "fail", error.message, error.hint)
    return Check(name, subject, status, message, fix)


def version_text(number: int) -> str:
    """A version of libvirt's counting (1,000,000 * major + 1,000 * minor + release) as people write it."""
    return f"{number // 1_000_000}.{number // 1_000 % 1_000}.{number % 1_000}"


def _libvirt(connection: Connection) -> _Verdict:
    version = connection.call("ask for libvirt's version", lambda raw: int(raw.getLibVersion()))
    if version < LEAST_LIBVIRT:
        return "fail", f"libvirt {version_text(version)} cannot do incremental backups", "upgrade to libvirt 7.6"
    return "ok", f"libvirt {version_text(version)}", ""


def _qemu(connection: Connection) -> _Verdict:
    version = connection.call("ask for QEMU's version", lambda raw: int(raw.getVersion()))
    if version < LEAST_QEMU:
        return "fail", f"QEMU {version_text(version)} cannot do incremental backups", "upgrade to QEMU 6.1"
    return "ok", f"QEMU {version_text(version)}", ""


def _capability(connection: Connection) -> _Verdict:
    xml = connection.call(
        "ask for QEMU's capabilities", lambda raw: raw.getDomainCapabilities(None, None, None, None, 0)
    )
    backup = parse(xml).find("./features/backup")
    if backup is None or backup.get("supported") != "yes":
        return "fail", "this libvirt and QEMU cannot do incremental backups", "upgrade to libvirt 7.6 and QEMU 6.1"
    return "ok", "incremental backup is supported", ""


def _qemu_img() -> _Verdict:
    path = shutil.which("qemu-img")
    return ("ok", path, "") if path else ("fail", "qemu-img is missing", "apt install qemu-utils")


def _scratch_folder(connection: Connection, folder: str) -> _Verdict:
    scratch.prepare_folder(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        return "fail", "it cannot be written", f"run as root, or chown root:root {shlex.quote(folder)}"
    user = qemu_user(connection.call("ask for QEMU's user", lambda raw: raw.getCapabilities()))
    blocked = user and closed_to(folder, *user)
    if blocked:
        message = f"QEMU's user (uid {user[0] if user else ''}) cannot pass {blocked}"
        return "fail", message, f"chmod o+x {shlex.quote(blocked)}"
    kind = file_system(folder)
    if kind in _NETWORK_FILE_SYSTEMS:
        message = f"it is on {kind}: an error of the network gives the guest I/O errors"
        return "warn", message, "set [libvirt] scratch_dir to a local file system"
    return "ok", "writable, and QEMU's user can pass", ""


def _scratch_space(folder: str) -> _Verdict:
    free = scratch.free_bytes(folder)
    text = f"{free / (1 << 30):.1f} GiB free"
    if free < _LITTLE_SCRATCH:
        return "warn", f"{text}: a run wants a fifth of its disks' sizes, at most 10 GiB", "set [libvirt] scratch_dir"
    return "ok", text, ""


def _tls(reach: Reach) -> _Verdict:
    reach.tls()
    ports = f"{reach.ports[0]}-{reach.ports[1]}"
    message = f"certificates are there; QEMU on {reach.host} must have its own (qemu.conf, backup_tls_x509_cert_dir)"
    return "ok", f"{message}, and its firewall let ports {ports} through", ""


def _remote_scratch(connection: Connection, folder: str) -> _Verdict:
    free = connection.call("ask for the scratch space", lambda raw: free_in_pool(raw, folder))
    if math.isinf(free):
        fix = f"on the hypervisor: mkdir -p -m 0711 {folder}; virsh pool-create-as vmbackup dir --target {folder}"
        return "warn", "no storage pool of libvirt has this folder of the hypervisor: its space cannot be told", fix
    text = f"{free / (1 << 30):.1f} GiB free on the hypervisor"
    return ("warn" if free < _LITTLE_SCRATCH else "ok"), text, ""


def _socket_folder(folder: str) -> _Verdict:
    if os.access(folder, os.R_OK | os.X_OK):
        return "ok", "the domains' own folders can be reached", ""
    return "fail", "the domains' own folders cannot be reached, where the sockets stand", "run as root"


def _state_folder(folder: str) -> _Verdict:
    existing = folder
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    if os.access(existing, os.W_OK | os.X_OK):
        return "ok", "writable", ""
    return "fail", f"{existing} cannot be written", "run as root, or set [daemon] state_dir"


def qemu_user(capabilities_xml: str) -> tuple[int, int] | None:
    """Uid and gid under which libvirt runs QEMU, from its capabilities; None where it does not change users."""
    for model in parse(capabilities_xml).findall("./host/secmodel"):
        if model.findtext("model") == "dac":
            label = (model.findtext("baselabel") or "").replace("+", "")
            uid, _, gid = label.partition(":")
            if uid.isdigit() and gid.isdigit():
                return int(uid), int(gid)
    return None


def closed_to(folder: str, uid: int, gid: int) -> str | None:
    """The first folder on the way to `folder` that this user may not pass; None where the way is open."""
    if uid == 0:
        return None
    parts = os.path.abspath(folder).split("/")[1:]
    for count in range(len(parts) + 1):
        path = "/" + "/".join(parts[:count])
        found = os.stat(path)
        bit = 0o100 if found.st_uid == uid else 0o010 if found.st_gid == gid else 0o001
        if not found.st_mode & bit:
            return path
    return None


def file_system(path: str) -> str:
    """The type of the file system that holds the path (proc(5), mountinfo), "" where it cannot be told."""
    best, kind = "", ""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4]
            if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, right.split()[0]
    return kind
