"""A guest's XML for a throw-away copy of it: nothing in it reaches anything of the host, the network or the guest.

What may stay is listed; all else goes, also what a newer libvirt has that nobody here has heard of.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from vmbackup.hypervisor.disk_element import target_of
from vmbackup.hypervisor.rebuild.placement import size_of
from vmbackup.hypervisor.xmltree import Element, element, parse, render

AGENT_CHANNEL = "org.qemu.guest_agent.0"
_KEPT = {
    "name", "uuid", "genid", "memory", "vcpu", "vcpus", "iothreads", "iothreadids", "os", "features", "cpu", "clock",
    "pm", "devices", "sysinfo", "launchSecurity", "keywrap",
}  # fmt: skip
_PLAIN_DEVICES = {"emulator", "memballoon", "panic", "iommu", "hub"}
_INPUTS = {"tablet", "mouse", "keyboard"}
# Cards that show a picture without a graphics server of their own.
_CARDS = {"vga", "cirrus", "bochs", "virtio", "ramfb"}
_X86 = {"x86_64", "i686"}
# What a guest may miss when it starts, in words: told where a drill fails.
_MISSED = {
    "hostdev": "host devices",
    "filesystem": "folders of the host",
    "shmem": "shared memory",
    "redirdev": "redirected devices",
    "memory": "memory devices",
}


@dataclass(frozen=True)
class Isolated:
    """The XML; whether the guest has a channel for its agent; what was left out that the guest may miss, in words."""

    xml: str
    has_agent: bool
    left_out: tuple[str, ...]


def isolate(xml: str, targets: Collection[str], memory: int | None = None, title: str = "") -> Isolated:
    """The guest with the disks of `targets` only, no network, a serial console and a screen.

    `memory` in bytes, what it has at its start unless told; `title` is what people read in a list. Raises ValueError
    where `xml` is not a domain.
    """
    root = parse(xml)
    devices = root.find("devices")
    if root.tag != "domain" or devices is None:
        raise ValueError(f"<{root.tag}> is not a domain with devices")
    left_out = _left_out(root, devices, targets)
    _set_memory(root, memory)
    _drop(root, lambda child: child.tag not in _KEPT)
    root.extend([element("title", None, title)] * bool(title))
    _machine(root)
    _devices(root, devices, targets)
    for tag, what in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        root.append(element(tag, None, what))
    return Isolated(render(root), devices.find("channel") is not None, left_out)


def _left_out(root: Element, devices: Element, targets: Collection[str]) -> tuple[str, ...]:
    found = [words for tag, words in _MISSED.items() if devices.find(tag) is not None]
    if others := [name for disk in devices.findall("disk") if (name := target_of(disk)) not in targets]:
        found.append(f"the drives {', '.join(others)}")
    if devices.find("tpm") is not None and not any(map(_is_emulated, devices.findall("tpm"))):
        found.append("the host's TPM")
    if any(child.tag.endswith("}commandline") for child in root):
        found.append("its own arguments for QEMU")
    return tuple(found)


def _set_memory(root: Element, memory: int | None) -> None:
    """In one piece, with what a balloon takes away at the start gone: cells and slots mean nothing here."""
    sizes = [size for tag in ("currentMemory", "memory") if (size := size_of(root.find(tag)))]
    own = root.find("memory")
    if own is None:
        own = element("memory")
        root.insert(0, own)
    own.attrib = {"unit": "KiB"}
    own.text = str((memory or min(sizes, default=1 << 30)) >> 10)
    for cpu in root.findall("cpu"):
        _drop(cpu, lambda child: child.tag == "numa")


def _machine(root: Element) -> None:
    for os in root.findall("os"):
        _drop(os, lambda child: child.tag == "bootmenu")
    for vcpu in root.findall("vcpu"):
        for name in ("cpuset", "placement"):
            vcpu.attrib.pop(name, None)


def _devices(root: Element, devices: Element, targets: Collection[str]) -> None:
    kind = root.find("./os/type")
    arch = kind.get("arch", "x86_64") if kind is not None else "x86_64"
    screen = _screen(devices.find("video"), arch)
    console = _console(devices)
    _drop(devices, lambda device: not _keep(device, targets))
    devices.append(screen)
    devices.append(console)


def _keep(device: Element, targets: Collection[str]) -> bool:
    """Whether a device may stay; what of it reaches the host is taken off."""
    if device.tag in _PLAIN_DEVICES:
        return True
    change = _CHANGED.get(device.tag)
    return change is not None and change(device, targets)


def _disk(disk: Element, targets: Collection[str]) -> bool:
    _drop(disk, lambda child: child.tag in ("shareable", "transient", "iotune", "mirror"))
    for name in ("rawio", "sgio"):
        disk.attrib.pop(name, None)
    return target_of(disk) in targets


def _controller(device: Element, _targets: Collection[str]) -> bool:
    for target in device.findall("target"):
        _drop(target, lambda child: child.tag == "node")  # of the memory cells that are gone
    return True


def _input(device: Element, _targets: Collection[str]) -> bool:
    return device.get("type") in _INPUTS


def _watchdog(device: Element, _targets: Collection[str]) -> bool:
    device.set("action", "none")
    return True


def _rng(device: Element, _targets: Collection[str]) -> bool:
    _drop(device, lambda child: child.tag == "backend")
    device.append(element("backend", {"model": "random"}, "/dev/urandom"))
    return True


def _tpm(device: Element, _targets: Collection[str]) -> bool:
    return _is_emulated(device)


def _is_emulated(device: Element) -> bool:
    return device.find("./backend[@type='emulator']") is not None


def _channel(device: Element, _targets: Collection[str]) -> bool:
    """Only the agent's, through a socket that libvirt makes."""
    target = device.find("target")
    if target is None or target.get("name") != AGENT_CHANNEL:
        return False
    device.set("type", "unix")
    target.attrib.pop("state", None)
    _drop(device, lambda child: child.tag not in ("target", "address"))
    return True


_CHANGED: dict[str, Callable[[Element, Collection[str]], bool]] = {
    "disk": _disk, "controller": _controller, "input": _input, "watchdog": _watchdog, "rng": _rng, "tpm": _tpm,
    "channel": _channel,
}  # fmt: skip


def _screen(video: Element | None, arch: str) -> Element:
    """The guest's own card where it needs no graphics server, else a plain one."""
    model = video.find("model") if video is not None else None
    kind = model.get("type", "") if model is not None else ""
    plain = kind if kind in _CARDS else "vga" if arch in _X86 else "virtio"
    made = element("video", None, None, element("model", {"type": plain}))
    address = video.find("address") if video is not None else None
    if address is not None and plain == kind:
        made.append(address)
    return made


def _console(devices: Element) -> Element:
    """The first serial port or console, as a pty that is read here; a serial port where the guest has neither."""
    found = devices.find("serial")
    if found is None:
        found = devices.find("console")
    if found is None:
        return element("serial", {"type": "pty"})
    parts = [child for child in found if child.tag in ("target", "address")]
    return element(found.tag, {"type": "pty"}, None, *parts)


def _drop(parent: Element, unwanted: Callable[[Element], bool]) -> None:
    for child in [child for child in parent if unwanted(child)]:
        parent.remove(child)
