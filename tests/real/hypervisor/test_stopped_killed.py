"""A run on a guest that is off dies at any instant: no qemu-nbd, no lock, and no bitmap that is trusted wrongly."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.real.hypervisor.conftest import Shadow
from tests.real.hypervisor.test_recovery import MakeDomain, Victim
from tests.real.hypervisor.test_stopped import nobody_has, write_off
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.images import image_info

pytestmark = pytest.mark.real


@pytest.fixture
def off(host: Host, make_domain: MakeDomain, work_dir: Path, short_seal: None) -> Victim:
    """A guest that is off, with one committed run."""
    made = Victim(host, make_domain(Disk(size=4 * MiB), Disk("vdb", size=MiB), start=False), work_dir)
    made.kill_at("committed")
    made.host.recover(made.host.domain(made.horse.name), made.committed)
    return made


def whole(off: Victim) -> None:
    """Nothing is left but what the newest restore point names, in the images too."""
    assert off.leftovers() == []
    wanted = [off.anchor.checkpoint] if off.anchor else []
    assert off.horse.checkpoints() == wanted
    for target in off.horse.disks:
        assert list(image_info(str(off.horse.path(target))).bitmaps) == wanted
    nobody_has(off.horse)


def free(off: Victim) -> None:
    """Returns once the dead run's qemu-nbd is gone: its name goes at once, its lock of the image a moment later."""
    deadline = time.monotonic() + 30
    while True:
        try:
            nobody_has(off.horse)
        except (AssertionError, subprocess.CalledProcessError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@pytest.mark.parametrize("where", ["begun", "read", "sealed", "committed"])
def test_killed_where_it_stands(off: Victim, where: str) -> None:
    """The images are free in a moment; the next run puts the rest right, and reads what was not committed."""
    write_off(off.horse, "vda", MiB, 65536, 7)
    off.kill_at(where)
    free(off)
    (left,) = off.host.recover(off.host.domain(off.horse.name), off.committed)
    assert (left.committed, left.trouble) == (where == "committed", ())
    whole(off)
    shadow = Shadow(off.host, off.horse)
    with shadow.begin(parent=off.anchor, earlier=off.earlier, committed=off.committed) as running:
        assert {disk.info.target: disk.mode for disk in running.disks} == {"vda": "incremental", "vdb": "incremental"}


def test_the_guest_is_started_before_anybody_cleans_up(off: Victim) -> None:
    """A dead run's half made checkpoint is taken off the running guest, and the chain goes on."""
    off.kill_at("read")
    free(off)
    off.horse.start()
    (left,) = off.host.recover(off.host.domain(off.horse.name), off.committed)
    assert (left.committed, left.trouble) == (False, ())
    assert off.leftovers() == []
    shadow = Shadow(off.host, off.horse)
    with shadow.begin(parent=off.anchor, earlier=off.earlier, committed=off.committed) as running:
        assert {disk.mode for disk in running.disks} == {"incremental"}


@pytest.mark.torture
def test_ten_moments(off: Victim) -> None:
    """Killed at random moments: a qemu-nbd never outlives its run, and one recovery is enough each time."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(10):
        process = off.start("never")
        assert process.stdout
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.7))
        off.kill(process)
        free(off)
        for left in off.host.recover(off.host.domain(off.horse.name), off.committed):
            assert left.trouble == ()
        whole(off)
