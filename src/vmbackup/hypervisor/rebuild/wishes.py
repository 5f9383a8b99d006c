"""What a restored guest shall be, and what came of it: the plain values around `rebuild`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# What a host may lack. "placement" (NUMA nodes, CPUs, hugepages, memory) costs a guest speed, and is no reason to
# refuse it; each of the others changes what the guest is.
Kind = Literal[
    "placement", "machine", "firmware", "tpm", "host-devices", "launch-security", "network", "filters", "shares",
    "kernel", "disks", "secrets",
]  # fmt: skip
# What a guest may go without if its owner says so.
OPTIONAL: tuple[Kind, ...] = ("host-devices", "launch-security", "tpm", "filters", "shares", "kernel", "disks")
EVERY_NETWORK = "*"
NO_NETWORK = "none"


@dataclass(frozen=True)
class NbdSource:
    """An export of an NBD server: on a unix socket, else on `host` and `port`.

    `reconnect_seconds`: how long the guest waits for a server that went away; libvirt knows it from 9.2 on, and
    it is left out for an older one.
    """

    export: str
    socket: Path | None = None
    host: str = "127.0.0.1"
    port: int = 10809
    reconnect_seconds: int | None = None


@dataclass(frozen=True)
class NewDisk:
    """Where a disk of the guest lies now.

    `format`: that of the image, raw for an export. `block`: the path is a block device. `backing`: what an overlay
    lies on, told to libvirt so that it does not have to look. `driver`: attributes of <driver> put over the
    original's, None to take one away. `encrypted`: the image asks for the secret that the original asked for.
    """

    source: Path | NbdSource
    format: str = "qcow2"
    block: bool = False
    backing: NbdSource | None = None
    driver: Mapping[str, str | None] = field(default_factory=dict)
    encrypted: bool = False


@dataclass(frozen=True)
class Wishes:
    """What the guest shall be.

    `name`: None keeps the original's. `networks`: what an interface was connected to -> a network or bridge of this
    host ("none": the interface goes; "*" stands for every other), or None for a guest without any interface.
    `disks`: by target; a disk that is not named is left out, with a note. `nvram`: where the UEFI variables of the
    restore point will lie, with their length in bytes; None where it has none. `tpm`: its TPM's state will be put in
    place. `without`: kinds that the guest may do without where this host lacks them. `boot_files`: of the files of its
    host that the guest is started from, by path, those that will lie elsewhere here.
    """

    name: str | None = None
    keep_uuid: bool = False
    keep_mac: bool = False
    networks: Mapping[str, str] | None = field(default_factory=dict)
    disks: Mapping[str, NewDisk] = field(default_factory=dict)
    nvram: Path | None = None
    nvram_bytes: int = 0
    tpm: bool = False
    without: frozenset[Kind] = frozenset()
    boot_files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Lack:
    """Something of the guest that this host does not have; it was taken out of the XML. `hint` is what mends it."""

    kind: Kind
    message: str
    hint: str = ""

    @property
    def grave(self) -> bool:
        """The guest would be another one without it."""
        return self.kind != "placement"

    def __str__(self) -> str:
        """The sentence."""
        return self.message


@dataclass(frozen=True)
class Rebuilt:
    """A guest for this host.

    `notes`: what was changed, a sentence each; `warnings`: what of the guest is lost or worse, though the host lacks
    nothing; `lacking`: what the host lacks: it is not in `xml`, and the caller decides whether the guest may go
    without. `nvram` is the file that the guest's firmware wants, None where it wants none, or makes one itself;
    `tpm_version`: "2.0" or "1.2" where it has an emulated TPM.
    """

    xml: str
    name: str
    uuid: str
    notes: tuple[str, ...]
    lacking: tuple[Lack, ...]
    warnings: tuple[str, ...] = ()
    nvram: Path | None = None
    tpm_version: str | None = None
