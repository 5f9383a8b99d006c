"""Our bitmaps in the images of a domain: found, and taken away where nobody has the image open.

Only a disk that its domain calls qcow2 is looked into: what a raw disk holds is the guest's, also where it looks like a
qcow2 with bitmaps of a vmbackup inside the guest.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.disk_element import target_of
from vmbackup.hypervisor.disk_secret import secret_of
from vmbackup.hypervisor.disks import format_of, local_path
from vmbackup.hypervisor.domains import MIGRATED_AWAY, describe
from vmbackup.hypervisor.images import holds_qcow2, image_chain
from vmbackup.hypervisor.off.image import OffImage
from vmbackup.hypervisor.xmltree import Element, parse


def qcow2_disks(domain: Any) -> dict[str, Element]:
    """Target -> <disk> of the disks that can have a bitmap."""
    disks = parse(domain.XMLDesc(0)).findall("./devices/disk")
    return {target_of(disk): disk for disk in disks if format_of(disk) == "qcow2"}


def names_in(domain: Any) -> tuple[set[str], list[str]]:
    """All bitmaps that the images tell of, anybody's, and sentences on images that could not be looked at.

    A running QEMU does not show those born in it.
    """
    names: set[str] = set()
    trouble = []
    for target, disk in qcow2_disks(domain).items():
        try:
            path = local_path(domain.connect(), disk)
            names |= {name for image in (image_chain(path, "qcow2") if path else ()) for name in image.bitmaps}
        except HypervisorError as error:
            trouble.append(f"disk {target} could not be looked at: {error}")
    return names, trouble


def take_away(domain: Any, name: str, paths: Mapping[str, str]) -> bool:
    """Removes a bitmap, sound or not, from each image of a domain that is off and from those below. True if one was.

    `paths` are more images, by target. One that is in use has moved to another host: its bitmaps are that one's now; on
    a device, where no lock tells of that, those of a domain that has moved are left alone.
    Raises HypervisorError for the first that cannot be done, when all others are.
    """
    raw, found, trouble = domain.connect(), False, []
    moved = describe(domain).state == MIGRATED_AWAY
    for target, path, disk in _places(domain, paths):
        try:
            place = path if disk is None else local_path(raw, disk)
            if not (moved and Path(place).is_block_device()):
                found |= _take_away(raw, target, place, disk, name)
        except JobConflictError:
            continue
        except HypervisorError as error:
            trouble.append(HypervisorError(f"disk {target}: {error.message}", error.hint))
    if trouble:
        raise trouble[0]
    return found


def _places(domain: Any, paths: Mapping[str, str]) -> Iterator[tuple[str, str, Element | None]]:
    """The domain's own disks, then images that once were."""
    own = qcow2_disks(domain)
    for target, disk in own.items():
        yield target, "", disk
    for target, path in paths.items():
        if target not in own or local_path(domain.connect(), own[target]) != path:
            yield target, path, None


def _take_away(raw: Any, target: str, path: str, disk: Element | None, name: str) -> bool:
    if not path or not holds_qcow2(path):
        return False
    having = [image for image in image_chain(path, "qcow2") if name in image.bitmaps]
    for image in having:
        secret = secret_of(raw, disk) if disk is not None and "encryption" in image.attributes else None
        OffImage(target, image.path, "qcow2", (), secret).remove_bitmap(name)
    return bool(having)
