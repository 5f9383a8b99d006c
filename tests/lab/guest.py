"""A real guest: Debian 12 with the guest agent, from the cached image, under KVM where that works, else TCG."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from . import machine
from .agent import Agent
from .disk import Disk
from .domain import LOG_DIR, remove_domain
from .guest_image import GuestImage
from .session import Lab

MEMORY = 384          # MiB; Debian with nothing but the agent
BOOT_TIMEOUT = 240.0  # seconds; under TCG with busy neighbours, alone it takes about 30
SHUTDOWN_TIMEOUT = 60.0
LOG_END = 1500        # characters of a log shown when the guest does not come up


class Guest:
    """A running Debian whose root disk is `vda`. Remove it, or let the lab's end do so.

    With `overlay` vda is a thin qcow2 above the cached image (ready at once, a backing chain); else it is a
    copy that stands alone. More disks are given as `disks`, or with an image that exists already, in the guest's
    hands from then on, in `images`. A root image of another origin, such as a restored one, is given as `root`.
    """

    def __init__(self, lab: Lab, image: GuestImage, *, overlay: bool = False, disks: Iterable[Disk] = (),
                 images: Iterable[tuple[Disk, Path]] = (), root: Path | None = None, memory: int = MEMORY) -> None:
        self.name = lab.new_name()
        self.folder = lab.new_folder("guest")
        self.console = self.folder / "console.log"
        self._paths: dict[str, Path] = {}
        elements = [self._root(image, root, overlay=overlay)]
        for disk in disks:
            path = self.folder / f"{disk.target}.{disk.format}"
            disk.create(path)
            self._paths[disk.target] = path
            elements.append(disk.xml(path))
        for disk, path in images:
            os.chown(path, *machine.qemu_user())
            self._paths[disk.target] = path
            elements.append(disk.xml(path))
        self._memory = memory
        self.domain = lab.connection.defineXML(self._xml(image, "".join(elements)))
        self.agent = Agent(self.domain)

    def boot(self) -> float:
        """Starts it and waits for its agent; the seconds that took. TimeoutError tells the console's end."""
        start = time.monotonic()
        self.domain.create()
        try:
            self.agent.wait(BOOT_TIMEOUT)
        except TimeoutError as error:
            logs = [self.console, LOG_DIR / f"{self.name}.log"]
            ends = [f"the end of {log}:\n{log.read_text(errors='replace')[-LOG_END:]}" for log in logs]
            raise TimeoutError("\n".join([str(error), *ends])) from error
        return time.monotonic() - start

    def shutdown(self) -> None:
        """Ends the guest in good order; pulls the plug if it does not end in time."""
        # Not ACPI's button: nobody hears it in a system without logind. Nor is an answer waited for
        self.agent.call("guest-exec", path="/bin/systemctl", arg=["--no-block", "poweroff"])
        deadline = time.monotonic() + SHUTDOWN_TIMEOUT
        while self.domain.isActive():
            if time.monotonic() > deadline:
                self.domain.destroy()
                return
            time.sleep(0.1)

    def remove(self) -> None:
        """Ends and undefines it, and deletes its files; may be called again."""
        remove_domain(self.domain)
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, target: str) -> Path:
        """The image of a disk."""
        return self._paths[target]

    def copy(self, target: str, to: Path) -> Path:
        """Copies a disk to a qcow2 image as it is now; exact if the guest does not write meanwhile."""
        import libvirt_qemu

        device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
        libvirt_qemu.qemuMonitorCommand(self.domain, f'qemu-io -d {device} "flush"', 1)
        subprocess.run(
            [machine.program("qemu-img"), "convert", "-U", "-O", "qcow2", str(self.path(target)), str(to)],
            check=True, capture_output=True, text=True)
        return to

    def _root(self, image: GuestImage, root: Path | None, *, overlay: bool) -> str:
        disk, path = Disk("vda", image.size), self.folder / "vda.qcow2"
        if overlay:
            disk.create(path, backing=root or image.root)
        else:
            subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(root or image.root), str(path)],
                           check=True, capture_output=True, text=True)
            os.chown(path, *machine.qemu_user())
        self._paths["vda"] = path
        return disk.xml(path)

    def _xml(self, image: GuestImage, disks: str) -> str:
        kind = "kvm" if machine.kvm_works() else "qemu"
        return (
            f"<domain type='{kind}'><name>{self.name}</name><memory unit='MiB'>{self._memory}</memory><vcpu>1</vcpu>"
            f"<os><type arch='x86_64' machine='q35'>hvm</type>"
            f"<kernel>{image.kernel}</kernel><initrd>{image.initrd}</initrd>"
            "<cmdline>root=/dev/vda rw console=ttyS0 net.ifnames=0 no_timer_check quiet</cmdline></os>"
            "<features><acpi/></features>"
            f"<devices><emulator>{machine.program('qemu-system-x86_64')}</emulator>{disks}"
            "<controller type='usb' model='none'/>"
            f"<serial type='pty'><log file='{self.console}'/><target port='0'/></serial>"
            "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
            "<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
            "</devices></domain>"
        )

