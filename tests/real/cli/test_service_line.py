"""A backup as the service runs it: it tells of its progress in a pipe, and ends in good order when the service dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.test_killed import Host

pytestmark = pytest.mark.real
SLOW = '\n[jobs.slow]\ndomains = ["*"]\nbandwidth_limit = "64MiB/s"\n'
SIZE = 512 * MiB
STARTER = """
import subprocess, sys
subprocess.Popen(sys.argv[2:], pass_fds=[int(sys.argv[1])], stdout=subprocess.DEVNULL)
print("started", flush=True)
sys.stdin.read()
"""


def test_progress_is_told_and_the_service_s_death_interrupts(
    make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path
) -> None:
    """No job, scratch file, socket, intent, pin or checkpoint is left, though nobody came to put it right."""
    host, horse = Host.make(work_dir, scratch_dir), make_domain(Disk("vda", size=SIZE))
    point = host.backup(horse)
    state = horse.domain.state()
    for at in range(0, SIZE, 16 * MiB):
        horse.write("vda", at, 16 * MiB, 1 + at // (16 * MiB))
    with (work_dir / "config.toml").open("a") as config:
        config.write(SLOW)
    read, write = os.pipe()
    command = host.command("--json", "--progress-fd", str(write), "backup", "--job", "slow", horse.name)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(write), *command],
        pass_fds=[write], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    with starter, open(read, encoding="utf-8") as pipe:
        told = [json.loads(pipe.readline()) for _ in range(2)]
        assert told[0] == {"task": horse.name, "done_bytes": 0, "total_bytes": SIZE}
        assert told[1]["done_bytes"] > 0
        assert horse.domain.jobInfo()[0] != 0
        starter.kill()
        told += [json.loads(line) for line in pipe]  # to its end, and so the process's
        assert all(0 < line["done_bytes"] < SIZE for line in told[1:])
    host.assert_nothing_left(horse, point, state)
