"""How long looking at a large repository takes, and how much memory: the figures of docs/adr/0008-scale.md."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.torture.scale import main

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]
MEMORY = 500 << 20
# Domains, points of each, chunks of each disk, chunks that each point changes.
SIZES = {"1,000 points": (50, 20, 4000, 100), "10 million chunks": (50, 20, 181_000, 1000)}
COMMANDS = {
    "list": ["list"],
    "list --json": ["list", "--json"],
    "info --json": ["info", "--json"],
    "forget (plan)": ["forget", "--keep-hourly", "5", "--keep-daily", "2", "--dry-run"],
    "prune (plan)": ["prune", "--dry-run"],
    "show": ["show", "guest07@latest"],
    "verify": ["verify"],
}
SECONDS = {"list": 1.0, "list --json": 1.0, "info --json": 2.0, "show": 10.0}
SECONDS |= {"forget (plan)": 10.0, "prune (plan)": 10.0, "verify": 30.0}


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu: float
    memory: int


def run(folder: Path, arguments: list[str]) -> Cost:
    """A process of the program, from its start to its end."""
    command = [sys.executable, "-m", "vmbackup.cli", "--config", str(folder / "config.toml"), *arguments]
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return Cost(time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


@pytest.mark.parametrize("size", SIZES)
def test_scale(tmp_path: Path, size: str) -> None:
    """1,000 points of 50 domains: `list` within a second, plans within ten, all in 500 MB. The best of three counts."""
    main(tmp_path, *SIZES[size])
    costs = {name: [run(tmp_path, arguments) for _ in range(3)] for name, arguments in COMMANDS.items()}
    best = {name: min(found, key=lambda cost: cost.seconds) for name, found in costs.items()}
    for name, cost in best.items():
        print(f"| {size} | {name} | {cost.seconds:.2f} | {cost.cpu:.2f} | {cost.memory / 1e6:.0f} |")
    assert {name for name, cost in best.items() if cost.seconds > SECONDS[name]} == set()
    assert max(cost.memory for found in costs.values() for cost in found) < MEMORY
