"""Which guests have an image or a block device as a disk, whether they run or not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.backing import backing_files
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.disks import volume_path
from vmbackup.hypervisor.xmltree import Element, parse

_INACTIVE = 2  # VIR_DOMAIN_XML_INACTIVE


@dataclass(frozen=True)
class DiskUser:
    """A guest and its disk. `below`: what was asked for is not the disk itself, but a file that it builds on."""

    domain: str
    uuid: str
    target: str
    active: bool
    below: bool = False


def disk_users(connection: Connection, path: Path) -> list[DiskUser]:
    """The guests with that file or device as a disk, or below one (a backing file). Raises HypervisorError."""

    def every(raw: Any) -> list[DiskUser]:
        found: dict[DiskUser, None] = {}
        for domain in raw.listAllDomains(0):
            try:
                found |= dict.fromkeys(_of(raw, domain, path))
            except lv.binding().libvirtError as error:
                if error.get_error_code() != lv.NO_DOMAIN:
                    raise
        return list(found)

    return connection.call("look whose disk that is", every)


def _of(raw: Any, domain: Any, path: Path) -> Iterator[DiskUser]:
    active = bool(domain.isActive())
    texts = [domain.XMLDesc(0)]
    if active and domain.isPersistent():
        texts.append(domain.XMLDesc(_INACTIVE))
    for text in texts:
        for disk in parse(text).findall("./devices/disk"):
            for source, below in _sources(raw, disk):
                if _is_same(source, path):
                    target = disk.find("target")
                    name = "" if target is None else target.get("dev", "")
                    yield DiskUser(domain.name(), domain.UUIDString(), name, active, below)


def _sources(raw: Any, disk: Element) -> Iterator[tuple[str, bool]]:
    """The files of a disk, and whether each lies below its image: a guest that is off has those in its image only."""
    own, driver = disk.find("source"), disk.find("driver")
    for source in disk.iter("source"):
        if found := _path(raw, source):
            yield found, source is not own
            if source is own and driver is not None and driver.get("type") == "qcow2":
                yield from ((name, True) for name in backing_files(found))


def _path(raw: Any, source: Element) -> str | None:
    if found := source.get("file") or source.get("dev"):
        return found
    if source.get("pool"):
        try:
            return volume_path(raw, source.get("pool", ""), source.get("volume", ""))
        except HypervisorError:
            return None  # its pool is not there, and so is no file of it
    return None


def _is_same(source: str, path: Path) -> bool:
    try:
        return os.path.samefile(source, path) or _is_same_device(source, path)
    except OSError:
        return os.path.realpath(source) == str(path)


def _is_same_device(source: str, path: Path) -> bool:
    """Two nodes of one device."""
    one, other = os.stat(source), path.stat()
    return one.st_rdev == other.st_rdev != 0
