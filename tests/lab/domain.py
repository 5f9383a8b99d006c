"""The workhorse of the tests: a paused domain without an operating system.

It starts in 0.3 s, and its disks are written through QEMU by `qemu-io` commands of the monitor: with
dirty tracking, exactly and at once. The disks hold still between two commands, so a backup can be
compared with its source.

Measured here (2 cores, TCG): 530 commands a second over one libvirt connection, 45 with a virsh process
each. A private QMP socket would reach 950, at the price of a foreign argument in each domain's XML; what
needs more writes than that takes `fragment`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import machine
from .disk import Disk, same_content

HOTPLUG_PORTS = 8
STATE_TIMEOUT = 30.0   # seconds
LOG_DIR = Path("/var/log/libvirt/qemu")
RUN_FOLDER = Path("/run/libvirt")   # libvirt's


def remove_domain(domain: Any) -> None:
    """Ends and undefines a domain with its checkpoints, NVRAM and logs, whatever its state."""
    import libvirt

    flags = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    name = domain.name()
    with contextlib.suppress(libvirt.libvirtError):
        domain.destroy()
    with contextlib.suppress(libvirt.libvirtError):
        domain.undefineFlags(flags)
    for log in LOG_DIR.glob(f"{name}.log*"):
        log.unlink(missing_ok=True)


class ImagesDifferError(AssertionError):
    """A restored image is not what the source is."""


class Workhorse:
    """A paused domain and its images; all of it is gone after `remove`.

    `connection` is an open libvirt connection, `folder` an empty folder that QEMU's user may enter.
    """

    def __init__(self, connection: Any, name: str, folder: Path, disks: Iterable[Disk],
                 run_folder: Path = RUN_FOLDER) -> None:
        self.name = name
        self._run_folder = run_folder
        self.uuid = str(uuid.uuid4())
        self.folder = folder
        self.disks: dict[str, Disk] = {}
        self._paths: dict[str, Path] = {}
        self._devices: dict[str, str] = {}
        self._connection = connection
        elements = [self._make(disk) for disk in disks]
        self.domain = connection.defineXML(self._xml(elements))

    # The life of the domain

    def start(self) -> None:
        """Starts it paused."""
        import libvirt

        self.domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)

    def stop(self) -> None:
        """Ends QEMU in good order: bitmaps are kept in the images."""
        self.domain.destroy()

    def kill(self) -> None:
        """kill -9 of QEMU: the bitmaps are lost. Returns when libvirt knows, or has forgotten a transient domain."""
        os.kill(self.pid, signal.SIGKILL)
        self._wait(lambda: self.uuid not in self._running_uuids(), "libvirt to see QEMU's death")

    def remove(self) -> None:
        """Ends and undefines it with its checkpoints, and deletes its files; may be called again."""
        with contextlib.suppress(OSError, ValueError):  # an orderly end of QEMU would first save large bitmaps
            os.kill(self.pid, signal.SIGKILL)
        remove_domain(self.domain)
        shutil.rmtree(self.folder, ignore_errors=True)

    def migrate(self, connection: Any, run_folder: Path = RUN_FOLDER, *, undefine: bool = True) -> None:
        """Moves the running domain to another libvirt of this machine; `undefine`: the old one forgets it.

        The images stay where they are.
        """
        import libvirt

        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNSAFE
        if undefine:
            flags |= libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        self.domain = self.domain.migrate3(connection, {libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1"}, flags)
        self._connection, self._run_folder = connection, run_folder
        self._devices.clear()
        for path in self._paths.values():   # the old libvirt has taken them back: to it the storage is not shared
            os.chown(path, *machine.qemu_user())
        # QEMU 7.2 takes images over as a guest goes on: it dies of a write by qemu-io before that.
        self.domain.resume()
        self.domain.suspend()

    @property
    def running(self) -> bool:
        """True while QEMU runs (paused or not)."""
        return bool(self.domain.isActive())

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return int((self._run_folder / f"qemu/{self.name}.pid").read_text())

    def _running_uuids(self) -> list[str]:
        active = 1   # VIR_CONNECT_LIST_DOMAINS_ACTIVE
        return [domain.UUIDString() for domain in self._connection.listAllDomains(active)]

    # Disks

    def path(self, target: str) -> Path:
        """The image of a disk."""
        return self._paths[target]

    def write(self, target: str, offset: int, length: int, pattern: int) -> None:
        """Fills a range with one byte's value (0 to 255), as a guest's write would."""
        self._io(target, f"write -q -P {pattern}", offset, length)

    def write_data(self, target: str, offset: int, data: bytes) -> None:
        """Writes these bytes."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="data-") as file:
            file.write(data)
            file.flush()
            os.chmod(file.name, 0o644)
            self._io(target, f"write -q -s {file.name}", offset, len(data))

    def zero(self, target: str, offset: int, length: int) -> None:
        """Writes zeros as a write-zeroes request that keeps the clusters."""
        self._io(target, "write -q -z", offset, length)

    def zero_unmap(self, target: str, offset: int, length: int) -> None:
        """Writes zeros and lets QEMU free the clusters."""
        self._io(target, "write -q -z -u", offset, length)

    def discard(self, target: str, offset: int, length: int) -> None:
        """Discards a range; reads as zeros afterwards where the disk has discard='unmap'."""
        self._io(target, "discard -q", offset, length)

    def flush(self, target: str) -> None:
        """Brings QEMU's cache of the image's tables into the file."""
        self._command(target, "flush")

    def read_pattern(self, target: str, offset: int, length: int, pattern: int) -> bool:
        """True if the whole range holds this byte's value now."""
        if self.running:
            self.flush(target)
        done = subprocess.run(
            [machine.program("qemu-io"), "-U", "-r", "-f", self.disks[target].format,
             "-c", f"read -q -P {pattern} {offset} {length}", str(self.path(target))],
            check=False, capture_output=True, text=True)
        return done.returncode == 0 and "failed" not in done.stdout + done.stderr

    def grow(self, target: str, size: int) -> None:
        """Makes a disk of the running domain larger, to `size` bytes."""
        import libvirt

        self.domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        self.disks[target] = replace(self.disks[target], size=size)

    def attach(self, disk: Disk) -> None:
        """Plugs a new disk in, for now and for later starts."""
        import libvirt

        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG
        if self.running:
            flags |= libvirt.VIR_DOMAIN_AFFECT_LIVE
        self.domain.attachDeviceFlags(self._make(disk), flags)

    def forget(self, target: str) -> None:
        """The disk was taken out."""
        del self.disks[target], self._paths[target]
        self._devices.pop(target, None)

    def reconnect(self, connection: Any) -> None:
        """Over another connection, for the old one has died."""
        self._connection = connection
        self.domain = connection.lookupByUUIDString(self.uuid)

    def redefine(self, xml: str) -> None:
        """Defines it by that XML."""
        self.domain = self._connection.defineXML(xml)

    def swap(self, one: str, other: str) -> None:
        """Exchanges the images of two disks in the definition of the stopped domain."""
        import libvirt

        xml = self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        a, b = str(self._paths[one]), str(self._paths[other])
        xml = xml.replace(a, "\0").replace(b, a).replace("\0", b)
        self.domain = self._connection.defineXML(xml)
        self._paths[one], self._paths[other] = self._paths[other], self._paths[one]

    def rename(self, target: str, path: Path) -> None:
        """Notes that a disk's image is another one now."""
        self._paths[target] = path

    def move(self, devices: dict[str, Path]) -> None:
        """Puts block devices in the place of image files, in the definition of the stopped domain."""
        import libvirt

        root = ET.fromstring(self.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        for disk in root.iterfind("devices/disk"):
            place, source = disk.find("target"), disk.find("source")
            if place is None or source is None or place.get("dev") not in devices:
                continue
            target = place.get("dev", "")
            disk.set("type", "block")
            source.attrib = {"dev": str(devices[target])}
            self._paths[target] = devices[target]
        self.domain = self._connection.defineXML(ET.tostring(root, encoding="unicode"))

    def fragment(self, target: str, pieces: int, *, piece: int = 4096, offset: int = 0) -> None:
        """Writes `pieces` pieces with an equal gap after each: 2 * pieces extents, dirty and clean in turn.

        Ends QEMU, writes through qemu-nbd (which keeps the image's bitmaps up to date as QEMU does) and
        starts again, paused: 70,000 pieces take seconds where the monitor would take minutes.
        """
        running = self.running
        if running:
            self.stop()
        source = self.folder / "pieces.raw"
        with source.open("wb") as file:
            file.truncate(self.disks[target].size)
            for index in range(pieces):
                content = (index + 1).to_bytes(8, "big") * (piece // 8)
                os.pwrite(file.fileno(), content, offset + 2 * index * piece)
        # "[" runs the server for the time of the copy; destination-is-zero leaves the gaps untouched
        subprocess.run(
            [machine.program("nbdcopy"), "--destination-is-zero", f"--sparse={piece}", "--", str(source),
             "[", machine.program("qemu-nbd"), "-f", self.disks[target].format, "--discard=unmap",
             str(self.path(target)), "]"],
            check=True, capture_output=True, text=True)
        source.unlink()
        if running:
            self.start()

    def copy(self, target: str) -> Path:
        """A copy of the disk at this instant, for comparisons to come; it lies in the domain's folder."""
        if self.running:
            self.flush(target)
        path = self.folder / f"copy-{target}-{uuid.uuid4().hex[:8]}.qcow2"
        subprocess.run(
            [machine.program("qemu-img"), "convert", "-U", "-f", self.disks[target].format, "-O", "qcow2",
             str(self.path(target)), str(path)],
            check=True, capture_output=True, text=True)
        return path

    def compare(self, target: str, restored: Path) -> None:
        """Raises ImagesDifferError unless the disk at this instant and a restored image are equal."""
        if self.running:
            self.flush(target)
        difference = same_content(self.path(target), restored)
        if difference is not None:
            raise ImagesDifferError(difference)

    # What libvirt and QEMU know

    def checkpoints(self) -> list[str]:
        """Names of the domain's checkpoints."""
        return sorted(checkpoint.getName() for checkpoint in self.domain.listAllCheckpoints(0))

    def bitmaps(self, target: str) -> dict[str, dict[str, Any]]:
        """The bitmaps of a running domain's disk as QEMU tells them (count in bytes, recording, ...)."""
        found: dict[str, dict[str, Any]] = {}
        for node in self.monitor({"execute": "query-named-block-nodes", "arguments": {"flat": True}}):
            if node["file"] == str(self.path(target)):
                found |= {bitmap["name"]: bitmap for bitmap in node.get("dirty-bitmaps", [])}
        return found

    def monitor(self, command: dict[str, Any]) -> Any:
        """One QMP command; what it returns."""
        import libvirt_qemu

        reply = json.loads(libvirt_qemu.qemuMonitorCommand(self.domain, json.dumps(command), 0))
        if "error" in reply:
            raise RuntimeError(f"{command['execute']}: {reply['error']['desc']}")
        return reply["return"]

    # Private

    def _io(self, target: str, command: str, offset: int, length: int) -> None:
        """Raises ValueError beyond the disk's end: qemu-io itself complains where nobody looks."""
        if offset < 0 or offset + length > self.disks[target].size:
            raise ValueError(f"{target}: {command} {offset} {length} is beyond {self.disks[target].size}")
        self._command(target, f"{command} {offset} {length}")

    def _command(self, target: str, command: str) -> None:
        import libvirt_qemu

        device = self._devices.get(target) or self._device(target)
        answer = libvirt_qemu.qemuMonitorCommand(self.domain, f'qemu-io -d {device} "{command}"', 1).strip()
        if answer:
            raise RuntimeError(f"{target}: {command}: {answer}")

    def _device(self, target: str) -> str:
        """The device's path in QEMU: a node's name would be refused, for the guest's device writes it."""
        for element in ET.fromstring(self.domain.XMLDesc(0)).iterfind("devices/disk"):
            place, alias = element.find("target"), element.find("alias")
            if place is None or alias is None or place.get("dev") != target:
                continue
            name = alias.get("name")
            suffix = {"virtio": "/virtio-backend", "usb": f"/{name}.0/legacy[0]"}.get(place.get("bus", ""), "")
            self._devices[target] = f"/machine/peripheral/{name}{suffix}"
            return self._devices[target]
        raise KeyError(target)

    def _make(self, disk: Disk) -> str:
        path = self.folder / f"{disk.target}.{disk.format}"
        disk.create(path)
        self.disks[disk.target] = disk
        self._paths[disk.target] = path
        return disk.xml(path, serial=f"lab-{disk.target}")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + STATE_TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.name}: waited {STATE_TIMEOUT:.0f} s for {what}")
            time.sleep(0.02)

    def _xml(self, disks: Iterable[str]) -> str:
        ports = "<controller type='pci' model='pcie-root-port'/>" * HOTPLUG_PORTS
        return (
            f"<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid>"
            "<memory unit='MiB'>16</memory><vcpu>1</vcpu>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os>"
            f"<devices><emulator>{machine.program('qemu-system-x86_64')}</emulator>{''.join(disks)}"
            f"<controller type='pci' model='pcie-root'/>{ports}"
            "<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>"
        )
