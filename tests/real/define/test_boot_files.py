"""A guest that is started from files of its host is restored on one that has lost them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.lab.tiny_kernel import initrd, kernel
from tests.real.cli.test_commands import Program

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
Look = Callable[[str], Any]


def boot_paths(domain: Any) -> list[str]:
    root = ET.fromstring(domain.XMLDesc(2))
    return [root.findtext("./os/kernel", ""), root.findtext("./os/initrd", "")]


@pytest.fixture
def horse(make_domain: MakeDomain) -> Workhorse:
    """It has a kernel and an initrd at its next start."""
    made = make_domain(Disk("vda", size=4 * MiB))
    (made.folder / "vmlinuz").write_bytes(kernel())
    (made.folder / "initrd").write_bytes(initrd("first"))
    files = f"<kernel>{made.folder}/vmlinuz</kernel><initrd>{made.folder}/initrd</initrd>"
    made.domain = made.domain.connect().defineXML(made.domain.XMLDesc(2).replace("</os>", f"{files}</os>"))
    return made


def test_the_host_has_lost_them(
    vmbackup: Program, horse: Workhorse, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """Each point starts from its own; what is here as it was is used where it lies, and nothing of the host changes."""
    first = vmbackup.json("backup", horse.name)["points"][0]
    assert [(file["kind"], file["size"]) for file in first["files"]] == [("kernel", 66), ("initrd", 8)]
    (horse.folder / "initrd").write_bytes(initrd("second"))
    second = vmbackup.json("backup", horse.name)["points"][0]
    assert [file["stored_bytes"] > 0 for file in second["files"]] == [False, True]

    name, output = lab.new_name(), work_dir / "first"
    command = ("--output", str(output), "--define", "--start")
    said = vmbackup.json("restore", first["id"], *command, "--name", name)
    copy = output / "boot-files/initrd"
    assert boot_paths(domain(name)) == [f"{horse.folder}/vmlinuz", str(copy)]
    assert f"the initrd {horse.folder}/initrd is another file here: the restored copy {copy} instead" in str(said)
    assert (copy.read_bytes(), domain(name).isActive()) == (initrd("first"), True)
    assert (horse.folder / "initrd").read_bytes() == initrd("second")

    for file in ("vmlinuz", "initrd"):
        (horse.folder / file).unlink()
    name, output = lab.new_name(), work_dir / "second"
    command = ("restore", second["id"], "--output", str(output), "--define", "--start", "--name", name)
    told = vmbackup(*command, "--dry-run")
    assert f"the kernel {horse.folder}/vmlinuz is not here: the restored copy {output}/boot-files/vmlinuz" in told
    assert not output.exists()
    vmbackup(*command)
    assert boot_paths(domain(name)) == [f"{output}/boot-files/vmlinuz", f"{output}/boot-files/initrd"]
    assert (output / "boot-files/initrd").read_bytes() == initrd("second")
    assert domain(name).isActive()

    third = vmbackup.json("backup", horse.name, code=3)["points"][0]
    assert [warning.partition(" is not in")[0] for warning in third["warnings"]] == [
        f"kernel {horse.folder}/vmlinuz", f"initrd {horse.folder}/initrd",
    ]  # fmt: skip
    command = ("restore", third["id"], "--output", str(work_dir / "third"), "--define", "--name", lab.new_name())
    assert "which is not here" in vmbackup(*command, code=1)
    assert vmbackup.json("verify", "--read-data")["damaged"] == []


def test_firmware_of_ones_own(
    vmbackup: Program, make_domain: MakeDomain, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """libvirt sees to QEMU's rights on a kernel, not on a loader."""
    bios = Path("/usr/share/seabios/bios-256k.bin")
    if not bios.exists():
        pytest.skip(f"{bios} is not here: apt install seabios")
    horse = make_domain(Disk("vda", size=4 * MiB))
    own = horse.folder / "bios.bin"
    own.write_bytes(bios.read_bytes())
    loader = f"<loader type='rom'>{own}</loader></os>"
    horse.domain = horse.domain.connect().defineXML(horse.domain.XMLDesc(2).replace("</os>", loader))
    vmbackup("backup", horse.name)
    own.unlink()
    name, output = lab.new_name(), work_dir / "out"
    vmbackup("restore", horse.name, "--output", str(output), "--define", "--start", "--name", name)
    assert f">{output}/boot-files/bios.bin</loader>" in domain(name).XMLDesc(0)
    assert domain(name).isActive()


def test_in_place(vmbackup: Program, horse: Workhorse) -> None:
    """Disks are what is brought back: a file of the host is nobody's but the host's. What differs is said."""
    point = vmbackup.json("backup", horse.name)["points"][0]
    horse.stop()
    assert vmbackup.json("restore", point["id"], "--in-place")["warnings"] == []
    (horse.folder / "initrd").write_bytes(initrd("other"))
    (horse.folder / "vmlinuz").unlink()
    (warning,) = vmbackup.json("restore", point["id"], "--in-place", code=3)["warnings"]
    assert f"were not touched: {horse.folder}/vmlinuz, {horse.folder}/initrd (" in warning
    assert (horse.folder / "initrd").read_bytes() == initrd("other")
    assert not (horse.folder / "vmlinuz").exists()


def test_shown(vmbackup: Program, horse: Workhorse) -> None:
    point = vmbackup.json("backup", horse.name)["points"][0]
    lines = vmbackup("show", point["id"]).splitlines()
    assert [line.split()[:3] for line in lines[-2:]] == [
        [f"{horse.folder}/vmlinuz", "kernel", "66"], [f"{horse.folder}/initrd", "initrd", "8"],
    ]  # fmt: skip


def test_onto_images_that_are_there(
    vmbackup: Program, horse: Workhorse, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """No folder was named for copies: what is here is taken, and it is said that it is another."""
    vmbackup("backup", horse.name)
    image = work_dir / "image.raw"
    image.write_bytes(bytes(4 * MiB))
    (horse.folder / "initrd").write_bytes(initrd("other"))
    name = lab.new_name()
    said = vmbackup.json("restore", horse.name, "--to", f"vda={image}", "--define", "--name", name, code=3)
    assert f"the initrd {horse.folder}/initrd of this host is another file than the restore point's" in said["warnings"]
    assert boot_paths(domain(name)) == [f"{horse.folder}/vmlinuz", f"{horse.folder}/initrd"]
