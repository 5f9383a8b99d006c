"""An image or a block device that is there, looked at before a restore writes to it."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vmbackup.engine.images.image_locks import is_open_in_qemu
from vmbackup.engine.images.image_options import Format
from vmbackup.engine.images.in_use import DeviceClaim, refuse_file_in_use
from vmbackup.engine.images.target_errors import in_use, told
from vmbackup.errors import NotFoundError, TargetError


class DiskUser(Protocol):
    """A guest that has an image as a disk, running or not."""

    @property
    def domain(self) -> str:
        """Its name."""

    @property
    def uuid(self) -> str:
        """Its UUID."""

    @property
    def target(self) -> str:
        """The disk, as vda."""

    @property
    def active(self) -> bool:
        """Whether it runs."""

    @property
    def below(self) -> bool:
        """Whether the image is not the disk itself, but one that the disk builds on."""


DiskUsers = Callable[[Path], Sequence[DiskUser]]
"""Which guests have a path as their disk."""


def nobody(_path: Path) -> Sequence[DiskUser]:
    """No hypervisor was asked."""
    return ()


@dataclass(frozen=True)
class ExistingImage:
    """`path`: as it was named; `real`: without links. `size`: what a guest sees of it, in bytes."""

    path: Path
    real: Path
    format: Format
    size: int
    is_device: bool
    encrypted: bool

    @property
    def identity(self) -> tuple[int, ...]:
        """The same for each of its names, hard links and device nodes too."""
        found = self.real.stat()
        return (found.st_rdev,) if self.is_device else (found.st_dev, found.st_ino)

    def claim(self) -> DeviceClaim | None:
        """Keeps the kernel's other users off while it is written. Raises TargetError."""
        if self.is_device:
            return DeviceClaim(self.real)
        refuse_file_in_use(self.real)
        return None


def look_at(path: Path, format_: Format | None) -> ExistingImage:
    """The image of that path. A device is raw unless `format_` says otherwise, a file what it says of itself.

    Raises NotFoundError, TargetError.
    """
    try:
        real = path.resolve(strict=True)
        found = real.stat()
    except FileNotFoundError:
        raise NotFoundError(f"there is no {path}", "--to wants what is there; --output makes new images") from None
    except OSError as error:
        raise TargetError(f"cannot look at {path}: {error.strerror}") from error
    is_device = stat.S_ISBLK(found.st_mode)
    if not is_device and not stat.S_ISREG(found.st_mode):
        raise TargetError(f"{path} is neither an image nor a block device", "name a file or a device")
    if is_open_in_qemu(real):
        raise in_use(path, "QEMU has it open: a guest's, a backup's or another restore's")
    told_format = format_ or ("raw" if is_device else None)
    if told_format == "raw":
        return ExistingImage(path, real, "raw", _raw_size(real), is_device, encrypted=False)
    return _of_info(path, real, _info(path, real, told_format), is_device, trusted=format_ is not None)


def _raw_size(path: Path) -> int:
    with told(path), open(path, "rb") as file:
        return file.seek(0, os.SEEK_END)


def _of_info(path: Path, real: Path, info: dict[str, Any], is_device: bool, *, trusted: bool) -> ExistingImage:
    format_ = info["format"]
    encrypted = bool(info.get("encrypted"))
    if format_ not in ("qcow2", "raw", "luks"):
        raise TargetError(f"{path} is a {format_} image", "restore to a new image, or to qcow2, raw or a device")
    if format_ == "qcow2" and not trusted and _names_others(info):
        # A guest may have written a header that names any file of this host into what its owner knows as raw.
        hint = "say --format qcow2 if it is your overlay; or restore to a new image"
        raise TargetError(f"{path} builds on another file, as its content says", hint)
    kind: Format = "qcow2" if format_ == "qcow2" else "raw"
    return ExistingImage(path, real, kind, info["virtual-size"], is_device, encrypted)


def _names_others(info: dict[str, Any]) -> bool:
    data = info.get("format-specific", {}).get("data", {})
    return bool(info.get("backing-filename") or data.get("data-file"))


def _info(path: Path, real: Path, format_: Format | None) -> dict[str, Any]:
    """What qemu-img says of it. Raises TargetError."""
    command = ["qemu-img", "info", "-U", "--output=json", *(["-f", format_] if format_ else []), "--", str(real)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
    except FileNotFoundError:
        raise TargetError("qemu-img is not installed", "apt install qemu-utils") from None
    if done.returncode:
        raise TargetError(f"{path} cannot be read as an image: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
