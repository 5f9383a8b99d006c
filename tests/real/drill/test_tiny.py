"""Drills of a system that boots in a second: nothing stays, however they end, and the original is not touched."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.lab.tiny_system import boot_sector
from tests.real.engine.program import Program

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

Make = Callable[..., Workhorse]
DRILL = """
[jobs.nightly]
domains = ["*"]
[jobs.nightly.drill]
schedule = "@weekly"
console = "tiny system"
boot_within = "60s"
"""


@dataclass(frozen=True)
class World:
    """A host with a repository, and a domain in it whose restore point is of a system that boots."""

    lab: Lab
    program: Program
    horse: Workhorse
    good: str

    @property
    def name(self) -> str:
        """The domain's."""
        return self.horse.name

    def left(self) -> list[str]:
        """What drills have on this host."""
        folders = self.program.scratch, self.program.folder / "state/drills"
        return [*self.domains(), *(str(path) for folder in folders for path in folder.rglob("*"))]

    def domains(self) -> list[str]:
        """The throw-away domains that run; of this world, for others may drill as well."""
        found = [each for each in self.lab.connection.listAllDomains() if each.name().startswith("vmbackup-drill-")]
        return [domain.name() for domain in found if f"drill of {self.name}:" in _xml(domain)]

    def state(self) -> tuple[str, str, bytes]:
        """All of the domain."""
        import libvirt

        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
        self.horse.flush("vda")
        return self.horse.domain.XMLDesc(flags), self.horse.domain.XMLDesc(0), self.horse.path("vda").read_bytes()


def _xml(domain: Any) -> str:
    """Nothing where it went meanwhile."""
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):
        return str(domain.XMLDesc(0))
    return ""


@pytest.fixture(scope="module")
def made(lab: Lab) -> Iterator[World]:
    folder, horse = lab.new_folder("work"), lab.workhorse()
    program = Program(folder, folder / "scratch", folder / "repository")
    program.configure()
    with (folder / "config.toml").open("a") as config:
        config.write(DRILL)
    program.json("init")
    horse.write_data("vda", 0, boot_sector("the tiny system is up"))
    horse.domain.setAutostart(1)  # which no drill takes over
    yield World(lab, program, horse, program.json("backup", horse.name)["points"][0]["id"])
    horse.remove()
    shutil.rmtree(folder)


@pytest.fixture
def world(made: World) -> Iterator[World]:
    """Nothing is left of a drill, however it ended, and the domain is as it was."""
    before = made.state()
    yield made
    assert made.left() == []
    assert made.state() == before


def wait(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s"
        time.sleep(0.1)


def test_it_boots(world: World) -> None:
    """What was seen is told and recorded, with a picture."""
    (drill,) = world.program.json("drill", world.good)["drills"]
    assert (drill["success"], drill["domain"], drill["problem"]) == (True, world.name, None)
    assert 0 < drill["boot_seconds"] < 60
    assert "the tiny system is up" in drill["console"]
    assert Path(drill["picture"]).read_bytes()[:4] == b"\x89PNG"
    told = world.program.json("show", world.good)["points"][0]["drill"]
    assert (told["success"], told["boot_seconds"]) == (True, drill["boot_seconds"])


def test_it_does_not_boot(made: World, make_domain: Make) -> None:
    """Exit code 1 with what was seen, 3 where another one booted."""
    other = make_domain()
    made.program.json("backup", other.name)
    document = made.program.json("drill", other.name, made.good, "--boot-within", "15s", code=3)
    failed, good = document["drills"]
    assert (failed["domain"], failed["success"], good["success"]) == (other.name, False, True)
    assert 'had not booted after 15 s: its console showed nothing like "tiny system"' in failed["problem"]
    assert [each["domain"] for each in document["failed"]] == [other.name]
    assert Path(failed["picture"]).exists()
    assert made.left() == []


@pytest.fixture
def running(world: World) -> Iterator[subprocess.Popen[bytes]]:
    """A drill whose guest runs, and waits for what never comes."""
    command = world.program.command("drill", world.good, "--console", "never", "--boot-within", "5m")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait(world.domains, 60)
            yield process
        finally:
            process.kill()
    world.program.json("recover")


def family(pid: int) -> set[int]:
    """The processes that one has started, and those that they have."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child} | family(child)
    return found


@pytest.mark.parametrize("named", ["nothing", "name", "uuid"])
def test_killed(world: World, running: subprocess.Popen[bytes], named: str) -> None:
    """libvirt ends the guest at once, helpers end; `recover`, also of this guest, takes away the rest, and says so."""
    helpers = family(running.pid)
    running.send_signal(signal.SIGKILL)
    wait(lambda: not world.domains(), 60)
    wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in helpers), 60)
    assert world.left()
    whose = {"nothing": [], "name": [world.name], "uuid": [world.horse.uuid]}[named]
    assert world.program.json("recover", *whose)["recovered"] == [
        {"domain": world.name, "what": "removed the throw-away guest and files of a drill that was killed"}
    ]
    assert world.left() == []


def test_while_one_goes_on(world: World, running: subprocess.Popen[bytes]) -> None:
    """A second of the same guest is refused, `recover` leaves it alone, nobody backs it up; SIGTERM ends all of it."""
    assert world.program.json("drill", world.good, code=1)["error"]["kind"] == "job_conflict"
    assert world.program.json("recover")["recovered"] == []
    (name,) = world.domains()
    assert world.program.json("backup", name, code=5)["error"]["kind"] == "not_found"
    assert name not in world.program.run("backup", "--all", "--dry-run").stdout  # of whatever other tests run just now
    domain = world.lab.connection.lookupByName(name)
    assert (domain.isPersistent(), domain.autostart(), world.horse.domain.autostart()) == (0, 0, 1)
    xml = domain.XMLDesc(0)
    for nothing in ("<interface", "<hostdev", "<graphics", world.horse.uuid, str(world.horse.folder)):
        assert nothing not in xml
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert world.left() == []


def test_a_part_that_is_gone(world: World) -> None:
    """The drill ends with the first part, long before its time is over; the reason is told and recorded."""
    data = world.program.repository / "data"
    data.rename(data.with_name("away"))
    try:
        failed = world.program.json("drill", world.good, "--boot-within", "1h", code=1)
    finally:
        data.with_name("away").rename(data)
    why = "the drill was ended before it had booted, for a part of the restore point could not be read: "
    assert failed["error"]["message"].startswith(why)
    recorded = world.program.json("show", world.good)["points"][0]["drill"]
    assert (recorded["success"], recorded["problem"]) == (False, failed["error"]["message"])
