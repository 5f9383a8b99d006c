"""A guest at work on a served point, while its server is killed again and again: it is never told of an error."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.lab.session import Lab
from tests.real.boot.kit import BootedGuest, Rig, wait
from tests.real.hypervisor.bootsector import BootSectorGuest

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]  # a command is a process: seconds on a busy machine
SECONDS = 60.0
ROUNDS = 4


def test_a_guest_is_never_told_that_its_server_died(lab: Lab, rig: Rig, boot: Callable[..., BootedGuest]) -> None:
    """Each write needs a part of what is served; those during a death are answered when it is served again."""
    original = BootSectorGuest(lab)
    try:
        rig.program.json("backup", original.name)
        original.domain.destroy()
        guest = boot(original.name)
        with terminal(guest.serial()) as port:
            wait(lambda: ask(port, 1, 2.0) == b"k", "the guest to boot from what is served")
            while ask(port, None, 1.0):  # of attempts that came late
                pass
            for number in range(ROUNDS):
                server = guest.server()
                os.kill(server, signal.SIGKILL)
                # It writes 32 KiB at a time, into clusters of 64 KiB.
                assert ask(port, 10 + number, SECONDS) == b"k"
                wait(lambda old=server: guest.listed["served"] and guest.server() != old, "the next server")
        assert guest.listed["state"] == "running"
        assert guest.io("vda", f"read -P {10 + ROUNDS - 1} {10 + ROUNDS - 1}M 1M") == ""
        assert guest.io("vda", "read -P 0x11 20M 4M") == ""
    finally:
        original.remove()


@contextlib.contextmanager
def terminal(path: str) -> Iterator[int]:
    """The pseudo terminal of a serial port."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def ask(port: int, byte: int | None, seconds: float) -> bytes:
    """Tells the guest to write; gives its answer, nothing where none came in time."""
    if byte is not None:
        os.write(port, bytes([byte]))
    return os.read(port, 1) if select.select([port], [], [], seconds)[0] else b""
