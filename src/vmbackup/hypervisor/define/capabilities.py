"""What this host can give a guest, as plain values: pure code asks them, `read` fills them from libvirt."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Firmware:
    """A UEFI build of the host, by QEMU's descriptors. `machines` are patterns; `nvram_bytes` the template's length."""

    executable: str
    template: str
    nvram_bytes: int
    secure_boot: bool
    enrolled_keys: bool
    machines: tuple[str, ...] = ("*",)
    format: str = "raw"


def _any_cpu(_xml: str) -> bool:
    return True


@dataclass(frozen=True)
class Capabilities:
    """A host's, for guests of one architecture and domain type.

    `domain_type`: what it runs them as: "kvm", or "qemu" where it has no KVM. `machines`: names and aliases -> the
    versioned name. `cpu_fits`: of a <cpu> element as text, whether the host can give it. `enums`: allowed values by
    device, as "graphics", "video", "tpm"; what is missing there is not known, and nothing is changed for it.
    `idle_networks`: those of `networks` that are not active. `switches`: bridges of Open vSwitch. `addresses`: of its
    network interfaces, None where unknown. `pages`: size of a hugepage in KiB -> how many the host has set aside.
    `devices`: "pci 0000:03:00.0", "usb 046d:c52b", "mdev UUID", "scsi scsi_host0". `secrets`: UUIDs and usages.
    `present`: whether a path is there.
    """

    arch: str = "x86_64"
    domain_type: str = "kvm"
    emulator: str = ""
    machines: Mapping[str, str] = field(default_factory=dict)
    cpu_modes: frozenset[str] = frozenset(("host-passthrough", "host-model", "maximum", "custom"))
    cpu_fits: Callable[[str], bool] = _any_cpu
    enums: Mapping[str, frozenset[str]] = field(default_factory=dict)
    firmware: tuple[Firmware, ...] = ()
    networks: frozenset[str] = frozenset()
    idle_networks: frozenset[str] = frozenset()
    bridges: frozenset[str] = frozenset()
    switches: frozenset[str] = frozenset()
    interfaces: frozenset[str] = frozenset()
    filters: frozenset[str] = frozenset()
    addresses: frozenset[str] | None = None
    nodes: frozenset[int] = frozenset((0,))
    cpus: frozenset[int] = frozenset()
    memory_bytes: int = 0
    pages: Mapping[int, int] = field(default_factory=dict)
    devices: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    security_models: frozenset[str] = frozenset()
    launch_security: frozenset[str] = frozenset()
    libvirt: int = 0
    present: Callable[[str], bool] = os.path.exists
