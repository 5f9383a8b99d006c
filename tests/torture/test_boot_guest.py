"""A real Debian, booted from the repository: how fast its agent answers, and that it survives all deaths around it."""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.agent import Agent
from tests.lab.guest import BOOT_TIMEOUT, Guest
from tests.lab.guest_image import guest_image
from tests.lab.session import Lab
from tests.real.boot.kit import BootedGuest, Rig, running, wait
from tests.real.engine.program import Program

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]
RUNS = 3
RATIO = 1.3
FILES = 40
MIB = 1 << 20


@pytest.fixture
def rig(lab: Lab, work_dir: Path, scratch_dir: Path) -> Rig:
    return Rig(lab, Program.make(work_dir, scratch_dir))


@pytest.fixture
def original(make_guest: Callable[..., Guest], rig: Rig) -> Guest:
    """A Debian that was backed up, and is off."""
    guest = make_guest()
    make = f"mkdir /data && cd /data && for i in $(seq {FILES}); do head -c 1M /dev/urandom > $i; done; sync"
    guest.agent.run(make)
    guest.hashes = guest.agent.run("cd /data && sha256sum * | sort -k2")
    rig.program.json("backup", guest.name)
    guest.shutdown()
    return guest


def agent_of(guest: BootedGuest) -> Agent:
    agent = Agent(guest.domain)
    agent.wait(2 * BOOT_TIMEOUT)
    return agent


def test_the_agent_answers_as_from_a_local_disk(lab: Lab, rig: Rig, original: Guest, work_dir: Path) -> None:
    """From the command to the agent's answer at most 1.3 of a local boot of the same disk; the median of three each."""
    rig.program.json("restore", original.name, "--output", str(work_dir / "local"))
    local, booted = [], []
    for _ in range(RUNS):
        guest = Guest(lab, guest_image(), root=work_dir / "local" / "vda.qcow2")
        local.append(guest.boot())
        guest.remove()
        subprocess.run(["sync"], check=True)
        started = time.monotonic()
        other = rig.boot(original.name)
        command = time.monotonic() - started
        agent_of(other)
        booted.append(time.monotonic() - started)
        print(f"local {local[-1]:.1f} s, booted {booted[-1]:.1f} s, of which the command {command:.1f} s")
        other.remove()
    ratio = statistics.median(booted) / statistics.median(local)
    print(f"medians: local {statistics.median(local):.1f} s, booted {statistics.median(booted):.1f} s: {ratio:.2f}")
    assert ratio <= RATIO


def test_a_debian_survives_all_deaths_and_stands_alone(rig: Rig, original: Guest, work_dir: Path) -> None:
    """Its server is killed while it reads and writes all the time; the move is killed too; no byte is lost."""
    guest = rig.boot(original.name)
    try:
        agent = agent_of(guest)
        work = "sync; echo 3 > /proc/sys/vm/drop_caches; cd /data; sha256sum * | sort -k2"
        for _ in range(RUNS):
            agent.run(f"rm -f /run/done; ({work}; touch /run/done) > /run/said 2>&1 < /dev/null &")
            time.sleep(0.5)
            os.kill(guest.server(), signal.SIGKILL)
            wait(lambda: guest.listed["served"] and guest.listed["state"] == "running", "the guest to go on")
            agent.run("while [ ! -e /run/done ]; do sleep 0.1; done")
            assert agent.run("cat /run/said") == original.hashes
        data = os.urandom(MIB)
        agent.put("/data/new", data)
        agent.run("sync")
        finish = rig.program.command("--json", "boot", "--finish", guest.name, "--output", str(work_dir / "disks"))
        with running(finish) as process:
            wait(lambda: bool(guest.domain.blockJobInfo("vda", 0)), "the copy")
            process.kill()
        started = time.monotonic()
        rig.program.json("boot", "--finish", guest.name, "--output", str(work_dir / "disks"))
        print(f"the move took {time.monotonic() - started:.1f} s after it was killed")
        assert rig.left() == []
        (work_dir / "repository").rename(work_dir / "gone")
        agent.run("echo 3 > /proc/sys/vm/drop_caches")
        assert agent.run("cd /data && sha256sum [0-9]* | sort -k2") == original.hashes
        assert agent.run("sha256sum /data/new").split()[0] == hashlib.sha256(data).hexdigest()
        assert "I/O error" not in agent.run("dmesg")
        (work_dir / "gone").rename(work_dir / "repository")
    finally:
        guest.remove()
