"""Where the disks of a guest will lie after a restore: what its definition is made with."""

from dataclasses import dataclass
from pathlib import Path

from vmbackup.engine.images.image_options import image_options
from vmbackup.engine.restore.flat import RestoreOptions, choose_targets
from vmbackup.repository.points import Point


@dataclass(frozen=True)
class ImagePlace:
    """An image, there or not yet (`new`). `format`: as libvirt calls it (an encrypted raw one is raw)."""

    path: Path
    format: str
    device: bool = False
    encrypted: bool = False
    new: bool = False


def image_places(point: Point, options: RestoreOptions) -> dict[str, ImagePlace]:
    """By target, of the disks that a restore with `options` writes. Raises what the restore would raise of them."""
    targets = choose_targets(point, options)
    places = {}
    for disk in targets.new:
        image = image_options(disk, options.wishes)
        encrypted = image.passphrase is not None
        places[disk.target] = ImagePlace(options.new_path(disk), image.format, encrypted=encrypted, new=True)
    for one in targets.onto:
        there = one.image
        places[one.disk.target] = ImagePlace(there.path, there.format, there.is_device, there.encrypted)
    return places
