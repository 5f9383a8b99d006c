"""One paused guest with a disk of each kind that libvirt has: buses, formats, places."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Collection, Iterator
from typing import Any, Self

from . import machine
from .block_device import loop_device
from .disk import Disk, MiB
from .domain import Workhorse
from .luks import create_luks
from .session import Lab

SIZE = 2 * MiB
PASSPHRASE = b"open sesame"


class DiskKinds:
    """The guest, what it needs beside it, and what each of its disks holds. A context manager.

    `content` is by target; `write` changes both. `only`: beside vda just these. Raises NoDeviceError.
    """

    def __init__(self, lab: Lab, only: Collection[str] | None = None) -> None:
        self._lab, self._only, self._stack = lab, only, contextlib.ExitStack()
        self.content: dict[str, bytearray] = {}
        self.horse: Workhorse
        self.secret = str(uuid.uuid4())

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.horse = self._lab.workhorse(Disk(size=SIZE), start=False)
            stack.callback(self.horse.remove)
            self._folder = self.horse.folder
            elements = "".join(self._elements(stack))
            xml = self.horse.domain.XMLDesc(0).replace("machine='pc-q35", "machine='pc-i440fx")
            xml = xml.replace("</devices>", f"{elements}</devices>")
            self.horse.domain = self._lab.connection.defineXML(_without_pci_express(xml))
            self.horse.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        """As the guest would, by QEMU."""
        self.horse.write(target, offset, length, pattern)
        self.content[target][offset : offset + length] = bytes([pattern]) * length

    def detach(self, target: str) -> None:
        """Takes a disk out of the definition of the guest, which is off."""
        element = next(disk for disk in self._definition().iter("disk") if _target(disk) == target)
        self.horse.domain.detachDeviceFlags(ET.tostring(element, encoding="unicode"), 2)
        del self.content[target]

    def rename(self, old: str, new: str) -> None:
        """Gives a disk of the guest, which is off, another target."""
        root = self._definition()
        element = next(disk for disk in root.iter("disk") if _target(disk) == old)
        place, address = element.find("target"), element.find("address")
        assert place is not None
        place.set("dev", new)
        if address is not None:
            element.remove(address)
        self.horse.domain = self._lab.connection.defineXML(ET.tostring(root, encoding="unicode"))
        self.content[new] = self.content.pop(old)
        self.horse.disks[new] = self.horse.disks.pop(old)

    def _definition(self) -> ET.Element:
        return ET.fromstring(self.horse.domain.XMLDesc(2))

    def _elements(self, stack: contextlib.ExitStack) -> Iterator[str]:
        self._own("vda")
        yield "<controller type='scsi' model='virtio-scsi'/><controller type='usb' model='qemu-xhci'/>"
        raw = Disk(size=SIZE, format="raw")
        makers: dict[str, Callable[[str], str]] = {
            "sda": lambda target: self._file(target, "scsi"),
            "sdb": lambda target: self._file(target, "sata", raw),
            "sdc": lambda target: self._file(target, "usb"),
            "hda": lambda target: self._file(target, "ide"),
            "vdb": lambda target: self._file(target, "virtio", Disk(size=SIZE, compat="0.10")),
            "vdc": lambda target: self._block(target, "raw", stack),
            "vdd": lambda target: self._block(target, "qcow2", stack),
            "vde": self._chain,
            "vdf": lambda target: self._luks(target, stack),
            "vdg": lambda target: self._nbd(target, stack),
            "vdh": lambda target: self._volume(target, stack),
            "vdi": lambda target: self._not_ours(target, "virtio", "<shareable/>"),
            "vdj": lambda target: self._not_ours(target, "virtio", "<readonly/>"),
            "hdc": lambda target: self._not_ours(target, "ide", "<readonly/>", "cdrom"),
            "hdd": lambda target: _empty(target, "ide", "cdrom", "<readonly/>"),
            "fda": lambda target: _empty(target, "fdc", "floppy"),
        }
        for target, make in makers.items():
            if self._only is None or target in self._only:
                yield make(target)

    def _not_ours(self, target: str, bus: str, more: str, device: str = "disk") -> str:
        """One that a backup leaves out."""
        element = self._file(target, bus, Disk(size=SIZE, format="raw"), more, device)
        del self.content[target]
        return element

    def _own(self, target: str, disk: Disk | None = None) -> None:
        self.content[target] = bytearray(SIZE)
        self.horse.disks[target] = disk or Disk(target, size=SIZE)

    def _file(
        self, target: str, bus: str, disk: Disk | None = None, more: str = "", device: str = "disk"
    ) -> str:
        disk = disk or Disk(size=SIZE)
        self._own(target, disk)
        path = self._folder / f"{target}.{disk.format}"
        disk.create(path)
        return _disk(f"file='{path}'", target, disk.format, bus=bus, more=more, device=device)

    def _block(self, target: str, format_: str, stack: contextlib.ExitStack) -> str:
        room = 2 * SIZE if format_ == "qcow2" else SIZE
        device = stack.enter_context(loop_device(self._folder / f"{target}.img", room))
        self._own(target, Disk(target, size=SIZE, format=format_))
        if format_ == "qcow2":
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", device, str(SIZE)], check=True)
        return _disk(f"dev='{device}'", target, format_, kind="block")

    def _chain(self, target: str) -> str:
        below, top = self._folder / f"{target}-below.qcow2", self._folder / f"{target}.qcow2"
        self._own(target)
        Disk(size=SIZE).create(below)
        subprocess.run(["qemu-io", "-c", "write -q -P 119 64k 128k", str(below)], check=True, capture_output=True)
        self.content[target][65536 : 3 * 65536] = b"w" * 2 * 65536
        Disk(size=SIZE).create(top, backing=below)
        return _disk(f"file='{top}'", target, "qcow2")

    def _luks(self, target: str, stack: contextlib.ExitStack) -> str:
        path = self._folder / f"{target}.qcow2"
        self._own(target)
        create_luks(path, "qcow2", SIZE, PASSPHRASE)
        os.chown(path, *machine.qemu_user())
        usage = f"<usage type='volume'><volume>{path}</volume></usage>"
        made = self._lab.connection.secretDefineXML(f"<secret><uuid>{self.secret}</uuid>{usage}</secret>")
        stack.callback(made.undefine)
        made.setValue(PASSPHRASE, 0)
        encryption = f"<encryption format='luks'><secret type='passphrase' uuid='{self.secret}'/></encryption>"
        return _disk(f"file='{path}'", target, "qcow2", inside=encryption)

    def _nbd(self, target: str, stack: contextlib.ExitStack) -> str:
        path, socket = self._folder / f"{target}.raw", self._folder / "nbd.sock"
        self._own(target, Disk(target, size=SIZE, format="raw"))
        Disk(size=SIZE, format="raw").create(path)
        server = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-x", "disk", "-k", str(socket), str(path)])
        stack.callback(server.wait)
        stack.callback(server.kill)
        while not socket.exists():
            assert server.poll() is None
        os.chown(socket, *machine.qemu_user())
        host = f"<host transport='unix' socket='{socket}'/>"
        return _disk("protocol='nbd' name='disk'", target, "raw", kind="network", inside=host)

    def _volume(self, target: str, stack: contextlib.ExitStack) -> str:
        name, folder = f"{self._lab.prefix}pool-{secrets.token_hex(2)}", self._folder / "pool"
        folder.mkdir()
        folder.chmod(0o711)
        self._own(target)
        Disk(size=SIZE).create(folder / "volume.qcow2")
        xml = f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
        pool: Any = self._lab.connection.storagePoolCreateXML(xml, 0)
        stack.callback(pool.destroy)
        return _disk(f"pool='{name}' volume='volume.qcow2'", target, "qcow2", kind="volume")


def _disk(
    source: str, target: str, format_: str, *, kind: str = "file", bus: str = "virtio", inside: str = "",
    more: str = "", device: str = "disk",
) -> str:  # fmt: skip
    return (
        f"<disk type='{kind}' device='{device}'><driver name='qemu' type='{format_}'/>"
        f"<source {source}>{inside}</source><target dev='{target}' bus='{bus}'/>{more}</disk>"
    )


def _empty(target: str, bus: str, device: str, more: str = "") -> str:
    return f"<disk type='file' device='{device}'><target dev='{target}' bus='{bus}'/>{more}</disk>"


def _target(disk: ET.Element) -> str:
    place = disk.find("target")
    return place.get("dev", "") if place is not None else ""


def _without_pci_express(xml: str) -> str:
    """The definition for a machine that has PCI and IDE: libvirt gives the controllers and addresses anew."""
    root = ET.fromstring(xml)
    devices = root.find("devices")
    assert devices is not None
    for controller in devices.findall("controller"):
        if controller.get("type") in ("pci", "sata", "ide", "usb") and controller.get("model") != "qemu-xhci":
            devices.remove(controller)
    for device in devices:
        for address in device.findall("address"):
            device.remove(address)
    kind = root.find("os/type")
    assert kind is not None
    kind.set("machine", "pc")
    return ET.tostring(root, encoding="unicode")
