"""Raw disks tracked by a qcow2 beside their data, on Debian 13's libvirt: enabled, backed up, restored, disabled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.lab.second import SecondLibvirt
from tests.lab.session import Lab
from tests.real.engine.kit import Kit, kits
from vmbackup.engine.restore.in_place import InPlaceOptions, restore_in_place
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.tracking import disk as tracking
from vmbackup.progress import Silent

pytestmark = [pytest.mark.torture, pytest.mark.versions]


@pytest.fixture
def kit(work_dir: Path, scratch_dir: Path, trixie: SecondLibvirt) -> Iterator[Kit]:
    """With Debian 13's libvirt as its host."""
    yield from kits(work_dir, scratch_dir, uri=trixie.uri, domain_folders=trixie.domain_folders)


@pytest.fixture
def horse(lab: Lab, trixie: SecondLibvirt) -> Iterator[Workhorse]:
    """Stopped; a qcow2 and a raw disk with data and holes."""
    disks = (Disk("vda"), Disk("vdb", size=32 * MiB, format="raw"))
    made = Workhorse(trixie.connection, lab.new_name(), lab.new_folder("domain"), disks, trixie.run_folder)
    with made.path("vdb").open("r+b") as file:
        file.write(os.urandom(3 * MiB))
    yield made
    made.remove()


def enable(kit: Kit, horse: Workhorse) -> tracking.Tracking:
    """With proof that the data is as it was."""
    before, found = horse.path("vdb").read_bytes(), horse.path("vdb").stat()
    done = tracking.enable(kit.host, kit.host.domain(horse.name), "vdb", compare=True)
    after = horse.path("vdb").stat()
    assert horse.path("vdb").read_bytes() == before
    assert (after.st_ino, after.st_blocks) == (found.st_ino, found.st_blocks)
    return done


def modes(kit: Kit, horse: Workhorse) -> dict[str, str]:
    point = kit.backup(horse)
    return {disk.target: disk.mode for disk in point.disks}


def check(kit: Kit, horse: Workhorse) -> None:
    """The newest point is what the raw file holds, whose bytes are the guest's."""
    horse.flush("vdb")
    for file in kit.restore(max(point.id for point in kit.points()), "raw").files:
        if file.target == "vdb":
            assert file.path.read_bytes() == horse.path("vdb").read_bytes()
        file.path.unlink()


def test_backups_of_a_tracked_disk_are_incremental(kit: Kit, horse: Workhorse) -> None:
    """Once more read whole, then by the bitmap, also after stops; and read whole again without tracking."""
    horse.start()
    assert modes(kit, horse) == {"vda": "full", "vdb": "full"}
    assert modes(kit, horse) == {"vda": "incremental", "vdb": "reread"}
    checks = kit.host.checks([kit.host.domain(horse.name)])
    (advice,) = (check.fix for check in checks if check.fix.startswith("vmbackup"))
    assert advice == f"vmbackup cbt enable {horse.name} vdb   # with the domain off"
    with pytest.raises(HypervisorError, match="only while it is off"):
        tracking.enable(kit.host, kit.host.domain(horse.name), "vdb")
    horse.stop()

    done = enable(kit, horse)
    assert done.changed
    assert not tracking.enable(kit.host, kit.host.domain(horse.name), "vdb").changed
    horse.start()
    assert modes(kit, horse) == {"vda": "incremental", "vdb": "reread"}
    check(kit, horse)
    horse.write("vdb", 5 * MiB + 4096, 8192, 0x5A)
    point = kit.backup(horse)
    vdb = next(disk for disk in point.disks if disk.target == "vdb")
    assert vdb.mode == "incremental"
    assert vdb.read_bytes < MiB
    check(kit, horse)

    horse.stop()
    horse.start()
    horse.write("vdb", 9 * MiB, 4096, 0x77)
    horse.zero_unmap("vdb", MiB, MiB)
    assert modes(kit, horse) == {"vda": "incremental", "vdb": "incremental"}
    check(kit, horse)

    horse.write("vdb", 20 * MiB, 4096, 0x42)
    horse.stop()
    assert modes(kit, horse) == {"vda": "incremental", "vdb": "incremental"}  # the guest is off
    (file,) = kit.restore(max(point.id for point in kit.points()), "raw", ("vdb",)).files
    assert file.path.read_bytes() == horse.path("vdb").read_bytes()
    before = horse.path("vdb").read_bytes()
    assert tracking.disable(kit.host, kit.host.domain(horse.name), "vdb", compare=True).changed
    assert horse.path("vdb").read_bytes() == before
    assert not done.metadata.exists()
    horse.start()
    assert modes(kit, horse) == {"vda": "incremental", "vdb": "reread"}
    check(kit, horse)


