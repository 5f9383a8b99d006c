"""kill -9 of a restore in place, at any moment: the same command finishes it, and no backup is built on the half."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.evolution import content
from tests.real.engine.program import Program

pytestmark = pytest.mark.real
SECONDS = 60.0
KILLS, TRIES = 3, 12


def mark(program: Program, horse: Workhorse) -> dict[str, str]:
    """The disks that are half done."""
    path = program.folder / "state" / "in-place" / f"{horse.uuid}.json"
    found: dict[str, str] = json.loads(path.read_text())["disks"] if path.exists() else {}
    return found


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool], wait: float) -> bool:
    """Kills it `wait` seconds after something is so; False if it ended before."""
    deadline = time.monotonic() + SECONDS
    while not ready():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_it_is_finished_by_the_same_command(
    make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path, fmt: str
) -> None:
    """The disk stays marked meanwhile; what the guest writes to the half is backed up as it is, with a warning."""
    chance = random.Random(6)
    horse = make_domain(Disk("vda", size=48 * MiB, format=fmt))
    program = Program.make(work_dir, scratch_dir)
    horse.write_data("vda", 0, chance.randbytes(32 * MiB))
    (first,) = program.json("backup", horse.name)["points"]
    horse.flush("vda")
    wanted = content(horse.path("vda"), fmt)
    horse.write_data("vda", 0, chance.randbytes(32 * MiB))
    horse.stop()
    command = program.command("restore", first["id"], "--in-place")
    killed = 0
    for _ in range(TRIES):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            killed += kill_when(process, lambda: bool(mark(program, horse)), chance.uniform(0.0, 0.15))
        if killed == KILLS or (killed and not mark(program, horse)):
            break
        if not mark(program, horse):  # it had come to its end before it was seen
            horse.start()
            horse.write_data("vda", 0, chance.randbytes(32 * MiB))
            horse.stop()
    assert killed, "the restore ended each time before it could be killed"
    assert mark(program, horse) in ({"vda": first["id"]}, {})

    if mark(program, horse):
        horse.start()
        horse.write("vda", 40 * MiB, 512, 1)
        (half,) = program.json("backup", horse.name, code=3)["points"]
        assert half["disks"][0]["mode"] == "reread"
        assert "was not finished" in half["disks"][0]["reason"]
        done = program.json("restore", half["id"], "--output", str(work_dir / "half"))
        assert "was not finished" in done["point_warnings"][0]
        horse.compare("vda", Path(done["files"][0]["path"]))
        horse.stop()

    done = program.json("restore", first["id"], "--in-place")
    assert done["warnings"] == []
    assert mark(program, horse) == {}
    assert content(horse.path("vda"), fmt) == wanted
    if fmt == "qcow2":
        subprocess.run(["qemu-img", "check", "-q", str(horse.path("vda"))], check=True)
    horse.start()
    (last,) = program.json("backup", horse.name)["points"]
    assert (last["status"], last["disks"][0]["mode"]) == ("success", "reread")
    restored = program.json("restore", last["id"], "--output", str(work_dir / "last"), "--format", "raw")["files"][0]
    assert content(Path(restored["path"]), "raw") == wanted
