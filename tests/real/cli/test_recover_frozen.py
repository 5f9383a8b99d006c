"""`recover` after kill -9 while the guest is frozen: it is thawed before a repository is asked for anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import Guest
from tests.real.engine.program import Program

pytestmark = pytest.mark.real


@pytest.fixture
def program(work_dir: Path, scratch_dir: Path) -> Program:
    return Program.make(work_dir, scratch_dir)


def leftovers(program: Program, domain: object) -> list[str]:
    """What dead runs left on the host."""
    found = [f"job {domain.jobInfo()}"] if domain.isActive() and domain.jobInfo()[0] else []  # type: ignore[attr-defined]
    found += [path.name for path in program.scratch.iterdir()]
    number = domain.ID()  # type: ignore[attr-defined]
    found += [path.name for path in Path("/var/lib/libvirt/qemu").glob(f"domain-{number}-*/vmbackup-*")]
    return found + [path.name for path in (program.folder / "state/intents").glob("*.json")]


@pytest.mark.timeout(600)
def test_killed_while_the_guest_is_frozen(make_guest: Callable[..., Guest], program: Program) -> None:
    """With its watchdog, so that nobody else thaws."""
    guest = make_guest(overlay=True)
    program.json("backup", guest.name)
    before = guest.domain.listAllCheckpoints(0)
    victim = subprocess.Popen(
        [sys.executable, "-m", "tests.real.cli.frozen_victim", *program.arguments("backup", guest.name)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with victim:
        assert victim.stderr
        assert "frozen\n" in iter(victim.stderr.readline, "")
        for child in Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        victim.kill()
    assert guest.agent.call("guest-fsfreeze-status") == "frozen"
    away = program.repository.with_name("away")
    program.repository.rename(away)
    found = program.json("recover", code=3)
    assert {"domain": guest.name, "what": "thawed the guest"} in found["recovered"]
    assert guest.agent.call("guest-fsfreeze-status") == "thawed"
    away.rename(program.repository)
    program.json("recover")
    assert leftovers(program, guest.domain) == []
    assert [each.getName() for each in guest.domain.listAllCheckpoints(0)] == [each.getName() for each in before]
    point = program.json("backup", guest.name)["points"][0]
    assert {disk["mode"] for disk in point["disks"]} == {"incremental"}
    assert point["consistency"] == "filesystem"
