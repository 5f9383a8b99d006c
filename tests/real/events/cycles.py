"""Backup cycles of one guest under events of both lists, in a libvirt of their own (`tests/lab/apart.py`).

`python -m tests.real.events.cycles --seed 7 --cycles 100` prints a line of JSON a cycle; `--each` has each event once.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.lab.disk import Disk
from tests.lab.session import Lab
from tests.real.engine.kit import Kit
from tests.real.events.between import BETWEEN
from tests.real.events.during import DURING, PLACES, Moment, Place, one_sentence
from tests.real.events.scene import SIZE, Scene
from vmbackup.engine.backup.run import backup
from vmbackup.errors import VmbackupError
from vmbackup.hypervisor.live import job
from vmbackup.progress import Silent

SCRATCH_SIZE = "16m"
SHORT_PROOF = 0.05  # seconds between the seal's proofs: with the wait of a real run they would be most of the time


@dataclass(frozen=True)
class Cycle:
    """What happens before and during one backup."""

    before: str | None
    during: str | None
    place: Place

    @property
    def name(self) -> str:
        """As it is printed."""
        return " ".join(filter(None, (self.before, self.during and f"{self.during}@{self.place}"))) or "nothing"


def at_random(chance: random.Random, cycles: int) -> Iterator[Cycle]:
    """Most cycles have an event before, or one during; some both, some none."""
    for _ in range(cycles):
        before = chance.choice(list(BETWEEN)) if chance.random() < 0.6 else None
        during = chance.choice(list(DURING)) if chance.random() < 0.6 else None
        yield Cycle(before, during, chance.choice(PLACES))


def each() -> Iterator[Cycle]:
    """All events, one by one."""
    for name in BETWEEN:
        yield Cycle(name, None, "begun")
    for name, event in DURING.items():
        yield Cycle(None, name, event.surely[0] if event.ends else "read")


def run(scene: Scene, cycle: Cycle) -> dict[str, object]:
    """One cycle: at its end there is a new restore point, which is right. Returns what is told of it."""
    told: dict[str, object] = {"cycle": cycle.name}
    if cycle.before:
        BETWEEN[cycle.before](scene)
    if scene.horse.running:
        scene.change()
    # Something to read, so that there is a moment for it.
    scene.horse.write("vda", SIZE // 2, 65536, scene.random.randrange(1, 256))
    if cycle.during:
        told["failed"] = _disturbed(scene, cycle)
    if not cycle.during or told["failed"]:
        contents = scene.contents()
        told["whole"] = scene.succeed(scene.kit.backup(scene.horse), contents)
    return told


def _disturbed(scene: Scene, cycle: Cycle) -> str | None:
    """A backup in whose midst it happens: the sentence with which it failed, None where it made its point."""
    event = DURING[cycle.during or ""]
    contents = scene.contents()
    moment = Moment(scene, cycle.place, event.act)
    try:
        with moment.hooked():
            point = backup(moment, scene.kit.repository, scene.horse.name, scene.kit.options, Silent())  # type: ignore[arg-type]
    except VmbackupError as error:
        point, failure = None, error
    else:
        failure = None
    assert moment.happened, f"the run had no {cycle.place}"
    event.late(scene)
    if point is not None:
        assert not event.ends or cycle.place not in event.surely, f"{cycle.name}: a point was made"
        scene.succeed(point, contents)
        return None
    assert failure is not None
    one_sentence(failure)
    assert any(word in failure.message for word in event.ends), f"{cycle.name}: {failure.message} ({failure.hint})"
    scene.clean()
    scene.expected = scene.expected or event.then  # what was lost before goes first
    return failure.message


def last(scene: Scene) -> None:
    """All points once more, then a purge: nothing of ours is left."""
    for point in scene.random.sample(list(scene.kept), min(len(scene.kept), 10)):
        scene.check(point)
    scene.kit.host.purge(scene.kit.host.domain(scene.horse.name))
    assert [name for name in scene.horse.checkpoints() if name.startswith("vmbackup-")] == []
    for target in scene.horse.disks:
        assert [name for name in scene.horse.bitmaps(target) if name.startswith("vmbackup-")] == []
    scene.no_job()


def main() -> int:
    """0 where all went well; else the line of the cycle that did not says why."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=15)
    parser.add_argument("--each", action="store_true")
    wanted = parser.parse_args()
    chance = random.Random(wanted.seed)
    with Lab() as lab, patch.object(job, "PROOF_WAIT", SHORT_PROOF):
        work, scratch = lab.new_folder("work"), lab.new_folder("scratch")
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SCRATCH_SIZE},mode=711", "tmpfs", scratch], check=True)
        kit = Kit(work, scratch)
        horse = lab.workhorse(Disk("vda", size=SIZE))
        scene = Scene(lab, kit, horse, chance)
        try:
            return _all(scene, each() if wanted.each else at_random(chance, wanted.cycles), work)
        finally:
            kit.close()
            scene.horse.remove()
            subprocess.run(["umount", scratch], check=False)
            shutil.rmtree(work)
            scratch.rmdir()


def _all(scene: Scene, cycles: Iterator[Cycle], work: Path) -> int:
    scene.horse.write("vda", 0, SIZE // 2, 0x11)
    scene.succeed(scene.kit.backup(scene.horse), scene.contents())
    for number, cycle in enumerate(cycles):
        try:
            told = run(scene, cycle)
        except Exception:
            print(json.dumps({"cycle": cycle.name, "number": number, "error": traceback.format_exc()}), flush=True)
            return 1
        print(json.dumps(told | {"number": number}), flush=True)
    last(scene)
    print(json.dumps({"cycle": "end", "points": len(scene.kept)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
