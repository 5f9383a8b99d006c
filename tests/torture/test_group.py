"""Two real Debians that count together: what one knows before the other, no pair of their points tells otherwise.

One makes a number durable, sends it to the other, which makes it durable too and answers; then comes the next. So at
any one instant the first is at the other's number or one ahead. Points of two moments are soon out of that step.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.guest import Guest
from tests.lab.guest_image import GuestImageError, guest_image
from tests.lab.session import Lab
from tests.real.engine.program import Program

pytestmark = [pytest.mark.torture, pytest.mark.timeout(3600)]
ROUNDS = 5
PATIENCE = 900  # seconds for two of them to boot beside each other on a busy machine
MOST_SECONDS = 10.0  # frozen, on a machine that is ten times too busy; test_agents.py holds the median on a real one
PIPE = "vmbackup.test.pipe"
JOB = """
[jobs.together]
domains = ["*"]
quiesce = "required"
consistency_group = true
[jobs.apart]
domains = ["*"]
quiesce = "required"
"""
_KEEP = "keep() { printf %010d $1 | dd of=/root/count bs=10 conv=notrunc,fsync status=none; }\n"
_OPEN = f"printf %010d 0 > /root/count; sync; exec 3<>/dev/virtio-ports/{PIPE}\n"
LEADER = _KEEP + _OPEN + "n=0; while :; do n=$((n+1)); keep $n; echo $n >&3; read answer <&3; done\n"
FOLLOWER = _KEEP + _OPEN + "while read n <&3; do keep $n; echo $n >&3; done\n"


class _Piped(Guest):
    """A Debian with a channel to the other one; `mode` is "bind" for the one that makes it."""

    def __init__(self, lab: Lab, mode: str, pipe: Path) -> None:
        self._pipe = f"<source mode='{mode}' path='{pipe}'/><target type='virtio' name='{PIPE}'/>"
        super().__init__(lab, guest_image(), overlay=True)

    def _xml(self, *arguments: Any) -> str:
        xml = super()._xml(*arguments)
        xml = xml.replace(" quiet<", f" quiet systemd.default_device_timeout_sec={PATIENCE}<")
        return xml.replace("</devices>", f"<channel type='unix'>{self._pipe}</channel></devices>")

    def start(self, script: str) -> None:
        """Runs it for ever."""
        self.agent.put("/root/count.sh", script.encode())
        self.agent.run("setsid nohup sh /root/count.sh > /root/log 2>&1 < /dev/null &")


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[_Piped, _Piped]]:
    """The one that leads, the one that follows; both at it."""
    try:
        guest_image()
    except GuestImageError as error:
        pytest.skip(f"no image of the guest: {error}")
    pipe = lab.new_folder("pipe") / "pipe.sock"
    guests = [_Piped(lab, "bind", pipe)]
    try:
        guests[0].domain.create()
        guests.append(_Piped(lab, "connect", pipe))
        guests[1].domain.create()
        for guest in guests:
            guest.agent.wait(PATIENCE)
        guests[1].start(FOLLOWER)
        guests[0].start(LEADER)
        yield guests[0], guests[1]
    finally:
        for guest in guests:
            guest.remove()
        shutil.rmtree(pipe.parent)


def count(guest: Guest) -> int:
    """Where it is now."""
    return int(guest.agent.get("/root/count"))


def stored(program: Program, point: str, folder: Path) -> int:
    """Where it was at that point."""
    program.json("restore", point, "--output", str(folder), "--format", "raw")
    command = ["debugfs", "-R", "cat /root/count", str(folder / "vda.raw")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (folder / "vda.raw").unlink()
    return int(done.stdout)


def test_a_counter_never_runs_backwards(pair: tuple[_Piped, _Piped], work_dir: Path, scratch_dir: Path) -> None:
    """Five times in step as a group; one after the other they are not, which shows that the counters tell."""
    leader, follower = pair
    program = Program.make(work_dir, scratch_dir)
    config = work_dir / "config.toml"
    config.write_text(config.read_text() + JOB)
    deadline = time.monotonic() + PATIENCE
    while count(follower) < 5:
        assert time.monotonic() < deadline, leader.agent.run("cat /root/log")
        time.sleep(0.5)
    freezes, seen = [], []
    for number in range(ROUNDS):
        made = program.json("backup", "--job", "together", leader.name, follower.name)["points"]
        assert all(point["group"]["complete"] and point["group"]["instant"] for point in made)
        assert {point["consistency"] for point in made} == {"filesystem"}
        freezes += [point["freeze_seconds"] for point in made]
        ids = {point["domain"]: point["id"] for point in made}
        ahead, behind = (stored(program, ids[g.name], work_dir / f"r{number}-{g.name}") for g in pair)
        print(f"leader {ahead}, follower {behind}, frozen for {freezes[-2:]} s")
        assert 0 <= ahead - behind <= 1
        seen.append(ahead)
    assert seen == sorted(set(seen))
    print(f"frozen for {statistics.median(freezes):.3f} s at the median, {max(freezes):.3f} s at most")
    assert max(freezes) < MOST_SECONDS
    assert any(_apart(program, pair, work_dir / f"apart{number}") for number in range(ROUNDS))


def _apart(program: Program, pair: tuple[_Piped, _Piped], folder: Path) -> bool:
    """Whether points of two moments are out of step, as they are but for chance."""
    made = program.json("backup", "--job", "apart", *(guest.name for guest in pair))["points"]
    ids = {point["domain"]: point["id"] for point in made}
    ahead, behind = (stored(program, ids[guest.name], folder / guest.name) for guest in pair)
    print(f"apart: leader {ahead}, follower {behind}")
    return not 0 <= ahead - behind <= 1
