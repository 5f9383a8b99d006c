"""The other devices: those of the host, shared folders, consoles and sockets."""

import os

from vmbackup.hypervisor.rebuild.draft import Draft, drop
from vmbackup.hypervisor.xmltree import Element

_WITHOUT_DEVICE = "connect it, or let the guest do without: --without host-devices"
# Where libvirt itself puts the sockets of channels: it does so again.
_LIBVIRTS = ("/var/lib/libvirt/", "/run/libvirt/", "/var/run/libvirt/")
_ITCO = 9_001_000  # libvirt 9.1
_VSOCK = "/dev/vhost-vsock"
_CONSOLES = ("serial", "console", "parallel", "channel")


def fit(draft: Draft) -> None:
    """Every kind."""
    _host_devices(draft)
    _host_memory(draft)
    _shares(draft)
    _leases(draft)
    for tag in _CONSOLES:
        for console in draft.devices.findall(tag):
            _console(draft, console)
    _vsock(draft)
    _watchdog(draft)
    _tuned_devices(draft)
    _arguments(draft)


def _host_devices(draft: Draft) -> None:
    for device in [*draft.devices.findall("hostdev"), *draft.devices.findall("interface[@type='hostdev']")]:
        name = host_device(device)
        if name is not None and name not in draft.host.devices:
            draft.devices.remove(device)
            draft.lack("host-devices", f"the host device {name} of the guest is not here", _WITHOUT_DEVICE)
        elif name is not None and draft.clone:
            draft.note(f"the guest has the host device {name}: it cannot run while another guest has it")


def host_device(device: Element) -> str | None:
    """Its name in `Capabilities.devices`; None for one that names no device of a host."""
    kind = device.get("type", "pci")
    source = device.find("source")
    if source is None:
        return None
    address = source.find("address")
    if kind in ("pci", "hostdev", "interface") and address is not None:
        domain, bus, slot = (_hex(address, part) for part in ("domain", "bus", "slot"))
        return f"pci {domain:04x}:{bus:02x}:{slot:02x}.{_hex(address, 'function'):x}"
    if kind == "mdev" and address is not None:
        return f"mdev {address.get('uuid', '')}"
    if kind == "usb":
        return _usb(source, address)
    adapter = source.find("adapter")
    if kind == "scsi" and adapter is not None:
        return f"scsi {adapter.get('name', '')}"
    if kind == "scsi_host":
        return f"scsi_host {source.get('wwpn', '')}"
    return None if kind == "scsi" else f"{kind} {source.get('path') or source.get('dev') or ''}".strip()


def _hex(address: Element, part: str) -> int:
    try:
        return int(address.get(part, "0"), 16)
    except ValueError:
        return 0


def _usb(source: Element, address: Element | None) -> str:
    vendor, product = source.find("vendor"), source.find("product")
    if vendor is not None and product is not None:
        return f"usb {_hex(vendor, 'id'):04x}:{_hex(product, 'id'):04x}"
    where = address.attrib if address is not None else {}
    return f"usb bus {where.get('bus', '?')} device {where.get('device', '?')}"


def _host_memory(draft: Draft) -> None:
    """Memory that is a file or device of the host: its content is in no restore point."""
    for memory in draft.devices.findall("memory"):
        path = (memory.findtext("./source/path") or "").strip()
        if path and not draft.host.present(path):
            draft.devices.remove(memory)
            draft.lack("host-devices", f"the guest's memory device on {path} is not here", _WITHOUT_DEVICE)


def _shares(draft: Draft) -> None:
    for share in draft.devices.findall("filesystem"):
        source = share.find("source")
        path = (source.get("dir") or source.get("socket") or source.get("file")) if source is not None else None
        if path and not draft.host.present(path):
            draft.devices.remove(share)
            hint = "make it, or let the guest do without: --without shares"
            draft.lack("shares", f"the folder {path} that the guest shares with its host is not here", hint)


def _leases(draft: Draft) -> None:
    if drop(draft.devices, "lease"):
        draft.note("the guest's lease of a lock manager (sanlock) belongs to its old host: it is left out")


def _console(draft: Draft, console: Element) -> None:
    _log(draft, console)
    source = console.find("source")
    if source is None:
        return
    path, kind = source.get("path", ""), console.get("type", "")
    if kind == "unix" and source.get("mode") == "bind" and console.tag == "channel":
        # The socket's name holds the original's name or id; libvirt makes one of its own.
        console.remove(source)
        if path and not path.startswith(_LIBVIRTS):
            draft.note(f"the channel's socket {path} is left to libvirt: 'virsh dumpxml' names the new one")
    elif kind == "pty":
        source.attrib.pop("path", None)
        console.attrib.pop("tty", None)
    elif _unusable(draft, kind, source, path):
        console.remove(source)
        console.set("type", "pty")
        drop(console, "protocol", "log")
        draft.note(f"the {console.tag} of the guest goes to {path or 'a port'} of its old host: it is a pty instead")


def _log(draft: Draft, console: Element) -> None:
    """What a console says is also written into a file; a guest whose log cannot be written does not start."""
    log = console.find("log")
    path = log.get("file", "") if log is not None else ""
    if log is not None and (draft.clone or not draft.host.present(os.path.dirname(path))):
        console.remove(log)
        why = "is the original's" if draft.clone else "has no folder on this host"
        draft.note(f"what the {console.tag} says is not logged: {path} {why}")


def _unusable(draft: Draft, kind: str, source: Element, path: str) -> bool:
    """A file, socket, device or port that is not here, or that the original uses."""
    if kind == "dev":
        return not draft.host.present(path)
    if kind in ("file", "unix", "pipe"):
        return draft.clone or not draft.host.present(os.path.dirname(path))
    if kind in ("tcp", "udp"):
        return draft.clone and source.get("mode") == "bind"
    return False


def _watchdog(draft: Draft) -> None:
    """A newer libvirt adds the chipset's own to every q35 guest; an older one does not know the word."""
    for dog in draft.devices.findall("watchdog[@model='itco']"):
        if draft.host.libvirt < _ITCO:
            draft.devices.remove(dog)
            draft.note("this host's libvirt cannot name the chipset's watchdog (itco): the guest is defined without")


def _vsock(draft: Draft) -> None:
    for device in draft.devices.findall("vsock"):
        if not draft.host.present(_VSOCK):
            draft.devices.remove(device)
            hint = "load it: modprobe vhost_vsock"
            draft.lack("host-devices", f"the guest has a vsock, and {_VSOCK} is not here", hint)
    for cid in draft.devices.findall("./vsock/cid"):
        if draft.clone and cid.get("auto") != "yes":
            cid.set("auto", "yes")
            cid.attrib.pop("address", None)
            draft.note("the guest's vsock address is the original's: it gets a free one")


def _tuned_devices(draft: Draft) -> None:
    """Weights of the block devices of the old host."""
    tune = draft.root.find("blkiotune")
    for device in tune.findall("device") if tune is not None else ():
        path = (device.findtext("path") or "").strip()
        if tune is not None and not draft.host.present(path):
            tune.remove(device)
            draft.note(f"the limits on the host's device {path}, not here, are left out")


def _arguments(draft: Draft) -> None:
    if any(child.tag.endswith("}commandline") for child in draft.root):
        draft.note("the guest has arguments of its own for QEMU (qemu:commandline): they are kept as they are")
