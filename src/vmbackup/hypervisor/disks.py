"""The disks of a domain as its XML tells them, each with the reason when it is left out."""

import os
import shlex
import stat
from dataclasses import dataclass
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.images import ImageInfo, image_chain, image_info
from vmbackup.hypervisor.remote.remote import is_remote
from vmbackup.hypervisor.source import DiskInfo
from vmbackup.hypervisor.xmltree import Element, parse

_XML_INACTIVE = 2
_PCI = ("domain", "bus", "slot", "function")
# The attributes with the paths of the images below a disk's own, and with the inodes of those that are files: by line.
BELOW, BELOW_INODES = "below", "below_inodes"
_LOCAL = ("file", "block", "volume")
LEAST_FOR_RAW = 10_010_000  # libvirt that tracks changes of raw disks (<dataStore>), as it counts
_NOTHING_OF_THE_GUEST = ("it is a cdrom", "it is a floppy", "it is read-only", "it has no medium")


@dataclass(frozen=True)
class DomainDisk:
    """A disk that the guest has. `left_out` is the reason why it is not in the backup; None for those that are.

    `untracked` is the reason why it cannot have a bitmap (raw, qcow2 v2): read whole each time; `cure` the command
    that changes that, where there is one; `note` what the operator should know of it. `bitmaps` are the names of those
    that its image holds; QEMU does not show those born in it.
    Of a guest that is off: `chain` are its image and those below it, `closed` is why it cannot be read without QEMU.
    """

    info: DiskInfo
    left_out: str | None = None
    untracked: str | None = None
    cure: str | None = None
    note: str | None = None
    bitmaps: tuple[str, ...] = ()
    chain: tuple[ImageInfo, ...] = ()
    closed: str | None = None

    @property
    def target(self) -> str:
        """The name libvirt and the guest's XML use: vda."""
        return self.info.target

    @property
    def left_out_for_good(self) -> bool:
        """True where it is left out and nothing of the guest's own is lost by that."""
        return self.left_out in _NOTHING_OF_THE_GUEST


def read_disks(raw: Any, domain: Any) -> list[DomainDisk]:
    """All disks of the domain's XML, in its order: the live one's, or those that it would start with.

    `raw` is the virConnect (volumes are resolved through their pools), `domain` the virDomain.
    """
    root = parse(domain.XMLDesc(0))
    return [_read(raw, domain, entry) for entry in root.findall("./devices/disk")]


@dataclass(frozen=True)
class StoppedDisk:
    """A disk of a guest that is off. `path` is "" where this host has no file or device of it."""

    target: str
    path: str
    format: str
    encrypted: bool = False


def read_stopped(raw: Any, domain: Any) -> list[StoppedDisk]:
    """All disks as the guest would start with, in the order of its XML."""
    root = parse(domain.XMLDesc(_XML_INACTIVE))
    return [_read_stopped(raw, entry) for entry in root.findall("./devices/disk")]


def _read_stopped(raw: Any, entry: Element) -> StoppedDisk:
    return StoppedDisk(
        target=_attribute(entry, "target", "dev"),
        path=local_path(raw, entry),
        format=format_of(entry),
        encrypted=_is_encrypted(entry),
    )


def format_of(disk: Element) -> str:
    """What its domain calls a <disk>: qcow2, or raw where it says nothing."""
    return _attribute(disk, "driver", "type") or "raw"


def local_path(raw: Any, disk: Element) -> str:
    """The file or device of a <disk>; "" where this host has none. Raises HypervisorError."""
    return _path(raw, disk) if disk.get("type") in _LOCAL else ""


def _read(raw: Any, domain: Any, entry: Element) -> DomainDisk:
    target = _attribute(entry, "target", "dev")
    driver = format_of(entry)
    path = _path(raw, entry)
    left_out = _left_out(entry, path)
    off, far = not domain.isActive(), is_remote(raw)
    chain, trouble = ((), None) if left_out or far else _images(entry, path, driver, off=off)
    image = chain[0] if chain else None
    size = 0 if left_out else _size_off(image) if off else _virtual_size(domain, target)
    attributes = dict(image.attributes) if image else {}
    if _is_encrypted(entry):
        attributes.setdefault("encryption", "yes")
    attributes |= _data_file(entry, far=far)
    if driver == "qcow2" and not far and (space := _preallocation(path, size)):
        attributes["preallocation"] = space
    if below := _below(entry, chain):
        attributes[BELOW] = "\n".join(below)
        if not far:
            attributes[BELOW_INODES] = "\n".join(str(_inode(image) or "") for image in below)
    info = DiskInfo(
        target=target,
        format=driver,
        virtual_size=size,
        path=path,
        serial=(entry.findtext("serial") or "").strip() or None,
        bus=_attribute(entry, "target", "bus"),
        attributes=attributes,
        inode=None if far else _inode(path),
    )
    untracked, cure = _untracked(info, image)
    if untracked and driver == "raw" and image and raw.getLibVersion() >= LEAST_FOR_RAW:
        cure = f"vmbackup cbt enable {shlex.quote(domain.name())} {target}"
    bitmaps = tuple(image.bitmaps) if image else ()
    if off:
        closed = None if left_out else _closed(entry, path, chain, trouble)
        return DomainDisk(info, left_out, untracked, cure, bitmaps=bitmaps, chain=chain, closed=closed)
    return DomainDisk(info, left_out=left_out, untracked=untracked, cure=cure, note=trouble, bitmaps=bitmaps)


