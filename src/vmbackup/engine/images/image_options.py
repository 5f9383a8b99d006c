"""What a restored image is made like: the options of the original, its encryption, its space."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from vmbackup.errors import UsageError
from vmbackup.repository.records import DiskRecord

Format = Literal["qcow2", "raw"]
Preallocation = Literal["off", "metadata", "falloc", "full"]

# Options of qemu-img create that are taken over from the original image, where it had them.
_TAKEN_OVER = ("cluster_size", "compat", "lazy_refcounts", "compression_type", "extended_l2", "refcount_bits")
_VALUE = re.compile(r"[A-Za-z0-9.]+")  # what a value may be: options come from a guest's image


@dataclass(frozen=True)
class ImageOptions:
    """`create`: options of qemu-img; `passphrase`: the image is encrypted with LUKS."""

    format: Format
    create: dict[str, str] = field(default_factory=dict)
    preallocation: Preallocation = "off"
    passphrase: bytes | None = field(default=None, repr=False)

    @property
    def driver(self) -> str:
        """QEMU's driver for it."""
        return "luks" if self.format == "raw" and self.passphrase is not None else self.format

    @property
    def reads_as_zeros(self) -> bool:
        """Where nothing was written: not what is decrypted and was never encrypted, as are clusters made beforehand."""
        return self.passphrase is None or (self.driver == "qcow2" and self.preallocation == "off")

    def told(self) -> dict[str, str]:
        """What an image that was begun must agree in, to be gone on with."""
        return {**self.create, "format": self.driver, "preallocation": self.preallocation}


@dataclass(frozen=True)
class ImageWishes:
    """`format` None: qcow2; `preallocation` None: as the original.

    `passphrases`: by target; "" that of all others that were encrypted. `plain`: what was may become readable.
    """

    format: Format | None = None
    preallocation: Preallocation | None = None
    passphrases: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    plain: bool = False


def was_encrypted(disk: DiskRecord) -> bool:
    """Whether the original image was: QEMU decrypts it for a backup."""
    return "encryption" in disk.attributes


def image_options(disk: DiskRecord, wishes: ImageWishes) -> ImageOptions:
    """How a disk's new image is made. Raises UsageError."""
    format_ = wishes.format or "qcow2"
    passphrase = chosen_passphrase(disk, wishes)
    options = ImageOptions(format_, preallocation=_preallocation(disk, wishes, format_), passphrase=passphrase)
    if format_ == "raw":
        return options
    return replace(options, create={name: disk.attributes[name] for name in _TAKEN_OVER if _is_usable(disk, name)})


def chosen_passphrase(disk: DiskRecord, wishes: ImageWishes) -> bytes | None:
    """The passphrase for a disk's image, None for a plain one. Raises UsageError: never silently plain."""
    passphrase = wishes.passphrases.get(disk.target)
    if passphrase is not None or wishes.plain or not was_encrypted(disk):
        return passphrase
    passphrase = wishes.passphrases.get("")
    if passphrase is None:
        raise UsageError(
            f"disk {disk.target} was encrypted, and would be restored readable",
            f"name its passphrase with --luks-passphrase-file {disk.target}=FILE, or say --plain to have it readable",
        )
    return passphrase


def _preallocation(disk: DiskRecord, wishes: ImageWishes, format_: Format) -> Preallocation:
    chosen = wishes.preallocation
    if chosen is None:
        original = disk.attributes.get("preallocation")
        if format_ == "raw" or disk.format != "qcow2":
            return "off"
        return "metadata" if original == "metadata" else "falloc" if original == "falloc" else "off"
    if chosen == "metadata" and format_ == "raw":
        raise UsageError("a raw image has no metadata", "use --preallocation falloc or full")
    return chosen


def _is_usable(disk: DiskRecord, name: str) -> bool:
    return _VALUE.fullmatch(disk.attributes.get(name, "")) is not None
