"""The images of a booted guest: overlays on what is served, and the disks that it is moved to."""

import contextlib
import os
import shutil
from pathlib import Path

from vmbackup.engine.boot.records import Booted, BootedDisk
from vmbackup.engine.images.qemu_img import image_info, run_tool
from vmbackup.engine.images.target_errors import told
from vmbackup.errors import TargetError

# Options of qemu-img create that are taken over from the original image; but an old format, which holds no bitmaps.
_OPTIONS = ("cluster_size", "lazy_refcounts", "compression_type", "extended_l2")
_PASSABLE = 0o711  # QEMU's user passes, and nobody else needs to list it


def make_folder(path: Path, mode: int) -> None:
    """A folder, with those above it passable for QEMU's user; what is there stays as it is. Raises TargetError."""
    with told(path):
        for folder in [*reversed(path.parents), path]:
            if not folder.is_dir():
                folder.mkdir()
                folder.chmod(mode if folder == path else _PASSABLE)


def make_overlays(booted: Booted) -> None:
    """An empty image above each served disk, in a folder that only QEMU and root may enter. Raises TargetError."""
    folder = Path(booted.folder)
    make_folder(folder, 0o700)
    with told(folder):
        os.chown(folder, *booted.owner)
    for disk in booted.disks:
        below = f"nbd+unix:///{disk.target}?socket={booted.socket}"
        _create(booted, Path(booted.overlay(disk.target)), disk, below, "raw")


def make_image(booted: Booted, disk: BootedDisk) -> str:
    """The disk to be, as yet an empty image above the overlay. Raises TargetError."""
    path = Path(booted.image(disk.target))
    path.unlink(missing_ok=True)  # of a finish that was killed before the guest had it
    _create(booted, path, disk, booted.overlay(disk.target), "qcow2")
    return str(path)


def _create(booted: Booted, path: Path, disk: BootedDisk, below: str, kind: str) -> None:
    options = [f"{name}={disk.attributes[name]}" for name in _OPTIONS if name in disk.attributes]
    command = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", kind]
    run_tool([*command, *(["-o", ",".join(options)] if options else []), str(path), str(disk.size)], path)
    with told(path):
        os.chmod(path, 0o600)
        os.chown(path, *booted.owner)


def hangs(booted: Booted, disk: BootedDisk) -> bool:
    """Whether the disk to be is not there yet, or not whole: QEMU takes the name of its backing out when it is."""
    path = Path(booted.image(disk.target))
    return not path.exists() or "backing-filename" in image_info(path)


def check_whole(booted: Booted, disk: BootedDisk) -> int:
    """Syncs a disk that was moved; gives the bytes that it takes. Raises TargetError where it is not whole."""
    path = Path(booted.image(disk.target))
    found = image_info(path)
    size = found.get("virtual-size")
    if "backing-filename" in found or not isinstance(size, int) or size < disk.size:
        raise TargetError(f"{path} is not whole: {booted.name} goes on as it was", "run the same command again")
    with told(path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            return os.fstat(fd).st_blocks * 512
        finally:
            os.close(fd)


def written_bytes(booted: Booted) -> int:
    """What the overlays take on their file system."""
    total = 0
    for disk in booted.disks:
        with contextlib.suppress(OSError):
            total += os.stat(booted.overlay(disk.target)).st_blocks * 512
    return total


def remove_overlays(booted: Booted) -> None:
    """The folder with all that is in it. Raises TargetError."""
    with told(Path(booted.folder)), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(booted.folder)
    with contextlib.suppress(OSError):  # others are booted
        os.rmdir(os.path.dirname(booted.folder))


def remove_images(booted: Booted) -> None:
    """Disks that were never finished, and their folder where nothing else is in it. Raises TargetError."""
    if booted.output is None:
        return
    for disk in booted.disks:
        with told(Path(booted.image(disk.target))):
            Path(booted.image(disk.target)).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.rmdir(booted.output)
