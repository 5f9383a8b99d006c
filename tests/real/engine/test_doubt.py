"""What QEMU's bitmap does not tell: another image in a disk's place, a disk cut and grown, a snapshot applied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit
from vmbackup.repository import PointSummary

pytestmark = pytest.mark.real
K64 = 64 << 10


@pytest.fixture
def horse(make_domain: Callable[..., Workhorse], kit: Kit) -> Workhorse:
    """Two disks of one size, which differ, with a restore point."""
    made: Workhorse = make_domain(Disk(target="vda", size=8 * MiB), Disk(target="vdb", size=8 * MiB))
    made.write("vda", MiB, K64, 0xAA)
    made.write("vdb", MiB, K64, 0xBB)
    made.write("vda", 7 * MiB, K64, 0xA7)
    kit.backup(made)
    return made


def reasons(point: PointSummary) -> dict[str, str | None]:
    return {disk.target: disk.reason if disk.mode == "reread" else None for disk in point.disks}


def test_swapped_in_the_domain(horse: Workhorse, kit: Kit) -> None:
    """Two images that changed places in the domain's XML: both have the checkpoint's bitmap, and neither is used."""
    horse.stop()
    horse.swap("vda", "vdb")
    horse.start()
    point = kit.backup(horse)
    assert all("another image" in (reason or "") for reason in reasons(point).values())
    kit.check(horse, point.id)
    horse.write("vda", 2 * MiB, K64, 0x55)
    again = kit.backup(horse)
    assert reasons(again) == {"vda": None, "vdb": None}
    kit.check(horse, again.id)


def test_swapped_on_the_file_system(horse: Workhorse, kit: Kit) -> None:
    """The same by renaming files, while the domain was off."""
    horse.stop()
    a, b = horse.path("vda"), horse.path("vdb")
    spare = a.with_name("spare")
    os.rename(a, spare)
    os.rename(b, a)
    os.rename(spare, b)
    horse.start()
    point = kit.backup(horse)
    assert all("another file" in (reason or "") for reason in reasons(point).values())
    kit.check(horse, point.id)


def test_cut_and_grown_while_it_runs(horse: Workhorse, kit: Kit) -> None:
    """QEMU's bitmap is clean where the disk was cut; it is zeros, and restored as zeros."""
    horse.grow("vda", 4 * MiB)
    horse.grow("vda", 8 * MiB)
    point = kit.backup(horse)
    assert "missed a change" in (reasons(point)["vda"] or "")
    assert reasons(point)["vdb"] is None
    assert point.warnings
    kit.check(horse, point.id)


def test_cut_and_grown_while_it_was_off(horse: Workhorse, kit: Kit) -> None:
    """The same by qemu-img."""
    horse.stop()
    for arguments in (("--shrink", "4M"), ("8M",)):
        *flags, size = arguments
        command = ["qemu-img", "resize", "-q", "-f", "qcow2", *flags, str(horse.path("vda")), size]
        subprocess.run(command, check=True)
    horse.start()
    point = kit.backup(horse)
    assert reasons(point)["vda"]
    kit.check(horse, point.id)


def test_a_snapshot_cannot_be_applied_past_the_bitmap(horse: Workhorse, kit: Kit) -> None:
    """qemu-img refuses to bring an older state back while our bitmap is in the image; the chain stays right."""
    horse.stop()
    image = str(horse.path("vda"))
    subprocess.run(["qemu-img", "snapshot", "-c", "before", image], check=True)
    horse.start()
    horse.write("vda", MiB, 7 * MiB, 0x77)
    kit.backup(horse)
    horse.stop()
    done = subprocess.run(["qemu-img", "snapshot", "-a", "before", image], check=False, capture_output=True, text=True)
    horse.start()
    point = kit.backup(horse)
    assert "has active dirty bitmaps" in done.stderr
    assert reasons(point) == {"vda": None, "vdb": None}
    kit.check(horse, point.id)


def test_a_sound_chain_of_two_disks_raises_no_doubt(horse: Workhorse, kit: Kit, tmp_path: Path) -> None:
    """Stopped, started, written: still incremental."""
    for step in range(3):
        horse.stop()
        horse.start()
        horse.write("vda", step * MiB, 2 * K64, step)
        point = kit.backup(horse)
        assert reasons(point) == {"vda": None, "vdb": None}
        assert point.warnings == ()
        kit.check(horse, point.id)


@pytest.mark.parametrize("how", ["replaced", "rebased"])
def test_another_image_below(make_domain: Callable[..., Workhorse], kit: Kit, how: str) -> None:
    """What a disk builds on is no longer what it was, as its own bitmap does not tell: on, off, and back again."""
    made = make_domain(Disk(size=8 * MiB), start=False)
    top, base, other = made.path("vda"), made.folder / "base.qcow2", made.folder / "other.qcow2"
    for image, places in ((base, "-c 'write -P 1 0 8M'"), (other, "-c 'write -P 1 0 8M' -c 'write -P 2 4M 64k'")):
        Disk(size=8 * MiB).create(image)
        subprocess.run(f"qemu-io -f qcow2 {places} {image}", shell=True, check=True, capture_output=True)
    top.unlink()
    Disk(size=8 * MiB).create(top, backing=base)
    made.start()
    made.write("vda", 0, K64, 9)
    kit.backup(made)
    made.stop()
    assert reasons(kit.backup(made)) == {"vda": None}
    if how == "replaced":
        os.replace(other, base)
    else:
        subprocess.run(["qemu-img", "rebase", "-u", "-b", str(other), "-F", "qcow2", str(top)], check=True)
    point = kit.backup(made)
    assert "is another" in (reasons(point)["vda"] or "")
    kit.check(made, point.id)
    made.start()
    made.write("vda", MiB, K64, 7)
    again = kit.backup(made)
    assert reasons(again) == {"vda": None}
    kit.check(made, again.id)
