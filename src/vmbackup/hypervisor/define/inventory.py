"""What this host has, asked of libvirt and of /sys, as `Capabilities`."""

import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.define.capabilities import Capabilities
from vmbackup.hypervisor.define.firmware_files import installed_firmware
from vmbackup.hypervisor.failures import code_of, text_of
from vmbackup.hypervisor.rebuild.machine import nearest
from vmbackup.hypervisor.xmltree import Element, parse

_SYS = Path("/sys")
_INCOMPATIBLE = 0  # VIR_CPU_COMPARE_INCOMPATIBLE
_NO_SUPPORT = 3
_INACTIVE = 1  # VIR_CONNECT_LIST_NETWORKS_INACTIVE
_COMMAND_SECONDS = 10.0
# Capabilities.enums -> where the domain capabilities tell it.
_ENUMS = {"graphics": ("graphics", "type"), "video": ("video", "modelType"), "tpm": ("tpm", "backendModel")}
# The launch securities that older libvirts tell as features of their own.
_FEATURES = ("sev", "s390-pv", "tdx")


def read_capabilities(connection: Connection, xml: str) -> Capabilities:
    """What this host can give the guest of `xml`: asked for its architecture and the machine type it would get.

    Raises HypervisorError where it runs no guests of that kind, ValueError where `xml` is not a domain's.
    """
    root = parse(xml)
    return connection.call("ask what this host can do", partial(_read, root=root))


def _read(raw: Any, root: Element) -> Capabilities:
    told = parse(raw.getCapabilities())
    kind = root.find("./os/type")
    arch = (kind.get("arch") if kind is not None else None) or told.findtext("./host/cpu/arch") or "x86_64"
    guest, domain_type = _guest(told, arch, root.get("type", "kvm"))
    domain = guest.find(f"./domain[@type='{domain_type}']")
    machines = {
        name: each.get("canonical") or name
        for place in (guest, domain)
        for each in (place.findall("machine") if place is not None else ())
        if (name := each.text)
    }
    emulator = (domain.findtext("emulator") if domain is not None else None) or guest.findtext("emulator") or ""
    wanted = kind.get("machine") if kind is not None else None
    machine = nearest(wanted, machines) if wanted else None
    can = parse(raw.getDomainCapabilities(emulator or None, arch, machine, domain_type, 0))
    cells = told.findall("./host/topology/cells/cell")
    return Capabilities(
        arch=arch,
        domain_type=domain_type,
        emulator=emulator,
        machines=machines,
        cpu_modes=frozenset(m.get("name", "") for m in can.findall("./cpu/mode") if m.get("supported") == "yes"),
        cpu_fits=partial(_fits, raw, emulator or None, arch, machine, domain_type),
        enums=_enums(can),
        firmware=installed_firmware(arch),
        networks=frozenset(network.name() for network in raw.listAllNetworks(0)),
        idle_networks=frozenset(network.name() for network in raw.listAllNetworks(_INACTIVE)),
        bridges=frozenset(path.parent.name for path in (_SYS / "class/net").glob("*/bridge")),
        switches=_switches(),
        interfaces=frozenset(path.name for path in (_SYS / "class/net").glob("*")),
        filters=frozenset(each.name() for each in _listed(raw, "listAllNWFilters")),
        addresses=_addresses(),
        nodes=frozenset(int(cell.get("id", "0")) for cell in cells) or frozenset((0,)),
        cpus=frozenset(int(cpu.get("id", "0")) for cell in cells for cpu in cell.findall("./cpus/cpu")),
        memory_bytes=int(raw.getInfo()[1]) << 20,
        pages=_pages(cells),
        devices=frozenset(_devices()),
        secrets=frozenset(name for each in _listed(raw, "listAllSecrets") for name in _names(each)),
        security_models=frozenset(each.text or "" for each in told.findall("./host/secmodel/model")),
        launch_security=_launch_security(can),
        libvirt=int(raw.getLibVersion()),
    )


