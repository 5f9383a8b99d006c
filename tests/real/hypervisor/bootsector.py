"""A guest of 130 bytes: byte N on its serial port makes it write 1 MiB of N at N MiB, and answer.

It answers "k" when the BIOS wrote everything, "e" when the disk gave an error: what a guest sees of a full scratch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.lab import machine
from tests.lab.domain import remove_domain
from tests.lab.session import Lab

MiB = 1 << 20
SIZE = 40 * MiB
BEYOND = 255  # mebibyte: writing there is an error
READY_TIMEOUT = 60.0  # seconds; the BIOS takes 2 under TCG on an idle machine

# In 16-bit code: keep the BIOS' disk number; forever: poll COM1 for a byte N; fill 32 KiB at 1000:0000 with it;
# 32 times int 13h AH=43h (extended write) of 64 sectors from sector N * 2048 on; send "k", or "e" on carry.
_CODE = bytes.fromhex(
    "31c08ed88ed0bc007bfc8816007ac706107a1000c706127a400066c706147a0000001066c7061c7a"
    "00000000bafd03eca80174fbbaf803ec88c3b900108ec131ffb90080f3aa660fb6c366c1e00b66a3"
    "187abd2000b800438a16007abe107acd13720d668306187a404d75e9b36beb02b365bafd03eca820"
    "74fb88d8baf803eeeb92"
)


class BootSectorGuest:
    """A running guest that writes when it is told to. Its disk vda is full of 0x11."""

    def __init__(self, lab: Lab) -> None:
        self.name = lab.new_name()
        self.folder = lab.new_folder("boot")
        self.path = self.folder / "vda.qcow2"
        self._make_image()
        self.domain: Any = lab.connection.defineXML(self._xml())
        self.domain.create()
        self._port = self._connect()
        self._wait_ready()

    def write(self, mebibyte: int) -> None:
        """Tells it to write; does not wait."""
        self._port.sendall(bytes([mebibyte]))

    def answer(self, timeout: float) -> str:
        """ "k" or "e"; "" where none came in time."""
        self._port.settimeout(timeout)
        try:
            return self._port.recv(1).decode()
        except TimeoutError:
            return ""

    @property
    def state(self) -> tuple[int, int]:
        """State and reason."""
        found = self.domain.state()
        return found[0], found[1]

    def remove(self) -> None:
        """Ends it."""
        self._port.close()
        remove_domain(self.domain)
        shutil.rmtree(self.folder)

    def _make_image(self) -> None:
        raw = self.folder / "raw"
        image = bytearray(b"\x11" * SIZE)
        image[:512] = _CODE.ljust(510, b"\0") + b"\x55\xaa"
        raw.write_bytes(image)
        command = [machine.program("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", str(raw), str(self.path)]
        subprocess.run(command, check=True, capture_output=True)
        raw.unlink()
        os.chown(self.path, *machine.qemu_user())

    def _connect(self) -> socket.socket:
        port = socket.socket(socket.AF_UNIX)
        port.connect(str(self.folder / "serial"))
        return port

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            self.write(1)
            if self.answer(2.0) == "k":
                self.write(BEYOND)
                while (answer := self.answer(READY_TIMEOUT)) == "k":  # of attempts that came late
                    pass
                if answer == "e":
                    return
        raise TimeoutError(f"{self.name} did not boot")

    def _xml(self) -> str:
        return (
            f"<domain type='qemu'><name>{self.name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>"
            "<os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><devices>"
            f"<emulator>{machine.program('qemu-system-x86_64')}</emulator>"
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{self.path}'/>"
            "<target dev='vda' bus='virtio'/></disk><controller type='usb' model='none'/>"
            f"<serial type='unix'><source mode='bind' path='{self.folder}/serial'/></serial>"
            "<memballoon model='none'/></devices></domain>"
        )


@contextlib.contextmanager
def tiny_file_system(folder: Path, size: str) -> Any:
    """A tmpfs of that size on a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
