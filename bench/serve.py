"""`python -m bench.serve`: reading a served restore point, beside qemu-nbd that serves the same bytes as a raw file.

nbdcopy reads all of it to nowhere, by four connections, and qemu-img by one. Warm: repository and raw file are in the
page cache, so that it is the processor's time; cold: neither is, as on the day of a restore. Who begins changes each
round; a ratio is taken within one.
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
from .floor import floor
from .guest import Guest
from .measure import cpu_seconds, read_whole, run, sync
from .tools import Vmbackup

WANTED = 0.6   # of qemu-nbd's throughput
CLIENTS = ("nbdcopy", "qemu-img")
MB = 1_000_000


@dataclass(frozen=True)
class Reading:
    """One copy to nowhere: seconds of it, and of the server's processor time."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Server:
    """Serves the disk of `size` bytes; `stored` is what it reads from."""

    name: str
    uri: str
    pid: int
    stored: Path
    size: int

    def read(self, client: str, *, warm: bool) -> Reading:
        """All of it."""
        if warm:
            read_whole(self.stored)
        else:
            _forget(self.stored)
        before, started = self._cpu(), time.monotonic()
        run(*self._command(client))
        return Reading(time.monotonic() - started, self._cpu() - before)

    def _command(self, client: str) -> list[str]:
        if client == "nbdcopy":
            return ["nbdcopy", self.uri, "null:"]
        return [machine.program("qemu-img"), "convert", "-n", "-f", "raw", "--target-image-opts", self.uri,
                f"driver=null-co,size={self.size}"]

    def _cpu(self) -> float:
        """Of its processes: those that decode are there from the first reading on."""
        found = [path.read_text().split() for path in Path(f"/proc/{self.pid}/task").glob("*/children")]
        return cpu_seconds(self.pid) + sum(cpu_seconds(int(pid)) for children in found for pid in children)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serve")
    parser.add_argument("--rounds", type=int, default=3)
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
            _tell_floor(raw)
            reached = [_compare(ours, theirs, disk.data, client, given.rounds) for client in CLIENTS]
            return 0 if all(reached) else 1


def _tell_floor(raw: Path) -> None:
    """No server that decodes is faster than this on all cores, whatever else costs nothing."""
    found = floor(raw)
    cores = os.cpu_count() or 1
    told = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found.items())
    most = 1e3 * cores / sum(found.values())
    print(f"decoding alone, s of CPU a GB: {told}; on {cores} cores at most {most:.0f} MB/s", flush=True)


def _compare(ours: Server, theirs: Server, size: int, client: str, rounds: int) -> bool:
    reached = True
    for warm in (True, False):
        said = f"{client}, {'warm' if warm else 'cold'}"
        ratios = []
        for number in range(rounds):
            turn = (ours, theirs)[:: 1 if number % 2 else -1]
            found = {server.name: server.read(client, warm=warm) for server in turn}
            ratios.append(found[theirs.name].wall / found[ours.name].wall)
            told = ", ".join(
                f"{name} {size / MB / reading.wall:.0f} MB/s ({reading.cpu:.1f} s CPU)"
                for name, reading in sorted(found.items()))
            print(f"{said}: {told}, ratio {ratios[-1]:.2f} (load {os.getloadavg()[0]:.1f})",
                  flush=True)
        median = statistics.median(ratios)
        print(f"{said}: median ratio {median:.2f} (wanted: {WANTED})", flush=True)
        reached = reached and median >= WANTED
    return reached


@contextlib.contextmanager
def _ours(tool: Vmbackup, folder: Path) -> Iterator[Server]:
    command = tool.command("serve", f"{tool.guest.name}@latest", "--socket", str(folder / "ours"), "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield Server("vmbackup serve", ready["uris"]["vda"], process.pid, tool.folder / "repository", tool.guest.size)
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
        yield Server("qemu-nbd", f"nbd+unix:///vda?socket={socket}", process.pid, raw, raw.stat().st_size)
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
