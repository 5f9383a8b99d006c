"""A booted guest that is started from files of its host finds them, also where that has lost them, and keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.tiny_kernel import initrd, kernel
from tests.real.boot.kit import BootedGuest, Rig

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
Boot = Callable[..., BootedGuest]


@pytest.fixture
def horse(make_domain: Callable[..., Workhorse], rig: Rig) -> Workhorse:
    """It has a restore point; its host has lost the initrd since, and has the kernel as it was."""
    horse = make_domain(Disk("vda", size=4 * MiB))
    (horse.folder / "vmlinuz").write_bytes(kernel())
    (horse.folder / "initrd").write_bytes(initrd("up"))
    files = f"<kernel>{horse.folder}/vmlinuz</kernel><initrd>{horse.folder}/initrd</initrd></os>"
    horse.domain = horse.domain.connect().defineXML(horse.domain.XMLDesc(2).replace("</os>", files))
    rig.program.json("backup", horse.name)
    (horse.folder / "initrd").unlink()
    return horse


def is_started_from(guest: BootedGuest, horse: Workhorse, ramdisk: Path) -> bool:
    xml = guest.domain.XMLDesc(2)
    return f"<kernel>{horse.folder}/vmlinuz</kernel>" in xml and f"<initrd>{ramdisk}</initrd>" in xml


def test_it_is_moved_with_its_disks(boot: Boot, horse: Workhorse, rig: Rig, work_dir: Path) -> None:
    """From then on it is started from the copy beside them."""
    guest = boot(horse.name)
    copy = guest.folder / "boot-files/initrd"
    assert is_started_from(guest, horse, copy)
    assert copy.read_bytes() == initrd("up")
    guest.domain.destroy()
    rig.program.json("boot", "--start", guest.name)
    assert guest.domain.isActive()

    taken = work_dir / "taken"
    (taken / "boot-files").mkdir(parents=True)
    (taken / "boot-files/initrd").write_bytes(b"somebody's")
    rig.program.refusal("boot", "--finish", guest.name, "--output", str(taken), code=1, says="is already there")
    assert [path.name for path in taken.iterdir()] == ["boot-files"]
    assert (taken / "boot-files/initrd").read_bytes() == b"somebody's"

    output = work_dir / "disks"
    rig.program.json("boot", "--finish", guest.name, "--output", str(output))
    moved = output / "boot-files/initrd"
    assert is_started_from(guest, horse, moved)
    assert moved.read_bytes() == initrd("up")
    assert rig.left() == []
    guest.domain.destroy()
    guest.domain.create()


def test_nothing_stays_of_one_that_is_discarded(boot: Boot, horse: Workhorse, rig: Rig) -> None:
    guest = boot(horse.name)
    rig.program.json("boot", "--discard", guest.name)
    assert rig.left() == []
    assert (horse.folder / "vmlinuz").read_bytes() == kernel()
