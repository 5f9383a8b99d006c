"""A domain whose guest agent is a thread of the test: it answers, is silent, refuses, says frozen, as it is told.

The channel's socket is the test's: QEMU connects to it, and libvirt does, which speaks the agent's protocol there. So
no guest is needed but for one thing: libvirt asks no agent before the guest has opened the channel. The test does that
in the guest's place: it puts two messages of virtio-serial into the guest's memory, by /proc/PID/mem, and rings the
bell by the monitor's port commands (virtio 1.2, sections 2.7, 4.1.4.10, 5.3.6; the device's legacy registers).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import machine
from .domain import Workhorse
from .session import Lab

_OPEN_TIMEOUT = 120.0  # seconds; the BIOS takes 1 under TCG on an idle machine
_TRY = 0.3  # seconds between two attempts: before the BIOS is done, one may come to nothing
_SERIAL_DEVICE = 0x10031AF4  # device and vendor of a transitional virtio-serial
_VRING = 0x300000  # of the guest's memory, which no BIOS uses there
_CONTROL_OUT = 3  # number of the queue to the device's control port
_DEVICE_READY, _PORT_OPEN = 0, 6
_MULTIPORT = 1 << 1
Answer = Callable[[dict[str, Any]], Any]


class AgentError(Exception):
    """What the agent answers instead of a result."""


class FakeAgent:
    """The agent. `frozen` is its state, `calls` the commands it got, with the seconds (time.monotonic) of each.

    `mounts` are its file systems. `silent` names commands that it never answers, `slow` gives the seconds it takes for
    one; `refused` the words with which it refuses. `exits` gives the exit code of a program run by guest-exec.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frozen = 0
        self.mounts = ["/", "/srv"]
        self.calls: list[tuple[float, str]] = []
        self.executed: list[list[str]] = []
        self.silent: set[str] = set()
        self.slow: dict[str, float] = {}
        self.refused: dict[str, str] = {}
        self.exits: dict[str, int] = {}
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        path.chmod(0o777)
        self._server.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, name="fake-agent", daemon=True).start()

    @property
    def commands(self) -> list[str]:
        """The commands it got, in order, but for those that only see whether it is there."""
        quiet = ("guest-sync", "guest-sync-delimited", "guest-ping", "guest-get-osinfo", "guest-exec-status")
        return [name for _, name in self.calls if name not in quiet]

    def close(self) -> None:
        """The agent is gone."""
        self._server.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            self._open.append(peer)
            threading.Thread(target=self._serve, args=(peer,), name="fake-agent-peer", daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        data = b""
        while True:
            try:
                piece = peer.recv(65536)
            except OSError:
                return
            if not piece:
                return
            data += piece.replace(b"\xff", b"")
            *lines, data = data.split(b"\n")
            for line in filter(None, lines):
                with contextlib.suppress(OSError, ValueError):
                    self._answer(peer, json.loads(line))

    def _answer(self, peer: socket.socket, request: dict[str, Any]) -> None:
        name, arguments = request["execute"], request.get("arguments", {})
        self.calls.append((time.monotonic(), name))
        if name in self.silent:
            return
        time.sleep(self.slow.get(name, 0.0))
        try:
            document: dict[str, Any] = {"return": self._result(name, arguments)}
        except AgentError as error:
            document = {"error": {"class": "GenericError", "desc": str(error)}}
        head = b"\xff" if name == "guest-sync-delimited" else b""
        peer.sendall(head + json.dumps(document).encode() + b"\n")

    def _result(self, name: str, arguments: dict[str, Any]) -> Any:
        if name in self.refused:
            raise AgentError(self.refused[name])
        if self.frozen and name not in ("guest-sync", "guest-sync-delimited", "guest-ping", "guest-fsfreeze-status",
                                        "guest-fsfreeze-thaw", "guest-info"):
            raise AgentError(f"Command {name} has been disabled: the command is not allowed")
        simple: dict[str, Answer] = {
            "guest-sync": lambda a: a["id"],
            "guest-sync-delimited": lambda a: a["id"],
            "guest-ping": lambda _a: {},
            "guest-info": lambda _a: {"supported_commands": self._supported()},
            "guest-get-osinfo": lambda _a: {"id": "debian", "name": "Debian GNU/Linux"},
            "guest-fsfreeze-status": lambda _a: "frozen" if self.frozen else "thawed",
            "guest-fsfreeze-freeze": lambda _a: self._freeze(self.mounts),
            "guest-fsfreeze-freeze-list": lambda a: self._freeze(a.get("mountpoints", self.mounts)),
            "guest-fsfreeze-thaw": lambda _a: self._thaw(),
            "guest-exec": self._exec,
            "guest-exec-status": lambda a: {"exited": True, "exitcode": self.exits.get(self.executed[a["pid"]][0], 0)},
        }
        if name not in simple:
            raise AgentError(f"The command {name} has not been found")
        return simple[name](arguments)

    def _supported(self) -> list[dict[str, Any]]:
        return [{"name": name, "enabled": name not in self.refused} for name in ("guest-fsfreeze-freeze", "guest-exec")]

    def _freeze(self, mounts: Iterable[str]) -> int:
        self.frozen = len([mount for mount in mounts if mount in self.mounts])
        return self.frozen

    def _thaw(self) -> int:
        count, self.frozen = self.frozen, 0
        return count

    def _exec(self, arguments: dict[str, Any]) -> dict[str, int]:
        self.executed.append([arguments["path"], *arguments.get("arg", [])])
        return {"pid": len(self.executed) - 1}


class AgentHorse(Workhorse):
    """A workhorse that runs (its BIOS finds nothing to boot, and waits), with an agent of the test's."""

    agent: FakeAgent

    def remove(self) -> None:
        """The agent too."""
        super().remove()
        self.agent.close()

    def boot(self) -> None:
        """Starts it, running, and returns when libvirt takes the agent for connected."""
        self.domain.create()
        deadline = time.monotonic() + _OPEN_TIMEOUT
        while not self._connected(time.monotonic() + _TRY):
            if time.monotonic() > deadline:
                raise TimeoutError("libvirt does not see the guest agent's channel open")
            self.domain.suspend()  # the BIOS uses the same ports
            self._open_channel()
            self.domain.resume()

    def _connected(self, until: float) -> bool:
        while "state='connected'" not in self.domain.XMLDesc(0):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _xml(self, disks: Iterable[str]) -> str:
        self.agent = FakeAgent(self.folder / "agent.sock")
        return (
            f"<domain type='qemu'><name>{self.name}</name><uuid>{self.uuid}</uuid>"
            "<memory unit='MiB'>16</memory><vcpu>1</vcpu>"
            "<os><type arch='x86_64' machine='pc'>hvm</type></os>"
            f"<devices><emulator>{machine.program('qemu-system-x86_64')}</emulator>{''.join(disks)}"
            "<controller type='usb' model='none'/><memballoon model='none'/>"
            f"<channel type='unix'><source mode='connect' path='{self.agent.path}'/>"
            "<target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices></domain>"
        )

    def _open_channel(self) -> None:
        """What the guest's driver does; nothing where the BIOS has given the device no ports yet."""
        base = self._registers()
        if base is None:
            return
        messages = [struct.pack("<IHH", 0, _DEVICE_READY, 1), struct.pack("<IHH", 1, _PORT_OPEN, 1)]
        self._out("b", base + 18, 0)  # reset
        self._out("b", base + 18, 3)  # acknowledged, with a driver
        self._out("w", base + 4, _MULTIPORT)
        self._out("h", base + 14, _CONTROL_OUT)
        size = self._in("h", base + 12)
        texts = _VRING + 0x8000
        table = b"".join(struct.pack("<QIHH", texts + 16 * n, len(text), 0, 0) for n, text in enumerate(messages))
        self._write(_VRING, table.ljust(16 * size, b"\0") + struct.pack("<HHHH", 0, len(messages), 0, 1))
        for n, text in enumerate(messages):
            self._write(texts + 16 * n, text)
        self._out("w", base + 8, _VRING >> 12)
        self._out("b", base + 18, 7)  # the driver is ready
        self._out("h", base + 16, _CONTROL_OUT)

    def _registers(self) -> int | None:
        """The port of the device's registers, once the BIOS has given it one."""
        for slot in range(32):
            place = 1 << 31 | slot << 11
            self._out("w", 0xCF8, place)
            if self._in("w", 0xCFC) == _SERIAL_DEVICE:
                self._out("w", 0xCF8, place | 4)
                self._out("w", 0xCFC, 7)  # I/O, memory, and bus master
                self._out("w", 0xCF8, place | 16)
                port = self._in("w", 0xCFC)
                return port & ~3 if port & 1 and port & ~3 else None
        return None

    def _write(self, address: int, data: bytes) -> None:
        place = int(re.findall(r"0x[0-9a-f]+$", self._human(f"gpa2hva {address}").strip())[0], 16)
        memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)
        try:
            os.pwrite(memory, data, place)
        finally:
            os.close(memory)

    def _out(self, size: str, port: int, value: int) -> None:
        self._human(f"o /{size} {port} {value}")

    def _in(self, size: str, port: int) -> int:
        return int(self._human(f"i /{size} {port}").rsplit("=", 1)[1], 16)

    def _human(self, command: str) -> str:
        import libvirt_qemu

        return str(libvirt_qemu.qemuMonitorCommand(self.domain, command, 1))


def agent_horse(lab: Lab, *disks: Any) -> AgentHorse:
    """One that runs."""
    horse = AgentHorse(lab.connection, lab.new_name(), lab.new_folder("domain"), disks, lab.run_folder)
    try:
        horse.boot()
    except BaseException:
        horse.remove()
        raise
    return horse
