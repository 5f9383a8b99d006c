"""What a guest does by itself while it is backed up: it powers off, restarts, crashes."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import Shadow
from vmbackup.errors import PointInTimeLostError
from vmbackup.hypervisor import Host

pytestmark = pytest.mark.real
READY = 60.0  # seconds; the BIOS takes 2 under emulation on an idle machine

# In 16-bit code: of a byte from COM1, "p" powers off (ACPI, port 604h), "r" resets (port 64h), "c" tells of a panic
# (pvpanic, port 505h), any other comes back.
_CODE = bytes.fromhex(
    "bafd03eca80174fbbaf803ec3c70740b3c7274103c637412eeebe5ba0406b80020efebdcb0fee664ebd6ba0505b001eeebce"
)


class Machine(Workhorse):
    """A guest that runs, and does what it is told."""

    _port: socket.socket | None = None

    def boot(self) -> None:
        """Returns when it listens."""
        self.domain.create()
        self.listen()

    def listen(self) -> None:
        """Connects to its port, and returns when it answers."""
        deadline = time.monotonic() + READY
        self.hang_up()
        self._port = socket.socket(socket.AF_UNIX)
        self._port.connect(str(self.folder / "serial"))
        self._port.settimeout(1.0)
        while time.monotonic() < deadline:
            self.tell("x")
            with contextlib.suppress(TimeoutError):
                if b"x" in self._port.recv(64):
                    return
        raise TimeoutError(f"{self.name} did not boot")

    def tell(self, what: str) -> None:
        assert self._port is not None
        self._port.sendall(what.encode())

    def hang_up(self) -> None:
        if self._port is not None:
            self._port.close()

    def remove(self) -> None:
        self.hang_up()
        super().remove()

    def _xml(self, disks: Any) -> str:
        extra = f"<serial type='unix'><source mode='bind' path='{self.folder}/serial'/></serial><panic model='isa'/>"
        xml = super()._xml(disks).replace("</devices>", f"{extra}</devices>")
        return xml.replace("</os>", "</os><features><acpi/></features>")


@pytest.fixture
def guest(lab: Lab, host: Host, short_seal: None) -> Iterator[Machine]:
    made = Machine(lab.connection, lab.new_name(), lab.new_folder("domain"), [Disk(size=MiB, format="qcow2")])
    made.start()
    made.write_data("vda", 0, _CODE.ljust(510, b"\0") + b"\x55\xaa")
    made.stop()
    made.boot()
    yield made
    made.remove()


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_guest_that_powers_off(guest: Machine, host: Host) -> None:
    """The run fails; QEMU ended in good order, so that the next one is incremental."""
    shadow = Shadow(host, guest)
    shadow.run()
    with shadow.begin() as running:
        guest.tell("p")
        wait(lambda: not guest.running)
        with pytest.raises(PointInTimeLostError, match="while it was read"):
            running.seal()
    assert shadow.anchor
    assert guest.checkpoints() == [shadow.anchor.checkpoint]
    guest.boot()
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


@pytest.mark.torture
def test_a_guest_that_crashes(guest: Machine, host: Host) -> None:
    """The run makes its point, after libvirt has waited 30 s for the job; the guest stays paused, and that is told."""
    shadow = Shadow(host, guest)
    shadow.run()
    assert shadow.notes == []
    with shadow.begin() as running:
        guest.tell("c")
        wait(lambda: guest.monitor({"execute": "query-status"})["status"] == "guest-panicked")
        images = shadow.read(running)
        running.seal()
        shadow.commit(running, images)
    (note,) = shadow.notes
    (command,) = re.findall("'([^']+)'", note)
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True)
    guest.listen()
    shadow.run()
    assert (shadow.modes, shadow.notes) == ({"vda": "incremental"}, [])


def test_a_guest_that_restarts(guest: Machine, host: Host) -> None:
    """QEMU keeps the point in time: the run makes its point, of the instant of its begin."""
    shadow = Shadow(host, guest)
    shadow.run()
    before = bytes(shadow.images["vda"])
    restarted = threading.Event()
    raw = host.connection.live()
    number = raw.domainEventRegisterAny(None, 1, lambda *_: restarted.set(), None)  # VIR_DOMAIN_EVENT_ID_REBOOT
    with shadow.begin() as running:
        guest.write("vda", MiB // 2, 65536, 0x77)
        guest.tell("r")
        assert restarted.wait(READY)
        images = shadow.read(running)
        running.seal()
        shadow.commit(running, images)
    raw.domainEventDeregisterAny(number)
    assert bytes(shadow.images["vda"]) == before
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert bytes(shadow.images["vda"]) != before
