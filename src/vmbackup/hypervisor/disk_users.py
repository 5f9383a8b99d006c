"""Which guests have an image or a block device as a disk, whether they run or not."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.disks import volume_path
from vmbackup.hypervisor.xmltree import Element, parse

_INACTIVE = 2  # VIR_DOMAIN_XML_INACTIVE


@dataclass(frozen=True)
class DiskUser:
    """A guest and its disk."""

    domain: str
    uuid: str
    target: str
    active: bool


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
            if any(_is_same(source, path) for source in _sources(raw, disk)):
                target = disk.find("target")
                name = "" if target is None else target.get("dev", "")
                yield DiskUser(domain.name(), domain.UUIDString(), name, active)


def _sources(raw: Any, disk: Element) -> Iterator[str]:
    for source in disk.iter("source"):
        if found := source.get("file") or source.get("dev"):
            yield found
        elif source.get("pool"):
            try:
                yield volume_path(raw, source.get("pool", ""), source.get("volume", ""))
            except HypervisorError:
                continue  # its pool is not there, and so is no file of it


def _is_same(source: str, path: Path) -> bool:
    try:
        return os.path.samefile(source, path) or _is_same_device(source, path)
    except OSError:
        return os.path.realpath(source) == str(path)


def _is_same_device(source: str, path: Path) -> bool:
    """Two nodes of one device."""
    one, other = os.stat(source), path.stat()
    return one.st_rdev == other.st_rdev != 0
