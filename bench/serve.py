"""`python -m bench.serve`: reading a served restore point, beside qemu-nbd that serves the same bytes as a raw file.

nbdcopy reads all of it to nowhere. Warm: repository and raw file are in the page cache, so that it is the processor's
time; cold: neither is, as on the day of a restore. Who begins changes each round; a ratio is taken within one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab import machine
from tests.lab.session import Lab

from .disk import FULL, QUICK, bench_disk
from .guest import Guest
from .measure import cpu_seconds, read_whole, run, sync
from .tools import Vmbackup

WANTED = 0.6   # of qemu-nbd's throughput
MB = 1_000_000


@dataclass(frozen=True)
class Reading:
    """One copy to nowhere: seconds of it, and of the server's processor time."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Server:
    """Serves the disk; `stored` is what it reads from."""

    name: str
    uri: str
    pid: int
    stored: Path

    def read(self, *, warm: bool) -> Reading:
        """By four connections, as nbdcopy does where it may."""
        if warm:
            read_whole(self.stored)
        else:
            _forget(self.stored)
        before, started = cpu_seconds(self.pid), time.monotonic()
        run("nbdcopy", self.uri, "null:")
        return Reading(time.monotonic() - started, cpu_seconds(self.pid) - before)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a disk of 1 GiB")
    given = parser.parse_args()
    disk = bench_disk(QUICK if given.quick else FULL, print)
    print(f"{disk.told}: {disk.data / MB:.0f} MB of data; {os.cpu_count()} cores", flush=True)
    with Lab() as lab, tempfile.TemporaryDirectory(dir=lab.folder, prefix="serve-") as name:
        folder = Path(name)
        tool = Vmbackup(Guest(lab, disk.size, disk.path), folder / "vmbackup")
        tool.full()
        raw = folder / "disk.raw"
        run(machine.program("qemu-img"), "convert", "-O", "raw", str(disk.path), str(raw))
        sync(folder)
        with _ours(tool, folder) as ours, _theirs(raw, folder) as theirs:
            run(machine.program("qemu-img"), "compare", "-f", "raw", "-F", "raw", ours.uri, theirs.uri)
            print("both serve the same bytes", flush=True)
            return _compare(ours, theirs, disk.data, given.rounds)


def _compare(ours: Server, theirs: Server, size: int, rounds: int) -> int:
    reached = True
    for warm in (True, False):
        ratios = []
        for number in range(rounds):
            found = {server.name: server.read(warm=warm) for server in (ours, theirs)[:: 1 if number % 2 else -1]}
            ratios.append(found[theirs.name].wall / found[ours.name].wall)
            told = ", ".join(
                f"{name} {size / MB / reading.wall:.0f} MB/s ({reading.cpu:.1f} s CPU)"
                for name, reading in sorted(found.items()))
            print(f"{'warm' if warm else 'cold'}: {told}, ratio {ratios[-1]:.2f} (load {os.getloadavg()[0]:.1f})",
                  flush=True)
        median = statistics.median(ratios)
        print(f"{'warm' if warm else 'cold'}: median ratio {median:.2f} (wanted: {WANTED})", flush=True)
        reached = reached and median >= WANTED
    return 0 if reached else 1


@contextlib.contextmanager
def _ours(tool: Vmbackup, folder: Path) -> Iterator[Server]:
    command = tool.command("serve", f"{tool.guest.name}@latest", "--socket", str(folder / "ours"), "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield Server("vmbackup serve", ready["uris"]["vda"], process.pid, tool.folder / "repository")
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def _theirs(raw: Path, folder: Path) -> Iterator[Server]:
    socket = folder / "theirs"
    process = subprocess.Popen([machine.program("qemu-nbd"), "--read-only", "--format=raw", "--persistent",
                                "--shared=16", "--export-name=vda", f"--socket={socket}", str(raw)])
    try:
        while not socket.exists():
            time.sleep(0.05)
        yield Server("qemu-nbd", f"nbd+unix:///vda?socket={socket}", process.pid, raw)
    finally:
        process.terminate()
        process.wait()


def _forget(path: Path) -> None:
    """Takes files out of the page cache; they were synced."""
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    sys.exit(main())
