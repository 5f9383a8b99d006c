"""Booted guests of the program's: what runs, what was written, what is left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import machine
from tests.lab.domain import LOG_DIR, remove_domain
from tests.lab.session import Lab
from tests.real.engine.program import Program

SECONDS = 60.0


@dataclass
class Rig:
    """A program with its repository, and the guests that it boots in a lab."""

    lab: Lab
    program: Program

    def boot(self, point: str, *options: str) -> BootedGuest:
        """Boots a point under a new name."""
        guest = BootedGuest(self, self.lab.new_name())
        guest.told = self.program.json("boot", point, "--name", guest.name, *options)
        return guest

    @property
    def state(self) -> Path:
        return self.program.folder / "state" / "booted"

    def left(self) -> list[str]:
        """What of booted guests is still there."""
        found = [str(path) for path in self.state.glob("*")]
        found += [str(path) for path in (self.program.scratch / "boot").glob("*")]
        return found + [f"{pid}: {command}" for pid, command in processes(str(self.program.folder))]


class BootedGuest:
    """A guest by its name; its domain is looked up anew."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        self.told: dict[str, Any] = {}

    @property
    def domain(self) -> Any:
        return self.rig.lab.connection.lookupByName(self.name)

    @property
    def folder(self) -> Path:
        return self.rig.program.scratch / "boot" / self.name

    @property
    def listed(self) -> dict[str, Any]:
        return next(one for one in self.rig.program.json("boot", "--list")["booted"] if one["name"] == self.name)

    def overlay(self, target: str) -> Path:
        return self.folder / f"{target}.qcow2"

    def io(self, target: str, command: str) -> str:
        """One of qemu-io's commands as the guest's own: what it says, "" for nothing wrong."""
        import libvirt_qemu

        number = ord(target[-1]) - ord("a")
        device = f"/machine/peripheral/virtio-disk{number}/virtio-backend"
        return libvirt_qemu.qemuMonitorCommand(self.domain, f'qemu-io -d {device} "{command}"', 1).strip()

    def server(self) -> int:
        """The process that serves its point."""
        (found,) = [pid for pid, command in processes(str(self.folder)) if " serve " in command]
        return found

    def keeper(self) -> int:
        (found,) = [pid for pid, command in processes("boot --keep") if command.endswith(self.name)]
        return found

    def serial(self) -> str:
        """The socket of its serial port."""
        found = ET.fromstring(self.domain.XMLDesc(0)).find("./devices/serial/source")
        assert found is not None
        return found.get("path", "")

    def kill_server(self) -> None:
        """kill -9; returns when another one serves."""
        old = self.server()
        os.kill(old, signal.SIGKILL)
        wait(lambda: not Path(f"/proc/{old}/fd").exists() and self.listed["served"], "the server to come back")

    def remove(self) -> None:
        """Whatever its state."""
        import libvirt

        self.rig.program.run("boot", "--discard", self.name)
        with contextlib.suppress(libvirt.libvirtError):
            remove_domain(self.domain)
        for log in LOG_DIR.glob(f"{self.name}.log*"):
            log.unlink(missing_ok=True)


def processes(mark: str) -> list[tuple[int, str]]:
    """Processes of vmbackup whose command line has `mark` in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if "vmbackup.cli" in command and mark in command:
                found.append((int(path.parent.name), command))
    return found


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {SECONDS:.0f} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed at the end, if it has not ended."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def qemu_io(image: Path, *commands: str) -> None:
    """Writes to an image that nobody has open."""
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run([machine.program("qemu-io"), *arguments, str(image)], check=True, capture_output=True)