def _data_file(entry: Element, *, far: bool) -> dict[str, str]:
    """The raw file or device that holds the data where the image only tracks it, and which file that is."""
    source = entry.find("./source/dataStore/source")
    path = "" if source is None else source.get("file") or source.get("dev") or ""
    inode = _inode(path) if path and not far else None
    return {"data_file": path} | ({} if inode is None else {"data_file_inode": str(inode)}) if path else {}


def _preallocation(path: str, size: int) -> str | None:
    """How the image has its space reserved: all of it, or only a place for each cluster; None where it grows."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not 0 < size <= found.st_size:
        return None
    return "falloc" if found.st_blocks * 512 >= size else "metadata"


def _below(entry: Element, chain: tuple[ImageInfo, ...]) -> list[str]:
    """The paths of the images below a disk's own, as QEMU has them open, or as the images themselves tell."""
    found, under = [], entry.find("./backingStore")
    while under is not None and (source := under.find("./source")) is not None:
        found.append(source.get("file") or source.get("dev") or "")
        under = under.find("./backingStore")
    return found or [image.path for image in chain[1:]]


def _is_encrypted(entry: Element) -> bool:
    return entry.find("./source/encryption") is not None or entry.find("./encryption") is not None


def _inode(path: str) -> int | None:
    """That of a plain file; a device's node is made anew at each start of the host."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino if stat.S_ISREG(found.st_mode) else None


def _left_out(entry: Element, path: str) -> str | None:
    device = entry.get("device", "disk")
    if device in ("cdrom", "floppy"):
        return f"it is a {device}"
    if device == "lun":
        return "it is passed through (device='lun'): the guest's SCSI commands go past QEMU's block layer"
    if entry.find("readonly") is not None:
        return "it is read-only"
    if entry.find("transient") is not None:
        return "it is transient: its changes are thrown away when the guest stops"
    if entry.find("shareable") is not None:
        return "it is shareable: other guests write to it too"
    if entry.get("type") in ("vhostuser", "vhostvdpa"):
        return f"it is a {entry.get('type')} disk: another process or the hardware does its I/O"
    if _attribute(entry, "target", "bus") == "sd":
        return "it is on an SD bus, which libvirt cannot back up"
    if not path:
        return "it has no medium"
    return None


def _untracked(info: DiskInfo, image: ImageInfo | None) -> tuple[str | None, str | None]:
    if info.format != "qcow2":
        return f"a {info.format} image has no dirty bitmap", None
    if image and not image.holds_bitmaps:
        cure = f"qemu-img amend -f qcow2 -o compat=1.1 {shlex.quote(info.path)}"
        return "qcow2 v2 (compat 0.10) has no dirty bitmap", cure
    return None, None


def _path(raw: Any, entry: Element) -> str:
    """The file or device; for network disks protocol:name, of NVMe nvme:address/namespace; "" without a medium."""
    source = entry.find("source")
    if source is None:
        return ""
    if entry.get("type") == "volume" and not source.get("file"):
        return volume_path(raw, source.get("pool", ""), source.get("volume", ""))
    if entry.get("type") == "network":
        return f"{source.get('protocol', 'network')}:{source.get('name', '')}"
    if entry.get("type") == "nvme":
        address = source.find("address")
        place = ":".join(address.get(part, "") for part in _PCI) if address is not None else ""
        return f"nvme:{place}/{source.get('namespace', '')}"
    return source.get("file") or source.get("dev") or source.get("dir") or ""


def volume_path(raw: Any, pool: str, volume: str) -> str:
    """The path of a volume of a storage pool. Raises HypervisorError."""
    try:
        return str(raw.storagePoolLookupByName(pool).storageVolLookupByName(volume).path())
    except lv.binding().libvirtError as error:
        raise HypervisorError(f"the volume {volume} of pool {pool} cannot be found: {error}") from error


def _images(entry: Element, path: str, driver: str, *, off: bool) -> tuple[tuple[ImageInfo, ...], str | None]:
    """What qemu-img says; nothing with the reason where the image cannot be looked at from here.

    While QEMU runs the image alone: what lies below it is QEMU's affair.
    """
    if entry.get("type") not in _LOCAL:
        return (), None
    known = "luks" if driver == "raw" and _is_encrypted(entry) else driver
    try:
        return tuple(image_chain(path, known)) if off else (image_info(path, known),), None
    except HypervisorError as error:
        return (), f"the image {path} could not be looked at ({error}): a restore makes it with default settings"


def _closed(entry: Element, path: str, chain: tuple[ImageInfo, ...], trouble: str | None) -> str | None:
    """Why a disk of a guest that is off cannot be read; None where it can."""
    if entry.get("type") not in _LOCAL:
        return f"it is no file or device of this host ({path}): its QEMU alone opens it"
    if trouble or not chain:
        return (trouble or f"the image {path} could not be looked at").partition(": a restore")[0]
    for image in chain:
        if image.backing and not image.backing_format:
            return f"{image.path} does not tell the format of {image.backing} below it"
    if len(chain) > 1 and _is_encrypted(entry):
        return "it is encrypted, and other images lie below it"
    return None


def _size_off(image: ImageInfo | None) -> int:
    return image.virtual_size if image else 0


def _virtual_size(domain: Any, target: str) -> int:
    """Bytes, as the running QEMU has it."""
    return int(domain.blockInfo(target, 0)[0])


def _attribute(entry: Element, child: str, name: str) -> str:
    found = entry.find(child)
    return found.get(name, "") if found is not None else ""
