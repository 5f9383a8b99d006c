"""Starting and stopping libvirt, in namespaces of their own: the machine's libvirt is not touched."""

from __future__ import annotations

import subprocess
import textwrap

import pytest

from tests.lab import apart, machine

pytestmark = pytest.mark.real
PROLOGUE = """
import contextlib, os, signal, stat, subprocess, sys
from pathlib import Path
from tests.lab import libvirtd, machine
from tests.lab.libvirtd import LibvirtService, answers
assert not answers()
def running():
    names = set()
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):   # it has just ended
            name, _, rest = stat_file.read_text().partition("(")[2].rpartition(")")
            if rest.split()[0] != "Z":       # ended, and not yet reaped by the shell
                names.add(name)
    return names & {"libvirtd", "virtlogd"}
"""


def run(scenario: str) -> None:
    """Runs Python in fresh mount, network and process namespaces, where no libvirt runs."""
    reason = machine.missing()
    if reason:
        pytest.skip(reason)
    code = PROLOGUE + textwrap.dedent(scenario)
    done = subprocess.run(**apart.python("-c", code), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_started_for_us_and_stopped_after_us() -> None:
    """With no libvirt, one is started; it is gone afterwards, with virtlogd, and it can be done again."""
    run("""
        for _ in range(2):
            with LibvirtService():
                assert answers() and running() == {"libvirtd", "virtlogd"}
            assert not answers() and not running()
    """)


def test_the_last_user_stops_it() -> None:
    """Of two users the one who came first may leave; libvirt stays for the other."""
    run("""
        first, second = LibvirtService(), LibvirtService()
        first.__enter__(), second.__enter__()
        first.__exit__()
        assert answers()
        second.__exit__()
        assert not running()
    """)


def test_a_killed_user_does_not_keep_it() -> None:
    """A user that dies without leaving is not counted: the next one stops what it had started."""
    run("""
        pid = os.fork()
        if not pid:
            LibvirtService().__enter__()
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert running()
        with LibvirtService():
            assert answers()
        assert not running()
    """)


def test_a_foreign_libvirt_is_never_stopped() -> None:
    """Daemons that somebody else started are used and left alone."""
    run("""
        for name in ("virtlogd", "libvirtd"):
            subprocess.run([machine.program(name), "-d"], check=True)
        with LibvirtService():
            assert answers()
        assert running() == {"libvirtd", "virtlogd"}
    """)


def test_it_stays_while_somebody_else_uses_it() -> None:
    """A client that is still connected keeps what we started; the next to leave stops it."""
    run("""
        import libvirt
        with LibvirtService():
            guest = libvirt.open("qemu:///system")
        assert guest.getHostname()
        guest.close()
        libvirtd.GOODBYE_TIMEOUT = 60.0   # libvirtd may be slow to notice on a busy machine
        with LibvirtService():
            pass
        assert not running()
    """)


def test_kvm_device_gets_its_mode_back() -> None:
    """QEMU's user may open /dev/kvm while the lab is open, and no longer."""
    run("""
        device = machine.KVM_DEVICE = Path("/mnt/kvm")
        device.touch(0o600)
        device.chmod(0o600)
        with LibvirtService():
            assert stat.S_IMODE(device.stat().st_mode) == 0o666
        assert stat.S_IMODE(device.stat().st_mode) == 0o600
    """)