def test_lost_tracking_is_noticed(kit: Kit, horse: Workhorse) -> None:
    """QEMU killed; the data replaced under the qcow2."""
    enable(kit, horse)
    horse.start()
    kit.backup(horse)
    horse.write("vdb", 0, 4096, 1)
    horse.kill()
    horse.start()
    assert modes(kit, horse) == {"vda": "reread", "vdb": "reread"}
    check(kit, horse)
    horse.stop()
    other = horse.folder / "other.raw"
    other.write_bytes(os.urandom(32 * MiB))
    os.chown(other, horse.path("vdb").stat().st_uid, horse.path("vdb").stat().st_gid)
    other.replace(horse.path("vdb"))
    horse.start()
    point = kit.backup(horse)
    vdb = next(disk for disk in point.disks if disk.target == "vdb")
    assert vdb.mode == "reread"
    assert "raw data is another file" in (vdb.reason or "")
    check(kit, horse)


def test_a_tracked_disk_is_restored_in_place(kit: Kit, horse: Workhorse) -> None:
    enable(kit, horse)
    horse.start()
    point = kit.backup(horse)
    horse.flush("vdb")
    before = horse.path("vdb").read_bytes()
    horse.write("vdb", MiB, 3 * MiB, 0x11)
    horse.stop()
    restore_in_place(kit.host, kit.repository, kit.point(point.id), InPlaceOptions(), Silent())
    assert horse.path("vdb").read_bytes() == before
    horse.start()
    assert modes(kit, horse)["vdb"] == "incremental"  # its bitmap has recorded the restore too
    check(kit, horse)


def test_what_does_not_fit_is_refused_and_stays(
    kit: Kit, horse: Workhorse, lab: Lab, trixie: SecondLibvirt
) -> None:
    """A qcow2; data that another guest has; a foreign file in the place; a killed run's is made anew."""
    domain = kit.host.domain(horse.name)
    xml = horse.domain.XMLDesc(2)
    with pytest.raises(HypervisorError, match="tracks its changes itself"):
        tracking.enable(kit.host, domain, "vda")
    place = horse.path("vdb").with_name(horse.path("vdb").name + ".tracking.qcow2")
    place.write_bytes(b"of somebody else")
    with pytest.raises(HypervisorError, match="is there already"):
        tracking.enable(kit.host, domain, "vdb")
    assert place.read_bytes() == b"of somebody else"
    place.unlink()

    other = Workhorse(trixie.connection, lab.new_name(), lab.new_folder("domain"), (Disk("vda"),), trixie.run_folder)
    source = horse.path("vdb")
    disk = f"<disk type='file'><source file='{source}'/><target dev='vdz' bus='virtio'/></disk>"
    other.domain.attachDeviceFlags(disk, 2)
    try:
        with pytest.raises(HypervisorError, match=f"also a disk of {other.name}"):
            tracking.enable(kit.host, domain, "vdb")
    finally:
        other.remove()
    assert horse.domain.XMLDesc(2) == xml
    assert sorted(path.suffix for path in horse.folder.iterdir()) == [".qcow2", ".raw"]
    enable(kit, horse)
    trixie.connection.defineXML(xml)  # as a run that was killed before the definition leaves it
    assert enable(kit, horse).changed
    horse.start()
    subprocess.run(["qemu-img", "check", "-q", "-U", str(place)], check=True)
    assert same_content(place, source) is None
