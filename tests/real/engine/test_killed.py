"""kill -9 of vmbackup at any moment of a run: the next run is right, and nothing of the dead one is left."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.cli import Cli
from tests.lab.disk import Disk
from tests.lab.domain import Workhorse

MIB = 1 << 20
MOMENTS = 24
pytestmark = pytest.mark.real


def killed(cli: Cli, domain: str, after: float) -> bool:
    """Runs a backup and kills it after so many seconds; tells whether it was still running."""
    program = Path(sys.executable).with_name("vmbackup")
    with subprocess.Popen(
        [program, "--config", cli.config, "-q", "backup", domain], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
        return False


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def assert_clean(cli: Cli, horse: Workhorse) -> None:
    """One checkpoint, no job, no scratch, no socket, no intent, no pin."""
    assert len(horse.checkpoints()) == 1
    assert horse.domain.jobInfo()[0] == 0
    assert files(cli.folder / "scratch") == []
    assert files(cli.folder / "state" / "intents") == []
    assert files(cli.repository / "sessions") == []
    folder = next(Path("/var/lib/libvirt/qemu").glob(f"domain-{horse.domain.ID()}-*"))
    assert [p for p in folder.iterdir() if p.name.startswith("vmbackup")] == []


def stored(cli: Cli) -> int:
    packs = (cli.repository / "data").rglob("[0-9a-f]*")
    return sum(p.stat().st_size for p in packs if p.is_file())


def restore_and_compare(cli: Cli, horse: Workhorse, point: str) -> None:
    made = cli.run("restore", point, "--output", str(cli.folder / f"out-{point}"), "--format", "raw")
    for file in made["files"]:
        horse.compare(file["target"], Path(file["path"]))
        Path(file["path"]).unlink()


@pytest.mark.timeout(600)
def test_incremental_killed_at_many_moments(make_domain: Callable[..., Workhorse], work_dir: Path) -> None:
    """Whenever it dies, the next run is incremental, equals the disk, and has put all right."""
    horse = make_domain(Disk("vda", size=256 * MIB))
    cli = Cli(work_dir)
    cli.run("init")
    horse.write_data("vda", 0, random.Random(1).randbytes(8 * MIB))
    cli.run("backup", horse.name)
    began = time.monotonic()
    cli.run("backup", horse.name)
    whole = time.monotonic() - began
    alive = 0
    for moment in range(MOMENTS):
        horse.write("vda", moment * MIB, MIB, moment + 1)
        horse.zero("vda", 100 * MIB + moment * 65536, 65536)
        alive += killed(cli, horse.name, whole * (moment + 0.5) / MOMENTS)
        if moment % 3 == 2:  # two or three may die one after the other
            point = cli.run("backup", horse.name)["points"][0]
            assert point["disks"][0]["mode"] == "incremental"
            assert_clean(cli, horse)
            restore_and_compare(cli, horse, point["id"])
    assert alive >= MOMENTS * 3 // 4
    assert cli.run("verify", "--read-data")["damaged"] == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("share", [0.35, 0.65])
def test_full_killed_is_found_again(make_domain: Callable[..., Workhorse], work_dir: Path, share: float) -> None:
    """What a killed full stored is not stored again."""
    size = 512 * MIB
    horse = make_domain(Disk("vda", size=size))
    cli = Cli(work_dir)
    cli.run("init")
    chance = random.Random(2)
    for at in range(0, size, 64 * MIB):
        horse.write_data("vda", at, chance.randbytes(64 * MIB))
    probe = Cli(_folder(work_dir / "probe"))
    probe.run("init")
    began = time.monotonic()
    probe.run("backup", horse.name)
    whole = time.monotonic() - began
    assert killed(cli, horse.name, whole * share)
    before = stored(cli)
    point = cli.run("backup", horse.name)["points"][0]
    added = point["disks"][0]["stored_bytes"]
    assert added <= size * 1.03 - before  # of a pack, what stands before its first hook may be stored again
    restore_and_compare(cli, horse, point["id"])
    assert files(cli.repository / "sessions") == []
    horse.write("vda", 0, MIB, 0x7)
    again = cli.run("backup", horse.name)["points"][0]
    assert again["disks"][0]["mode"] == "incremental"
    restore_and_compare(cli, horse, again["id"])


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
