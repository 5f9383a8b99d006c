"""A drill of a real Debian: its agent answers, what runs in it is asked; the guest that it is of runs on beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.guest import Guest
from tests.real.engine.program import Program

# Two boots, under emulation beside others.
pytestmark = [pytest.mark.real, pytest.mark.torture, pytest.mark.timeout(900)]

DRILL = """
[jobs.nightly]
domains = ["*"]
[jobs.nightly.drill]
schedule = "@weekly"
services = ["qemu-guest-agent"]
files = ["/etc/hostname", "/root/proof"]
commands = [["/bin/sh", "-c", "test $(ls /sys/class/net) = lo"]]
checks_within = "20s"
"""


def test_what_runs_in_it_is_checked(make_guest: Callable[..., Guest], work_dir: Path) -> None:
    """A service, a file that was there at that time, and a command that sees no network."""
    guest = make_guest(overlay=True)
    guest.agent.put("/root/proof", b"of the restore point")
    guest.agent.run("sync")
    program = Program(work_dir, work_dir / "scratch", work_dir / "repository")
    program.configure()
    with (work_dir / "config.toml").open("a") as config:
        config.write(DRILL)
    program.json("init")
    program.json("backup", guest.name)
    guest.agent.run("rm /root/proof; sync")
    (drill,) = program.json("drill", guest.name)["drills"]
    assert [check["problem"] for check in drill["checks"]] == [None] * 4
    assert 0 < drill["boot_seconds"] < 300
    assert Path(drill["picture"]).stat().st_size > 1000
    assert guest.agent.run("ls /root/proof 2>&1 || true").endswith("No such file or directory\n")
