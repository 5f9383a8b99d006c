"""Guests that are off, on block devices: no lock tells that another guest has one, here or on another host."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.block_device import NoDeviceError, loop_device
from tests.lab.cli import Cli
from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.second import SecondLibvirt
from tests.lab.session import Lab
from tests.real.hypervisor.test_migration import Pair, make_pair
from tests.real.hypervisor.test_stopped import MakeDomain, MakeShadow
from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor.images import image_info

pytestmark = pytest.mark.real
K64 = 65536


@pytest.fixture
def device(work_dir: Path) -> Iterator[Path]:
    """One with a qcow2 on it."""
    try:
        with loop_device(work_dir / "device.img", 16 * MiB) as made:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "4M"], check=True)
            yield Path(made)
    except NoDeviceError as error:
        pytest.skip(str(error))


def content(device: Path) -> bytes:
    return device.read_bytes()


def test_another_guest_of_this_host_has_it(
    make_domain: MakeDomain, make_shadow: MakeShadow, device: Path, work_dir: Path
) -> None:
    """Nothing is written to it, neither by a backup nor by cleaning up; the guest that has it is backed up."""
    at_work, off = make_domain(Disk(size=4 * MiB), start=False), make_domain(Disk(size=4 * MiB), start=False)
    shadow = make_shadow(off)
    off.move({"vda": device})
    shadow.run()
    with pytest.raises(HypervisorError, match=rf"made on hv2: if it runs there, {device} must be left alone here"):
        shadow.begin(elsewhere="hv2")
    with shadow.begin(elsewhere="hv2", full=True):
        pass
    at_work.move({"vda": device})
    at_work.start()
    at_work.write("vda", 0, K64, 1)
    at_work.flush("vda")
    before = content(device)
    with pytest.raises(JobConflictError, match=rf"{device} is open for writing, by another guest .*qemu-system"):
        shadow.begin()
    shadow.host.purge(shadow.host.domain(off.name))
    assert content(device) == before
    others = make_shadow(at_work)
    others.run()
    others.compare(work_dir)
    at_work.remove()


@pytest.fixture
def pair(lab: Lab, make_domain: MakeDomain, second: SecondLibvirt, work_dir: Path, device: Path) -> Iterator[Pair]:
    """Two hosts that share a device, and a guest on it that runs here."""
    horse: Workhorse = make_domain(Disk(size=4 * MiB), start=False)
    horse.move({"vda": device})
    horse.start()
    yield make_pair(lab, horse, second, work_dir)
    horse.remove()


@pytest.mark.torture
def test_another_host_has_it(pair: Pair, device: Path, second: SecondLibvirt) -> None:
    """The host that it has left knows nothing of that once its libvirt was restarted: the repository does."""
    pair.go()
    pair.backup(pair.there)
    pair.come_back(undefine=False)
    pair.horse.write("vda", 0, K64, 1)
    pair.backup(pair.here)
    second.connection.close()
    second.stop_daemon()
    second.start()
    left = second.connection.lookupByName(pair.horse.name)
    assert left.state() == [5, 0], "off, and it is not known why"
    pair.horse.stop()  # as on two machines: on the other one nobody sees who has the device open
    before = content(device)
    (pair.folder / "again").mkdir()
    there = Cli(pair.folder / "again", before=second.beside, home=pair.folder / "here")
    failed = there.run("backup", pair.horse.name, ok=(1,))["failed"][0]
    assert "is off here, and its newest restore point was made on" in failed["error"]
    assert f"'vmbackup backup {pair.horse.name} --full'" in failed["hint"]
    assert content(device) == before
    (point,) = there.run("backup", pair.horse.name, "--full")["points"]
    assert [disk["mode"] for disk in point["disks"]] == ["full"]
    left.undefineFlags(16)
    assert image_info(str(device), "qcow2").bitmaps
