"""Changed-block tracking for a raw disk of a guest that is off: its definition, with and without the qcow2 for it."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError, NotFoundError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.disk_element import disk_of, driver_of
from vmbackup.hypervisor.disk_users import disk_users
from vmbackup.hypervisor.disks import LEAST_FOR_RAW, volume_path
from vmbackup.hypervisor.domains import describe, handle
from vmbackup.hypervisor.host import Host
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.tracking import file as tracking_file
from vmbackup.hypervisor.tracking.file import DataFile
from vmbackup.hypervisor.xmltree import Element, element, parse, render

# Where the tracking file of a device is: a folder that libvirt's own images are in, whose label fits.
IMAGES = Path("/var/lib/libvirt/images")
_INACTIVE, _SECURE = 2, 1
_OF_QCOW2 = ("discard_no_unref",)


@dataclass(frozen=True)
class Tracking:
    """A disk whose data is raw at `data`; `metadata`: the qcow2 that tracks it, or did."""

    domain: str
    target: str
    data: Path
    metadata: Path
    enabled: bool
    changed: bool


def enable(
    host: Host, domain: DomainInfo, target: str, place: Path | None = None, *, compare: bool = False
) -> Tracking:
    """Puts a tracking qcow2 before a raw disk; its data is not written. `place`: where the qcow2 goes.

    `compare`: reads all of the disk both ways before the guest gets it. Raises NotFoundError (no such disk),
    HypervisorError (the guest runs, libvirt is too old, the disk does not fit), JobConflictError.
    """
    host.require_here("tracking changes of a raw disk", "leave it as it is (it is read whole)")
    with host.reserve(domain):
        connection = host.connection
        _require_version(connection.call("ask for the version", lambda raw: raw.getLibVersion()))
        disk = connection.call("look at the domain", partial(_look, info=domain, target=target), domain.name)
        if disk.data is not None:
            return Tracking(domain.name, target, disk.data, disk.path, enabled=True, changed=False)
        _require_raw(domain, disk)
        _refuse_others(host, domain, disk.path)
        place = Path(os.path.abspath(place or _usual_place(domain, disk)))
        tracking_file.check_free(place, disk.path)
        _refuse_others(host, None, place)
        data = DataFile.look(disk.path)
        tracking_file.make(place, data)
        try:
            if compare:
                tracking_file.compare(place, disk.path)
            xml = with_tracking(disk.xml, target, disk.path, place)
            connection.call("define the domain", partial(_define, xml=xml, old=disk.xml, target=target), domain.name)
        except BaseException:
            place.unlink(missing_ok=True)
            raise
    return Tracking(domain.name, target, disk.path, place, enabled=True, changed=True)


def disable(host: Host, domain: DomainInfo, target: str, *, compare: bool = False) -> Tracking:
    """Takes the tracking qcow2 away from before a raw disk, whose data is not written. Raises as `enable`."""
    host.require_here("ending the tracking of a raw disk", "leave it as it is")
    with host.reserve(domain):
        connection = host.connection
        disk = connection.call("look at the domain", partial(_look, info=domain, target=target), domain.name)
        if disk.data is None:
            if disk.format == "raw":
                return Tracking(domain.name, target, disk.path, disk.path, enabled=False, changed=False)
            raise HypervisorError(f"disk {target} of {domain.name} is a {disk.format} image with no raw data beside it")
        tracking_file.verify(disk.path, DataFile.look(disk.data))
        if compare:
            tracking_file.compare(disk.path, disk.data)
        xml = without_tracking(disk.xml, target)
        connection.call("define the domain", lambda raw: raw.defineXML(xml), domain.name, again=False)
        disk.path.unlink(missing_ok=True)
    return Tracking(domain.name, target, disk.data, disk.path, enabled=False, changed=True)


@dataclass(frozen=True)
class _Disk:
    """As the guest would start with it. `data`: of a tracked one. `unfit`: why it cannot be tracked."""

    xml: str
    target: str
    format: str
    path: Path
    data: Path | None
    unfit: str | None


def _look(raw: Any, info: DomainInfo, target: str) -> _Disk:
    domain = handle(raw, info)
    found = describe(domain)
    name = info.name
    if found.active:
        raise HypervisorError(f"domain {name} is {found.state}: its disks are changed only while it is off",
                              f"shut it down: virsh shutdown {name}")  # fmt: skip
    if not domain.isPersistent():
        raise HypervisorError(f"domain {name} is transient: it has no definition that could be changed")
    if domain.hasManagedSaveImage(0):
        raise HypervisorError(
            f"domain {name} has saved memory, which belongs to its definition as it is",
            f"start it and shut it down, or throw the memory away: virsh managedsave-remove {name}",
        )
    if domain.snapshotNum(0):
        raise HypervisorError(
            f"domain {name} has snapshots: going back to one would bring its disk's old definition back",
            f"delete them first: virsh snapshot-list {name}",
        )
    xml = domain.XMLDesc(_INACTIVE | _SECURE)
    entry = disk_of(parse(xml), target)
    if entry is None:
        known = ", ".join(_targets(xml))
        raise NotFoundError(f"domain {name} has no disk {target}", f"it has {known}" if known else "")
    return _read(raw, xml, entry, target)


def _read(raw: Any, xml: str, entry: Element, target: str) -> _Disk:
    source, driver = entry.find("source"), entry.find("driver")
    kind = (driver.get("type") if driver is not None else None) or "raw"
    store = entry.find("./source/dataStore/source")
    path = _path(raw, entry, source)
    data = _path(raw, store, store) if store is not None else None
    return _Disk(xml, target, kind, Path(path), Path(data) if data else None, _unfit(entry, path))


def _path(raw: Any, entry: Element, source: Element | None) -> str:
    if source is None:
        return ""
    if entry.get("type") == "volume":
        return volume_path(raw, source.get("pool", ""), source.get("volume", ""))
    return source.get("file") or source.get("dev") or ""


def _unfit(entry: Element, path: str) -> str | None:
    if entry.get("device", "disk") != "disk":
        return f"it is a {entry.get('device')}"
    for tag in ("readonly", "shareable", "transient"):
        if entry.find(tag) is not None:
            return f"it is {tag}"
    if entry.find("encryption") is not None or entry.find("./source/encryption") is not None:
        return "it is encrypted"
    return None if path else "its data is no file or device of this host"


def _require_version(number: int) -> None:
    if number < LEAST_FOR_RAW:
        raise HypervisorError(
            f"libvirt {number // 1_000_000}.{number // 1000 % 1000} cannot track changes of raw disks",
            "that needs libvirt 10.10, as Debian 13 has it; or turn the disk into qcow2: qemu-img convert -O qcow2",
        )


def _require_raw(domain: DomainInfo, disk: _Disk) -> None:
    what = f"disk {disk.target} of {domain.name}"
    if disk.format == "qcow2":
        raise HypervisorError(f"{what} is a qcow2 image, which tracks its changes itself", "nothing is to be done")
    if disk.format != "raw":
        raise HypervisorError(f"{what} is a {disk.format} image: only raw ones can be tracked")
    if disk.unfit:
        raise HypervisorError(f"{what} cannot be tracked: {disk.unfit}")


def _refuse_others(host: Host, domain: DomainInfo | None, path: Path) -> None:
    """Another guest on the same data would write past the bitmaps."""
    own = domain.uuid if domain else None
    others = sorted({user.domain for user in disk_users(host.connection, path) if user.uuid != own})
    if others:
        raise HypervisorError(
            f"{path} is also a disk of {', '.join(others)}: what that guest writes would not be tracked"
        )


def _usual_place(domain: DomainInfo, disk: _Disk) -> Path:
    if disk.path.is_file():
        return disk.path.with_name(f"{disk.path.name}.tracking.qcow2")
    return IMAGES / f"{domain.name.replace('/', '_')}-{disk.target}.tracking.qcow2"


def with_tracking(xml: str, target: str, data: Path, place: Path) -> str:
    """The definition with the qcow2 at `place` before a raw disk."""
    root = parse(xml)
    disk = disk_of(root, target)
    if disk is None:
        raise ValueError(target)
    device = data.is_block_device()
    _replace(disk, "file", element(
        "source", {"file": str(place)}, None,
        element(
            "dataStore", {"type": "block" if device else "file"}, None,
            element("format", {"type": "raw"}), element("source", {"dev" if device else "file": str(data)}),
        ),
    ))  # fmt: skip
    driver_of(disk).set("type", "qcow2")
    return render(root)


def without_tracking(xml: str, target: str) -> str:
    """The definition with the disk's raw data alone."""
    root = parse(xml)
    disk = disk_of(root, target)
    store = disk.find("./source/dataStore") if disk is not None else None
    source = store.find("source") if store is not None else None
    if disk is None or store is None or source is None:
        raise ValueError(target)
    _replace(disk, store.get("type", "file"), element("source", dict(source.attrib), None, *source.findall("seclabel")))
    driver = driver_of(disk)
    driver.set("type", "raw")
    for child in driver.findall("metadata_cache"):
        driver.remove(child)
    for name in _OF_QCOW2:
        driver.attrib.pop(name, None)
    return render(root)


def _replace(disk: Element, kind: str, source: Element) -> None:
    old = disk.find("source")
    position = list(disk).index(old) if old is not None else 0
    for child in (*disk.findall("source"), *disk.findall("backingStore")):
        disk.remove(child)
    disk.set("type", kind)
    disk.insert(min(position, len(disk)), source)


def _define(raw: Any, xml: str, old: str, target: str) -> None:
    """A libvirt that does not know <dataStore> would drop it silently: then the old definition comes back."""
    libvirt = lv.binding()
    try:
        domain = raw.defineXML(xml)
    except libvirt.libvirtError as error:
        raise HypervisorError(f"libvirt does not take the definition: {error}") from error
    entry = disk_of(parse(domain.XMLDesc(_INACTIVE)), target)
    if entry is None or entry.find("./source/dataStore/source") is None:
        raw.defineXML(old)
        raise HypervisorError("libvirt dropped the disk's raw data from the definition", "the old definition is back")


def _targets(xml: str) -> list[str]:
    return [found.get("dev", "") for found in parse(xml).findall("./devices/disk/target")]