def _guest(told: Element, arch: str, wanted: str) -> tuple[Element, str]:
    """The <arch> of the host's capabilities, and the domain type that comes nearest."""
    for found in told.findall("./guest/arch"):
        types = [domain.get("type") for domain in found.findall("domain")]
        if found.get("name") == arch and (wanted in types or "qemu" in types):
            return found, wanted if wanted in types else "qemu"
    raise HypervisorError(
        f"this host's libvirt runs no {arch} guests of type {wanted}",
        f"install QEMU for {arch} and restart libvirtd; 'virsh capabilities' shows what it has",
    )


def _fits(raw: Any, emulator: str | None, arch: str, machine: str | None, domain_type: str, cpu: str) -> bool:
    """Whether the host can give a <cpu>. True where libvirt cannot tell: its start then does."""
    try:
        answer: int = raw.compareHypervisorCPU(emulator, arch, machine, domain_type, cpu, 0)
    except lv.binding().libvirtError as error:
        if code_of(error) in (_NO_SUPPORT, lv.OPERATION_UNSUPPORTED):
            return True
        return "CPU model" not in text_of(error)
    return answer != _INCOMPATIBLE


def _enums(can: Element) -> dict[str, frozenset[str]]:
    found = {}
    for name, (tag, enum) in _ENUMS.items():
        device = can.find(f"./devices/{tag}")
        if device is None:
            continue
        values = device.findall(f"./enum[@name='{enum}']/value") if device.get("supported") == "yes" else []
        found[name] = frozenset(value.text or "" for value in values)
    return found


def _launch_security(can: Element) -> frozenset[str]:
    told = can.find("./features/launchSecurity")
    kinds = told.findall("./enum[@name='sectype']/value") if told is not None and _yes(told) else []
    features = [name for name in _FEATURES if (f := can.find(f"./features/{name}")) is not None and _yes(f)]
    return frozenset([kind.text or "" for kind in kinds] + features)


def _yes(feature: Element) -> bool:
    return feature.get("supported") == "yes"


def _pages(cells: list[Element]) -> dict[int, int]:
    found: dict[int, int] = {}
    base = os.sysconf("SC_PAGE_SIZE") >> 10
    for page in (page for cell in cells for page in cell.findall("pages")):
        size = int(page.get("size", "0"))
        if size > base:
            found[size] = found.get(size, 0) + int(page.text or "0")
    return found


def _listed(raw: Any, function: str) -> list[Any]:
    """All of a kind; none where this connection has no driver for it."""
    try:
        return list(getattr(raw, function)(0))
    except lv.binding().libvirtError:
        return []


def _names(secret: Any) -> tuple[str, str]:
    return secret.UUIDString(), secret.usageID()


def _devices() -> Iterator[str]:
    """The host's devices by the names of `rebuild_devices.host_device`."""
    for path in (_SYS / "bus/pci/devices").glob("*"):
        yield f"pci {path.name}"
    for path in (_SYS / "bus/mdev/devices").glob("*"):
        yield f"mdev {path.name}"
    for path in (_SYS / "class/scsi_host").glob("host*"):
        yield f"scsi scsi_{path.name}"
    for path in (_SYS / "kernel/config/target/vhost").glob("naa.*"):
        yield f"scsi_host {path.name}"
    for path in (_SYS / "bus/usb/devices").glob("*"):
        if (path / "idVendor").exists():
            yield f"usb {_word(path / 'idVendor')}:{_word(path / 'idProduct')}"
            yield f"usb bus {_word(path / 'busnum')} device {_word(path / 'devnum')}"


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _addresses() -> frozenset[str] | None:
    """The addresses of this host's interfaces; None where they cannot be told."""
    said = _output(["ip", "-json", "address"])
    try:
        return frozenset(each["local"] for link in json.loads(said) for each in link["addr_info"] if "local" in each)
    except (ValueError, KeyError, TypeError):
        return None


def _switches() -> frozenset[str]:
    """Bridges of Open vSwitch."""
    return frozenset(_output(["ovs-vsctl", "list-br"]).split())


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=_COMMAND_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
