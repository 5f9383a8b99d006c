"""Drills of a system that boots in a second: nothing stays, however they end, and the original is not touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.lab.tiny_system import boot_sector
from tests.real.engine.program import Program

pytestmark = pytest.mark.real

Make = Callable[..., Workhorse]
DRILL = """
[jobs.nightly]
domains = ["*"]
[jobs.nightly.drill]
schedule = "@weekly"
console = "tiny system"
boot_within = "60s"
"""


@pytest.fixture
def program(work_dir: Path) -> Program:
    program = Program(work_dir, work_dir / "scratch", work_dir / "repository")
    (work_dir / "state").mkdir()
    program.configure()
    with (work_dir / "config.toml").open("a") as config:
        config.write(DRILL)
    program.json("init")
    return program


@pytest.fixture
def horse(make_domain: Make, program: Program) -> Workhorse:
    """A domain with a restore point of a system that boots."""
    horse = make_domain()
    horse.write_data("vda", 0, boot_sector("the tiny system is up"))
    program.json("backup", horse.name)
    return horse


@pytest.fixture(autouse=True)
def nothing_left(lab: Lab, work_dir: Path) -> Iterator[None]:
    yield
    assert left(lab, work_dir) == []


def left(lab: Lab, folder: Path) -> list[str]:
    """What drills have on this host."""
    found = [domain.name() for domain in lab.connection.listAllDomains() if domain.name().startswith("vmbackup-drill-")]
    found += [str(path) for path in (folder / "scratch").rglob("*") if (folder / "scratch").exists()]
    return found + [str(path) for path in (folder / "state/drills").glob("*")]


def state_of(horse: Workhorse) -> tuple[str, str, bytes]:
    import libvirt

    flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
    horse.flush("vda")
    return horse.domain.XMLDesc(flags), horse.domain.XMLDesc(0), horse.path("vda").read_bytes()


def test_it_boots(program: Program, horse: Workhorse, lab: Lab) -> None:
    """What was seen is told and recorded, with a picture; the original is as it was."""
    before = state_of(horse)
    (drill,) = program.json("drill", horse.name)["drills"]
    assert (drill["success"], drill["domain"], drill["problem"]) == (True, horse.name, None)
    assert 0 < drill["boot_seconds"] < 60
    assert "the tiny system is up" in drill["console"]
    assert Path(drill["picture"]).read_bytes()[:4] == b"\x89PNG"
    told = program.json("show", f"{horse.name}@latest")["points"][0]["drill"]
    assert (told["success"], told["boot_seconds"]) == (True, drill["boot_seconds"])
    assert state_of(horse) == before
    assert {domain.name() for domain in lab.connection.listAllDomains()} >= {horse.name}


def test_it_does_not_boot(program: Program, horse: Workhorse) -> None:
    """Exit code 1, with what was seen; the next drill of another point goes well."""
    good = program.json("list")["points"][0]["id"]
    horse.write("vda", 0, 512, 0)
    program.json("backup", horse.name)
    failed = program.json("drill", horse.name, "--boot-within", "8s", code=1)
    assert failed["error"]["kind"] == "drill"
    assert "had not booted after 8 s: its console showed nothing like tiny system" in failed["error"]["message"]
    assert not failed["drills"][0]["success"]
    assert Path(failed["drills"][0]["picture"]).exists()
    assert program.json("drill", good)["drills"][0]["success"]
    guests = program.json("info")["guests"][0]["drill"]
    assert guests["last"]["success"]


def test_some_fail(program: Program, horse: Workhorse, make_domain: Make) -> None:
    other = make_domain()
    program.json("backup", other.name)
    document = program.json("drill", "--all", "--boot-within", "15s", code=3)
    assert {drill["domain"]: drill["success"] for drill in document["drills"]} == {horse.name: True, other.name: False}
    assert [failed["domain"] for failed in document["failed"]] == [other.name]


@pytest.fixture
def running(program: Program, horse: Workhorse, lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A drill whose guest runs, and waits for what never comes."""
    command = program.command("drill", horse.name, "--console", "never", "--boot-within", "5m")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            wait(lambda: any(name.startswith("vmbackup-drill-") for name in left(lab, program.folder)), 60)
            yield process
        finally:
            process.kill()
    subprocess.run(program.command("recover"), check=True, capture_output=True)


def wait(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s"
        time.sleep(0.1)


def test_killed(program: Program, horse: Workhorse, lab: Lab, running: subprocess.Popen[bytes]) -> None:
    """libvirt ends the guest at once; `recover` takes away the rest, and says so. The next drill works."""
    before = state_of(horse)
    running.send_signal(signal.SIGKILL)
    wait(lambda: not any(name.startswith("vmbackup-drill-") for name in left(lab, program.folder)), 30)
    assert left(lab, program.folder)
    assert program.json("recover")["recovered"] == [
        {"domain": horse.name, "what": "removed the throw-away guest and files of a drill that was killed"}
    ]
    assert left(lab, program.folder) == []
    assert program.json("drill", horse.name)["drills"][0]["success"]
    assert state_of(horse) == before


def test_ended(program: Program, lab: Lab, running: subprocess.Popen[bytes]) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 130
    assert left(lab, program.folder) == []


def test_while_one_goes_on(program: Program, horse: Workhorse, lab: Lab, running: subprocess.Popen[bytes]) -> None:
    """A second of the same guest is refused, `recover` leaves it alone, and nobody takes it for a guest to back up."""
    assert program.json("drill", horse.name, code=1)["error"]["kind"] == "job_conflict"
    assert program.json("recover")["recovered"] == []
    (name,) = {name for name in left(lab, program.folder) if name.startswith("vmbackup-drill-")}
    assert program.json("backup", name, code=5)["error"]["kind"] == "not_found"
    assert name not in program.run("backup", "--all", "--dry-run").stdout  # of whatever other tests run just now
    domain = lab.connection.lookupByName(name)
    assert not domain.isPersistent()
    xml = domain.XMLDesc(0)
    for nothing in ("<interface", "<hostdev", "<graphics", horse.uuid, str(horse.folder)):
        assert nothing not in xml
    assert f"drill of {horse.name}" in xml
    assert running.poll() is None


def test_a_part_that_is_gone(program: Program, horse: Workhorse) -> None:
    """The reason is told, not only that the guest did not come up."""
    shutil.rmtree(program.repository / "data")
    failed = program.json("drill", horse.name, "--boot-within", "10s", code=1)
    assert "a part of the restore point could not be read" in failed["error"]["message"]


def test_a_file_of_a_drill_that_is_lost(program: Program, horse: Workhorse) -> None:
    """What lies in the way of the next one goes, whoever left it."""
    for folder in (program.folder / "state/drills", program.scratch / "drill"):
        folder.mkdir(parents=True, exist_ok=True)
    (program.folder / "state/drills/vmbackup-drill-000000000000.json").write_text("{cut")
    assert program.json("drill", horse.name)["drills"][0]["success"]
    assert os.listdir(program.folder / "state/drills") == []
