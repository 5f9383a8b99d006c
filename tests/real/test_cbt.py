"""`vmbackup cbt` where libvirt is too old for it, and on what needs none of it; tests/torture has the rest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.engine.program import Program

pytestmark = pytest.mark.real


@pytest.fixture
def program(work_dir: Path, scratch_dir: Path) -> Program:
    made = Program(work_dir, scratch_dir, work_dir / "repository")
    made.configure()
    return made


def test_what_cannot_be_tracked_is_refused_and_stays_as_it_is(
    make_domain: Callable[..., Workhorse], program: Program, lab: Lab
) -> None:
    horse = make_domain(Disk("vda"), Disk("vdb", format="raw"))
    running = program.json("cbt", "enable", horse.name, "vdb", code=1)["error"]
    old = lab.connection.getLibVersion() < 10_010_000
    assert ("cannot track changes of raw disks" if old else "changed only while it is off") in running["message"]
    horse.stop()
    before = horse.domain.XMLDesc(2), horse.path("vdb").read_bytes()
    if old:
        said = program.json("cbt", "enable", horse.name, "vdb", code=1)["error"]
        assert "libvirt 10.10, as Debian 13 has it" in said["hint"]
    assert program.json("cbt", "disable", horse.name, "vdb")["changed"] is False
    assert "no raw data beside it" in program.json("cbt", "disable", horse.name, "vda", code=1)["error"]["message"]
    assert program.json("cbt", "disable", horse.name, "vdz", code=5)["error"]["hint"] == "it has vda, vdb"
    assert program.json("cbt", "enable", "nobody", "vda", code=5)["error"]["kind"] == "not_found"
    assert 'there is no command "cbt on"' in program.json("cbt", "on", code=2)["error"]["message"]
    assert (horse.domain.XMLDesc(2), horse.path("vdb").read_bytes()) == before
    assert {path.suffix for path in horse.folder.iterdir()} == {".qcow2", ".raw"}
