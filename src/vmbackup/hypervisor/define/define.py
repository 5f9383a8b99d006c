"""Defines a restored guest on this host: everything is looked at before, and a define that fails leaves nothing."""

import os
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError, NotFoundError, TargetError, UsageError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.checks.host import closed_to, qemu_user
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.define.domains_here import Other, domains_here, refuse_taken, shared_macs
from vmbackup.hypervisor.define.guest_state import GuestState
from vmbackup.hypervisor.define.inventory import read_capabilities
from vmbackup.hypervisor.documents import DOMAIN_XML, TPM_STATES, UEFI_VARIABLES, starts_with_host
from vmbackup.hypervisor.failures import text_of
from vmbackup.hypervisor.rebuild.draft import set_text
from vmbackup.hypervisor.rebuild.guest import rebuild
from vmbackup.hypervisor.rebuild.wishes import Kind, Lack, NbdSource, NewDisk, Rebuilt, Wishes
from vmbackup.hypervisor.tidy import checkpoints
from vmbackup.hypervisor.xmltree import Element, parse, render

_METADATA_ONLY = 2
_KEEP_NVRAM = 8  # VIR_DOMAIN_UNDEFINE_KEEP_NVRAM


@dataclass(frozen=True)
class DefineOptions:
    """How a restored guest is defined.

    Without `name` the guest keeps its own; with another it is a copy, and gets a UUID and MAC addresses of its own
    unless `keep_uuid`, `keep_mac`. `networks`, `without` and `boot_files`: as in `Wishes`. `autostart`: it may be
    started with the host, if it was.
    """

    name: str | None = None
    keep_uuid: bool = False
    keep_mac: bool = False
    networks: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[Kind] = frozenset()
    autostart: bool = True
    boot_files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A guest, ready to be defined: nothing of it is on the host yet. `copies`: files made for it to start from."""

    rebuilt: Rebuilt
    documents: Mapping[str, bytes]
    owner: tuple[int, int] | None
    warnings: tuple[str, ...]
    autostart: bool = False
    copies: tuple[Path, ...] = ()


def plan_definition(
    connection: Connection,
    domain_folders: str,
    documents: Mapping[str, bytes],
    disks: Mapping[str, NewDisk],
    options: DefineOptions,
) -> Definition:
    """The guest of a restore point's documents as it will be defined on this host, with its disks at `disks`.

    Changes nothing: the definition is tried under another name and taken away at once. Raises HypervisorError where the
    name or UUID is taken, the host lacks what the guest cannot do without or libvirt would not take it, TargetError
    where an earlier guest's state is in the way, UsageError, NotFoundError.
    """
    xml = documents.get(DOMAIN_XML, b"").decode(errors="replace")
    try:
        original = parse(xml)
        host = read_capabilities(connection, xml)
    except ValueError as error:
        raise NotFoundError("the restore point holds no definition of the guest (domain.xml)") from error
    others = connection.call("list the domains", domains_here)
    state = GuestState(domain_folders)
    wishes = _wishes(original, others, documents, disks, options, state)
    rebuilt = rebuild(xml, wishes, host)
    refuse_taken(rebuilt, others)
    _refuse_lacking(rebuilt.lacking, options.without)
    state.check(rebuilt)
    owner = qemu_user(connection.call("ask for QEMU's user", lambda raw: raw.getCapabilities()))
    _refuse_closed(disks, owner)
    connection.call("try the guest's definition", partial(_try, xml=rebuilt.xml), rebuilt.name, again=False)
    taken = [f"{mac} is also a MAC address of domain {name}" for name, mac in shared_macs(rebuilt, others)]
    warnings = (*map(str, rebuilt.lacking), *rebuilt.warnings, *taken)
    copies = tuple(options.boot_files.values())
    if not options.autostart or not starts_with_host(documents):
        return Definition(rebuilt, documents, owner, warnings, copies=copies)
    copy = rebuilt.name != (original.findtext("name") or "")
    note = (
        f"the original was started with its host, this copy is not: virsh autostart {rebuilt.name}"
        if copy
        else "it is started with this host, as it was with its own"
    )
    told = replace(rebuilt, notes=(*rebuilt.notes, note))
    return Definition(told, documents, owner, warnings, autostart=not copy, copies=copies)


def define(connection: Connection, domain_folders: str, definition: Definition) -> None:
    """Defines the guest. Raises HypervisorError, TargetError: then nothing of it is left.

    Not repeated where the connection breaks: the call may have been done.
    """
    rebuilt, state = definition.rebuilt, GuestState(domain_folders)
    refuse_taken(rebuilt, connection.call("list the domains", domains_here))
    for path in definition.copies:
        _hand_over(path, definition.owner)
    state.put(rebuilt, definition.documents, definition.owner)
    try:
        connection.call("define the guest", lambda raw: _define(raw, definition), rebuilt.name, again=False)
    except BaseException:
        state.undo()
        raise
    connection.call("look for old checkpoints", partial(_forget_checkpoints, name=rebuilt.name), rebuilt.name)
    state.drop_stale_checkpoints(rebuilt.name)


def _hand_over(path: Path, owner: tuple[int, int] | None) -> None:
    """QEMU's user reads it: of a loader libvirt itself does not see to that."""
    try:
        if owner is not None and os.geteuid() == 0:
            os.chown(path, *owner)
        os.stat(path)
    except OSError as error:
        hint = "'vmbackup verify' tells what is damaged; a file of the same content where it was before does as well"
        raise TargetError(f"the guest is started from {path}: {error.strerror}", hint) from error


