"""Eight writers, two pruners that repack and a copier on one bucket, killed and stopped at random: nothing is lost."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.lab.ceph import Ceph
from tests.real.crowd.actor import HOST, SECRET, opened, store
from vmbackup.engine.care.verify import verify
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.progress import Silent
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.trust import Trust

WRITERS = 8
MORE = 6  # times that half as long is added while some kind of work has never come through: a busy machine is slow
# What a run or a prune may say when somebody took it for dead, or forgot what it works on.
EXPECTED = {"RepositoryError", "JobConflictError"}


class Crowd:
    """The processes, and what they wrote of themselves."""

    def __init__(self, seed: int, endpoint: str, url: str, target: str, folder: Path) -> None:
        self.folder, self.chance = folder, random.Random(seed)
        self._rest = [str(seed), endpoint, url, target, str(folder)]
        self._actors: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self.killed = self.stopped = 0
        for number in range(WRITERS):
            self._start("writer", number)
        for number in range(2):
            self._start("pruner", number)
        self._start("copier", 0)

    def _start(self, role: str, number: int) -> None:
        command = [sys.executable, "-m", "tests.real.crowd.actor", role, str(number), *self._rest]
        with open(self.folder / f"{role}-{number}.err", "ab") as errors:
            self._actors[role, number] = subprocess.Popen(command, stderr=errors, cwd=Path(__file__).parents[3])

    def run(self, seconds: float) -> None:
        """Kills one and starts it again, or stops one for a while, some for longer than who is taken for dead."""
        end = time.monotonic() + seconds
        asleep: dict[tuple[str, int], float] = {}
        while time.monotonic() < end:
            time.sleep(self.chance.uniform(0.2, 1.0))
            now = time.monotonic()
            for name in [name for name, until in asleep.items() if until <= now]:
                del asleep[name]
                self._actors[name].send_signal(signal.SIGCONT)
            name = self.chance.choice(list(self._actors))
            process = self._actors[name]
            assert process.poll() is None, f"{name} ended by itself: {self.told(*name)}"
            if name in asleep:
                continue
            if self.chance.random() < 0.3:
                process.kill()
                process.wait()
                self.killed += 1
                self._start(*name)
            elif self.chance.random() < 0.5:
                process.send_signal(signal.SIGSTOP)
                self.stopped += 1
                asleep[name] = now + self.chance.choice([0.5, 2.0, 8.0])

    def end(self) -> None:
        for process in self._actors.values():
            process.kill()
            process.wait()

    def did_all(self) -> bool:
        """Whether each kind of work came through."""
        counts = self.counts()
        return counts["done"] > WRITERS and counts["pruned"] > 0 and counts["copied"] > 0

    def counts(self) -> Counter[str]:
        """How often what was said."""
        return Counter(key for line in self.lines() for key in line if key not in ("who", "sha", "domain", "kind"))

    def told(self, role: str, number: int) -> str:
        """What a process wrote to its standard error."""
        return (self.folder / f"{role}-{number}.err").read_text()[-2000:]

    def lines(self) -> list[dict[str, Any]]:
        """All that was said; a line that was cut by death is none."""
        found = []
        for path in self.folder.glob("*.log"):
            lines = [line for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]
            found += ({**json.loads(line), "who": path.stem} for line in lines)
        return found


def crowded(ceph: Ceph, tmp_path: Path, seconds: float, seed: int) -> None:
    client = ceph.client()
    client.create_bucket(Bucket="crowd")
    client.close()
    url, target = "s3://crowd/source", "s3://crowd/copies"
    for place in (url, target):
        Repository.create(store(ceph.http, place), SECRET, Trust(None), chunk_size=4096)
    crowd = Crowd(seed, ceph.http, url, target, tmp_path)
    try:
        crowd.run(seconds)
        for _ in range(MORE):
            if crowd.did_all():
                break
            crowd.run(seconds / 2)
    finally:
        crowd.end()
    lines = crowd.lines()
    counts = crowd.counts()
    failures = Counter((line["kind"], line["failed"][:60]) for line in lines if "failed" in line)
    print(f"seed {seed}: {crowd.killed} killed, {crowd.stopped} stopped, {dict(counts)}")
    print("\n".join(f"{count} x {kind}: {text}" for (kind, text), count in failures.most_common()))
    print("repacked packs:", sum(line.get("repacked", 0) for line in lines))
    strange = [line for line in lines if "kind" in line and line["kind"] not in EXPECTED and "writer" in line["who"]]
    assert not strange
    started = time.monotonic()
    judge(opened(ceph.http, url, tmp_path / "trust"), lines)
    judge(opened(ceph.http, target, tmp_path / "trust"), [line for line in lines if "begin" in line])
    print(f"judged in {time.monotonic() - started:.0f} s")
    assert crowd.did_all(), counts


def judge(repository: Repository, lines: list[dict[str, Any]]) -> None:
    """After a prune that takes all for dead: all is whole, what must be there is, and restores as it was."""
    prune(repository, PruneOptions(wait=0.0, dead_after=-1e9, host=HOST))
    summary = verify(repository, None, 1.0, Silent())
    assert not summary.damaged, summary.damaged
    digests: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if "begin" in line:
            digests[line["domain"]].add(line["begin"])
    gone = {point for line in lines for point in line.get("forget", ())}
    points = {point.id: point for point in repository.read_points().points}
    found = {name: restored(repository, point) for name, point in points.items()}
    for line in lines:
        if "done" in line and line["done"] not in gone:
            assert found.get(line["done"]) == line["sha"], line
    for name, point in points.items():
        assert found[name] in digests[point.domain], name


def restored(repository: Repository, point: Point) -> str:
    """The digest of the guest's disk. In memory, for each file is synced."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        made = restore(repository, point, RestoreOptions(Path(folder), "raw", workers=1), Silent())
        return hashlib.sha256(made.files[0].path.read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_a_crowd_for_a_minute(ceph: Ceph, tmp_path: Path) -> None:
    """In CI; the seed is fixed, the order is the machine's."""
    crowded(ceph, tmp_path, 60.0, seed=1)


@pytest.mark.torture
@pytest.mark.timeout(4000)
def test_a_crowd_for_half_an_hour(ceph: Ceph, tmp_path: Path) -> None:
    """Seeded by $SEED."""
    crowded(ceph, tmp_path, 60.0 * float(os.environ.get("MINUTES", "30")), seed=int(os.environ.get("SEED", "2")))
