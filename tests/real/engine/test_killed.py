"""kill -9 of `vmbackup backup` at many moments: the next run is right, finds what was stored, and leaves nothing."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.evolution import SEED_VARIABLE, seed_of
from tests.real.engine.program import Program

pytestmark = pytest.mark.real
SEED = 9
# With those of test_recovery.py twenty moments in CI.
LONG = [pytest.mark.torture, pytest.mark.timeout(3600)]
FULLS = [4, pytest.param(16, marks=LONG)]
INCREMENTALS = [8, pytest.param(40, marks=LONG)]
SIZE = 128 * MiB
RANDOM = 96 * MiB  # of the disk: three packs, which no compression makes smaller
BLOCK = 65536
BEGIN_TIMEOUT = 60.0  # seconds


class Host(Program):
    """Runs that are killed, and what they leave."""

    def backup(self, horse: Workhorse) -> dict[str, Any]:
        return self.json("backup", horse.name)["points"][0]

    def kill(self, horse: Workhorse, until: Callable[[], bool], then: float) -> bool:
        """A backup that dies `then` seconds after `until` is true. True if it had ended before."""
        command = self.command("--json", "backup", horse.name)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:  # fmt: skip
            deadline = time.monotonic() + BEGIN_TIMEOUT
            while not until() and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(then)
            ended = process.poll() is not None
            process.kill()
            _, errors = process.communicate()
        assert "Traceback" not in errors, errors
        return ended

    def packs(self) -> list[Path]:
        """All data packs."""
        return [p for p in (self.folder / "repository" / "data").rglob("*-*") if not p.name.startswith(".")]

    def stored(self) -> int:
        """Bytes of all data packs."""
        return sum(p.stat().st_size for p in self.packs())

    def assert_nothing_left(self, horse: Workhorse, point: dict[str, Any], state: list[int]) -> None:
        """Only the newest point's checkpoint; no job, scratch file, socket, intent or pin; the guest as it was."""
        assert [name.rsplit("-", 1)[1][:8] for name in horse.checkpoints()] == [point["id"].rsplit("-", 1)[1]]
        assert horse.domain.jobInfo()[0] == 0
        assert horse.domain.state() == state
        sockets = Path("/var/lib/libvirt/qemu").glob(f"domain-{horse.domain.ID()}-*/vmbackup-*")
        assert list(sockets) == []
        assert list(self.scratch.iterdir()) == []
        for place in (self.folder / "state" / "intents", self.folder / "repository" / "sessions"):
            assert [p for p in place.rglob("*") if p.is_file()] == []

    def check(self, horse: Workhorse, point: dict[str, Any]) -> None:
        """A restore of it is the disk as it is."""
        output = self.folder / f"restored-{point['id']}"
        (file,) = self.json("restore", point["id"], "--output", str(output))["files"]
        horse.compare("vda", Path(file["path"]))
        Path(file["path"]).unlink()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moments", INCREMENTALS)
def test_killed_incrementals(
    make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path, moments: int
) -> None:
    """At moments from the start to after the commit: the next run is incremental and right."""
    seed = seed_of(SEED)
    chance = random.Random(seed)
    host = Host.make(work_dir, scratch_dir)
    horse = make_domain(Disk("vda", size=16 * MiB))
    horse.write("vda", 0, 16 * MiB, 0x11)
    point = host.backup(horse)
    state = horse.domain.state()
    ended = 0
    for number in range(moments):
        for _ in range(20):
            where = chance.randrange(16 * MiB // BLOCK) * BLOCK
            if chance.random() < 0.6:
                horse.write("vda", where, BLOCK, chance.randrange(1, 256))
            else:
                chance.choice((horse.zero, horse.discard))("vda", where, BLOCK)
        known = set(horse.checkpoints())
        if number % 4 == 0:  # before the begin, and about it
            ended += host.kill(horse, lambda: True, chance.uniform(0.1, 1.5))
        else:
            begun = _begun(horse, known)
            ended += host.kill(horse, begun, chance.uniform(0, 1.6))
        horse.write("vda", chance.randrange(16 * MiB // BLOCK) * BLOCK, BLOCK, 0x77)
        place = f"moment {number}, {SEED_VARIABLE}={seed}"
        point = host.backup(horse)
        assert point["disks"][0]["mode"] == "incremental", f"{place}: {point['disks'][0]['reason']}"
        host.check(horse, point)
        host.assert_nothing_left(horse, point, state)
    assert ended < moments // 2
    assert host.json("verify", "--read-data")["damaged"] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("moments", FULLS)
def test_killed_fulls(make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path, moments: int) -> None:
    """At moments of a first full: the next run stores only what the killed one had not."""
    seed = seed_of(SEED)
    chance = random.Random(seed)
    host = Host.make(work_dir, scratch_dir)
    saved = 0
    for number in range(moments):
        place = f"moment {number}, {SEED_VARIABLE}={seed}"
        horse = make_domain(Disk("vda", size=SIZE))
        for start in range(0, RANDOM, 32 * MiB):
            horse.write_data("vda", start, chance.randbytes(32 * MiB))
        state = horse.domain.state()
        before, packs = host.stored(), len(host.packs())
        wanted = packs + (number + 1) % 3
        host.kill(horse, lambda wanted=wanted: len(host.packs()) >= wanted, chance.uniform(0, 0.6))
        kept = host.stored() - before
        point = host.backup(horse)
        added = host.stored() - before - kept
        assert kept + added < RANDOM + 8 * MiB, f"{place}: {kept} kept, {added} stored again"
        assert point["disks"][0]["mode"] == "full" or kept > RANDOM, place
        saved += kept
        host.check(horse, point)
        host.assert_nothing_left(horse, point, state)
        horse.remove()
    assert saved > RANDOM, "no run was killed late enough"
    assert host.json("verify", "--read-data")["damaged"] == []


def _begun(horse: Workhorse, known: set[str]) -> Callable[[], bool]:
    return lambda: bool(set(horse.checkpoints()) - known)