def _define(raw: Any, definition: Definition) -> None:
    domain = raw.defineXML(definition.rebuilt.xml)
    try:
        if definition.autostart:
            domain.setAutostart(1)
    except BaseException:
        domain.undefineFlags(_KEEP_NVRAM)
        raise


def start(connection: Connection, name: str) -> None:
    """Starts the guest. Raises HypervisorError, which says that it is defined."""
    libvirt = lv.binding()

    def create(raw: Any) -> None:
        try:
            raw.lookupByName(name).create()
        except libvirt.libvirtError as error:
            raise HypervisorError(
                f"domain {name} is restored and defined, but it does not start: {text_of(error)}",
                f"mend that, then 'virsh start {name}'; QEMU's own words are in /var/log/libvirt/qemu/{name}.log",
            ) from error

    connection.call("start the guest", create, name, again=False)


def _wishes(
    original: Element,
    others: list[Other],
    documents: Mapping[str, bytes],
    disks: Mapping[str, NewDisk],
    options: DefineOptions,
    state: GuestState,
) -> Wishes:
    own_name, own_uuid = original.findtext("name") or "", original.findtext("uuid") or ""
    name = options.name or own_name
    if not name.strip() or "/" in name or name != name.strip() or not name.isprintable():
        raise UsageError(f"'{name}' cannot be the name of a domain", "choose another with --name")
    # The original may run beside a guest of another name, here or on another host.
    copy = name != own_name or any(other.uuid == own_uuid for other in others)
    variables = documents.get(UEFI_VARIABLES)
    version = _tpm_version(original)
    return Wishes(
        name=name,
        keep_uuid=options.keep_uuid or not copy,
        keep_mac=options.keep_mac or not copy,
        networks=options.networks,
        disks=disks,
        nvram=state.nvram_path(name) if variables is not None else None,
        nvram_bytes=len(variables or b""),
        tpm=TPM_STATES.get(version, "") in documents,
        without=options.without,
        boot_files=options.boot_files,
    )


def _tpm_version(original: Element) -> str:
    backend = original.find("./devices/tpm/backend[@type='emulator']")
    return backend.get("version", "2.0") if backend is not None else ""


def _refuse_lacking(lacking: tuple[Lack, ...], without: frozenset[Kind]) -> None:
    grave = [lack for lack in lacking if lack.grave and lack.kind not in without]
    if grave:
        hints = list(dict.fromkeys(lack.hint for lack in grave if lack.hint))
        raise HypervisorError("; ".join(map(str, grave)), "; ".join(hints))


def _refuse_closed(disks: Mapping[str, NewDisk], owner: tuple[int, int] | None) -> None:
    """QEMU's user must reach the images."""
    for disk in disks.values() if owner else ():
        if isinstance(disk.source, NbdSource):
            continue
        folder = disk.source.parent
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        blocked = closed_to(os.path.realpath(folder), *owner) if owner else None
        if blocked:
            raise HypervisorError(
                f"QEMU's user may not pass {blocked}, so a guest cannot run from {disk.source.parent}",
                f"restore to another folder, as below /var/lib/libvirt/images, or open it: chmod o+x {blocked}",
            )


def _try(raw: Any, xml: str) -> None:
    """Whether libvirt would take it: to be found out before hours of restoring, not after."""
    root, libvirt = parse(xml), lv.binding()
    uuid = str(uuids.uuid4())
    set_text(root, "name", f"vmbackup-try-{uuid[:8]}")
    set_text(root, "uuid", uuid)
    for entry in root.findall("./sysinfo/system/entry[@name='uuid']"):
        entry.text = uuid
    try:
        raw.defineXML(render(root)).undefineFlags(_KEEP_NVRAM)
    except libvirt.libvirtError as error:
        raise HypervisorError(
            f"libvirt does not take the guest's definition: {text_of(error)}",
            "restore it without --define, mend domain.xml and define it by hand: 'virsh define'",
        ) from error


def _forget_checkpoints(raw: Any, name: str) -> None:
    """Those that libvirt still holds for the name: the restored disks have none of their bitmaps."""
    domain = raw.lookupByName(name)
    for each in reversed(checkpoints.own_checkpoints(domain, None)):
        found = checkpoints.lookup(domain, str(each))
        if found is not None:
            found.delete(_METADATA_ONLY)
