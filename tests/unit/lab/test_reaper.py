"""Daemons' ends are taken in at once, whatever process 1 does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.libvirtd import REAPER


def reaped(command: str) -> subprocess.CompletedProcess[str]:
    """A shell's command, run by the reaper."""
    run = [sys.executable, str(REAPER), "sh", "-c", command]
    return subprocess.run(run, check=False, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_commands_own(code: int) -> None:
    done = reaped(f"echo said; exit {code}")
    assert (done.returncode, done.stdout) == (code, "said\n")


def test_a_command_that_is_not_there() -> None:
    done = subprocess.run([sys.executable, str(REAPER), "/nowhere"], check=False, capture_output=True, text=True)
    assert done.returncode == 127
    assert "/nowhere" in done.stderr


def test_an_orphan_that_ends_is_gone(tmp_path: Path) -> None:
    """It is the reaper's child, and not process 1's; with the last one the reaper ends too."""
    fifo = tmp_path / "end"
    os.mkfifo(fifo)
    done = reaped(f"(cat {fifo}) >/dev/null 2>&1 & echo $!")
    pid = int(done.stdout)
    reaper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert str(REAPER) in Path(f"/proc/{reaper}/cmdline").read_text()
    fifo.write_text("now")
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() or alive(reaper):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
