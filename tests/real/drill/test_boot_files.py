"""A drill of a guest that is started from files of its host boots those of the restore point, whatever the host has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.tiny_kernel import initrd, kernel
from tests.real.engine.program import Program

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


def test_the_kernel_of_the_point_boots(
    make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path
) -> None:
    """Each point says what its own initrd says; nothing stays of the copies."""
    horse = make_domain(Disk("vda", size=4 * MiB))
    program = Program.make(work_dir, scratch_dir)
    vmlinuz, ramdisk = horse.folder / "vmlinuz", horse.folder / "initrd"
    vmlinuz.write_bytes(kernel())
    files = f"<kernel>{vmlinuz}</kernel><initrd>{ramdisk}</initrd></os>"
    horse.domain = horse.domain.connect().defineXML(horse.domain.XMLDesc(2).replace("</os>", files))
    points = []
    for word in ("first", "second"):
        ramdisk.write_bytes(initrd(f"this is the {word} initrd"))
        points.append(program.json("backup", horse.name)["points"][0]["id"])
    vmlinuz.unlink()
    ramdisk.write_bytes(initrd("this is another initrd"))
    for point, word in zip(points, ("first", "second"), strict=True):
        (drill,) = program.json("drill", point, "--console", f"the {word} initrd", "--boot-within", "60s")["drills"]
        assert (drill["success"], f"this is the {word} initrd" in drill["console"]) == (True, True)
    assert ramdisk.read_bytes() == initrd("this is another initrd")
    assert not [path for folder in (scratch_dir, work_dir / "state/drills") for path in folder.rglob("*")]

    ramdisk.write_bytes(initrd("this is the second initrd"))  # which is no proof of what is stored
    (pack,) = [path for path in (work_dir / "repository/data").rglob("*-0") if points[1][-8:] in path.name]
    pack.unlink()
    document = program.json("drill", points[1], "--console", "the second initrd", code=1)
    assert f"initrd {ramdisk} cannot be restored: " in document["drills"][0]["problem"]
