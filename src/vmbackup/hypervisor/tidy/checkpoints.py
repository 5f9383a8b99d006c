"""Our checkpoints on a domain: listed, probed without side effects, defined again, removed whole.

A checkpoint is libvirt's metadata and a bitmap in each image, and either can be lost without the other.
Every function takes a virDomain and touches only names of ours.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.failures import absent_bitmap_disk, broken_disk, code_of
from vmbackup.hypervisor.names import PREFIX, CheckpointName
from vmbackup.hypervisor.remote.remote import is_remote
from vmbackup.hypervisor.tidy import bitmaps
from vmbackup.hypervisor.xmltree import Element, element, parse, render

_XML_NO_DOMAIN, _XML_SIZE = 2, 4
_REDEFINE, _REDEFINE_VALIDATE = 1, 4
_METADATA_ONLY = 2
_PARENTS_FIRST = 2  # VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL


def own_checkpoints(domain: Any, repository_id: str | None) -> list[CheckpointName]:
    """Those of one repository (None: of all), oldest first. Foreign ones are not seen at all."""
    names = [CheckpointName.parse(found.getName()) for found in domain.listAllCheckpoints(_PARENTS_FIRST)]
    ours = [name for name in names if name and repository_id in (None, name.repository_id)]
    return sorted(ours, key=lambda name: name.time)  # stable: within a second libvirt's own order holds


def foreign_checkpoints(domain: Any) -> list[str]:
    """Names of checkpoints that are not ours, sorted. They do no harm; doctor shows them."""
    return sorted(found.getName() for found in domain.listAllCheckpoints(0) if not found.getName().startswith(PREFIX))


def lookup(domain: Any, name: str) -> Any | None:
    """The virDomainCheckpoint, or None."""
    try:
        return domain.checkpointLookupByName(name)
    except lv.binding().libvirtError as error:
        if code_of(error) == lv.NO_DOMAIN_CHECKPOINT:
            return None
        raise


def dirty_bytes(checkpoint: Any) -> dict[str, int | None]:
    """Target -> bytes changed since the checkpoint; None where its bitmap is missing or broken.

    Has no side effect. Only for an active domain whose lock is held: libvirt (9.0) crashes where the checkpoint is
    deleted while this call waits for the domain. Disks outside the checkpoint are not listed.
    """
    sizes = {disk.get("name", ""): disk.get("size") for disk in _disks(checkpoint, _XML_SIZE)}
    return {target: None if size is None else int(size) for target, size in sizes.items()}


def covered(checkpoint: Any) -> list[str]:
    """The targets that the checkpoint has bitmaps of, sound or not. Safe at any time: it asks QEMU nothing."""
    return [disk.get("name", "") for disk in _disks(checkpoint, 0)]


def _disks(checkpoint: Any, flags: int) -> list[Element]:
    root = parse(checkpoint.getXMLDesc(flags | _XML_NO_DOMAIN))
    return [disk for disk in root.findall("./disks/disk") if disk.get("checkpoint") == "bitmap"]


def minimal_xml(checkpoint: Any) -> str:
    """The least that redefines it anywhere: name, time, disks with their bitmap. Without the domain's XML."""
    found = parse(checkpoint.getXMLDesc(_XML_NO_DOMAIN))
    return redefine_xml(found.findtext("name") or "", found.findtext("creationTime") or "0", covered(checkpoint))


def created(xml: str) -> str:
    """When a checkpoint was made, as the anchor of a restore point tells; "0" where that is nonsense."""
    try:
        told = parse(xml).findtext("creationTime") or ""
    except ValueError:
        told = ""
    return told if re.fullmatch("[0-9]{1,18}", told) else "0"


def redefine_xml(name: str, creation_time: str, targets: Iterable[str]) -> str:
    """The XML for `redefine`."""
    disks = [element("disk", {"name": t, "checkpoint": "bitmap", "bitmap": name}) for t in targets]
    return render(
        element(
            "domaincheckpoint", None, None,
            element("name", None, name), element("creationTime", None, creation_time),
            element("disks", None, None, *disks),
        )
    )  # fmt: skip


def redefine(domain: Any, xml: str) -> Any | None:
    """Gives libvirt the metadata back. Returns the checkpoint, or None where no bitmap of it is left to use.

    Where a part of the bitmaps is broken it is defined all the same, so that the sound disks stay
    incremental: `dirty_bytes` tells which.
    """
    libvirt = lv.binding()
    try:
        return domain.checkpointCreateXML(xml, _REDEFINE | _REDEFINE_VALIDATE)
    except libvirt.libvirtError as error:
        if broken_disk(error) is None:
            return None
    try:
        made = domain.checkpointCreateXML(xml, _REDEFINE)
    except libvirt.libvirtError:
        return None
    if any(size is not None for size in dirty_bytes(made).values()):
        return made
    remove(domain, str(made.getName()))
    return None


def remove(domain: Any, name: str, paths: Mapping[str, str] | None = None) -> bool:
    """Removes a checkpoint of ours whole: metadata and bitmaps, in whatever state they are.

    `paths` (target -> image) are where bitmaps without metadata may lie, besides the images of a domain that is off.
    True if there was anything.
    Raises libvirtError, HypervisorError.
    """
    if not CheckpointName.parse(name):
        raise ValueError(f"{name!r} is no checkpoint of ours")
    if domain.isActive():
        return _remove_running(domain, name, paths or {})
    return _remove_stopped(domain, name, paths or {})


def _remove_running(domain: Any, name: str, orphans: Iterable[str]) -> bool:
    libvirt = lv.binding()
    checkpoint = lookup(domain, name)
    found = checkpoint is not None
    present = bitmaps.qcow2_disks(domain)
    targets = covered(checkpoint) if found else [target for target in orphans if target in present]
    while targets or checkpoint is not None:
        if checkpoint is None:
            # Bitmaps are deleted through a checkpoint only: define one, unchecked, for the disks that may have them.
            checkpoint = domain.checkpointCreateXML(redefine_xml(name, "0", targets), _REDEFINE)
        try:
            checkpoint.delete(0)
            return True
        except libvirt.libvirtError as error:
            absent = absent_bitmap_disk(error)
            if absent is None or absent not in targets:
                raise
            # One disk has no bitmap, and libvirt has deleted none: go on without that disk.
            targets.remove(absent)
            checkpoint.delete(_METADATA_ONLY)
            checkpoint = None
    return found


def _remove_stopped(domain: Any, name: str, paths: Mapping[str, str]) -> bool:
    checkpoint = lookup(domain, name)
    if is_remote(domain.connect()):
        if checkpoint is None:
            return False
        raise HypervisorError(f"the guest is off, and its images, which hold bitmaps of {name}, are out of reach")
    found = bitmaps.take_away(domain, name, paths)
    if checkpoint is not None:
        checkpoint.delete(_METADATA_ONLY)
    return found or checkpoint is not None
