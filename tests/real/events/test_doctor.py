"""doctor DOMAIN: a line a condition, with the command that mends it, as a shell takes it."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.bootsector import tiny_file_system
from tests.real.hypervisor.conftest import Shadow
from vmbackup.hypervisor import Check, DomainInfo, Host
from vmbackup.hypervisor.checks.guest import guest_checks
from vmbackup.hypervisor.live.scratch import free_bytes

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
_METADATA_ONLY = 2


def check(host: Host, horse: Workhorse, name: str) -> Check:
    (found,) = (each for each in host.checks([host.domain(horse.name)]) if each.name == name)
    return found


def test_bitmaps_without_a_checkpoint(make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """After an undefine: the next backup, which is the cure, uses them; then there is nothing to tell."""
    horse = make_domain(Disk(size=MiB))
    shadow = Shadow(host, horse)
    shadow.run()
    horse.stop()
    horse.domain.listAllCheckpoints(0)[0].delete(_METADATA_ONLY)
    horse.start()
    found = check(host, horse, "stray-bitmaps")
    assert (found.status, found.fix) == ("warn", f"vmbackup backup {horse.name}")
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert [each for each in host.checks([host.domain(horse.name)]) if each.name == "stray-bitmaps"] == []


def test_a_block_job(make_domain: MakeDomain, host: Host) -> None:
    """Somebody copies the disk: the command that is named shows the job."""
    horse = make_domain(Disk(size=8 * MiB))
    horse.write("vda", 0, 8 * MiB, 1)
    copy = horse.folder / "copy.qcow2"
    xml = f"<disk type='file'><driver type='qcow2'/><source file='{copy}'/></disk>"
    horse.domain.blockCopy("vda", xml, {}, 4)  # transient job: libvirt asks for it of a domain that is defined
    found = check(host, horse, "block-job")
    shown = subprocess.run(shlex.split(found.fix), check=True, capture_output=True, text=True)
    assert "Block Copy" in shown.stdout + shown.stderr
    horse.domain.blockJobAbort("vda", 0)


def test_a_transient_domain(make_domain: MakeDomain, host: Host) -> None:
    """The command that is named makes it persistent, with the password of its screen, which it shows to nobody."""
    horse = make_domain(Disk(size=MiB), start=False)
    screen = f"<graphics type='vnc' passwd='secret'><listen type='socket' socket='{horse.folder}/vnc'/></graphics>"
    horse.redefine(horse.domain.XMLDesc(2).replace("</devices>", f"{screen}</devices>"))
    horse.start()
    horse.domain.undefine()
    found = check(host, horse, "definition")
    subprocess.run(["sh", "-ec", found.fix], check=True, capture_output=True, cwd=horse.folder)
    assert horse.domain.isPersistent()
    assert "passwd='secret'" in horse.domain.XMLDesc(1 | 2)
    assert (horse.folder / "guest.xml").stat().st_mode & 0o077 == 0
    assert [each for each in host.checks([host.domain(horse.name)]) if each.name == "definition"] == []


def test_no_agent_channel(make_domain: MakeDomain, host: Host) -> None:
    """The command that is named plugs one in, and is not named again before it is there: at the next start."""
    horse = make_domain(Disk(size=MiB))
    horse.domain.resume()
    found = check(host, horse, "guest-agent")
    assert (found.status, "no guest agent channel" in found.message) == ("warn", True)
    subprocess.run(["sh", "-ec", found.fix], check=True, capture_output=True)
    assert check(host, horse, "guest-agent").fix.startswith(f"virsh shutdown {horse.name} ")
    horse.stop()
    horse.start()
    found = check(host, horse, "guest-agent")
    assert found.fix == f"virsh resume {horse.name}"
    subprocess.run(shlex.split(found.fix), check=True, capture_output=True)
    assert "not connected" in check(host, horse, "guest-agent").message


def test_too_little_scratch_space(make_domain: MakeDomain, host: Host, scratch_dir: Path) -> None:
    """Told before a backup is refused."""
    horse = make_domain(Disk(size=64 * MiB))
    with tiny_file_system(scratch_dir, "4m"):
        found = check(host, horse, "scratch-need")
    assert found.status == "fail"
    assert shlex.quote(str(scratch_dir)) in found.fix
    assert check(host, horse, "scratch-need").status == "ok"


def test_a_domain_without_disks(make_domain: MakeDomain, host: Host) -> None:
    horse = make_domain(Disk(size=MiB))
    domain = host.domain(horse.name)
    found = {each.name: each.status for each in guest_checks(horse.domain, domain, [], "/", free_bytes)}
    assert found == {"disks": "fail"}


@pytest.mark.parametrize("runs", [True, False])
def test_a_kernel_of_the_host(make_domain: MakeDomain, host: Host, runs: bool) -> None:
    """It is in each restore point, of the guest running or off; where it is gone the next start fails."""
    horse = make_domain(Disk(size=MiB))
    kernel = horse.folder / "vmlinuz"
    kernel.write_bytes(b"kernel")
    xml = horse.domain.XMLDesc(2).replace("</os>", f"<kernel>{kernel}</kernel></os>")
    horse.domain = horse.domain.connect().defineXML(xml)
    if not runs:
        horse.stop()
    found = check(host, horse, "boot-files")
    assert (found.status, str(kernel) in found.message) == ("ok", True)
    kernel.unlink()
    assert check(host, horse, "boot-files").status == "fail"


class Stopped:
    """A domain that a failing write has stopped, or whose system has crashed."""

    def __init__(self, state: tuple[int, int]) -> None:
        self._state = state

    def state(self) -> tuple[int, int]:
        return self._state

    def diskErrors(self) -> dict[str, int]:  # noqa: N802
        return {"vda": 2}

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.mark.parametrize(
    ("state", "named", "status", "fix"),
    [
        ((3, 5), "paused", "fail", "virsh resume 'my guest'"),
        ((6, 0), "crashed", "warn", "virsh reset 'my guest' && virsh resume 'my guest'"),
    ],
)
def test_a_domain_that_stands_still(state: tuple[int, int], named: str, status: str, fix: str) -> None:
    """With a name that a shell would take for two words."""
    info = DomainInfo("my guest", "", 1, named)
    found = next(iter(guest_checks(Stopped(state), info, [], "/", free_bytes)))
    assert (found.status, found.fix) == (status, fix)
    assert "no space left" in found.message or named == "crashed"
