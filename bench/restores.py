"""`python -m bench.restores in-place | gateway`: restores beside a full one from a local folder.

`in-place`: 1 % of a disk's data was changed since its restore point, at random places; the stopped guest's own image is
brought back, all of it compared, and again by its bitmap. `gateway`: the same backup in Ceph's gateway on this machine,
which has its data in memory and shares the processor. A ratio is taken within one round; who begins changes each time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.lab.ceph import USERS, Ceph, plain_client
from tests.lab.session import Lab

from .disk import FULL, QUICK, BenchDisk, bench_disk
from .guest import WRITE_BYTES, Guest
from .measure import Cost
from .tools import GatewayVmbackup, Vmbackup

CHANGED = 0.01           # of the data
IN_PLACE_WANTED = 0.3    # of a full restore's time
GATEWAY_WANTED = 0.7     # of the folder's speed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.restores")
    parser.add_argument("what", choices=("in-place", "gateway"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a disk of 1 GiB")
    given = parser.parse_args()
    disk = bench_disk(QUICK if given.quick else FULL, print)
    print(f"{disk.told}: {disk.data / 1e6:.0f} MB of data; {os.cpu_count()} cores", flush=True)
    with Lab() as lab, tempfile.TemporaryDirectory(dir=lab.folder, prefix="restores-") as name:
        guest = Guest(lab, disk.size, disk.path)
        compare = _in_place if given.what == "in-place" else _gateway
        return compare(guest, disk, Path(name), given.rounds)


def _in_place(guest: Guest, disk: BenchDisk, folder: Path, rounds: int) -> int:
    tool = Vmbackup(guest, folder / "vmbackup")
    tool.full()
    point = tool.newest()
    writes = int(CHANGED * disk.data / WRITE_BYTES)
    tasks: dict[str, Callable[[], Cost]] = {
        "full": tool.restore_again,
        "in-place": lambda: _back(tool, point, writes),
        "quick": lambda: _back(tool, point, writes, "--quick"),
    }
    ratios: dict[str, list[float]] = {"in-place": [], "quick": []}
    for number in range(rounds):
        found = {name: tasks[name]() for name in _turned(list(tasks), number)}
        _tell(found)
        for name, known in ratios.items():
            known.append(found[name].wall / found["full"].wall)
    medians = {name: statistics.median(known) for name, known in ratios.items()}
    for name, median in medians.items():
        print(f"{name} / full restore, {writes} chunks changed: median {median:.2f} (wanted: {IN_PLACE_WANTED})")
    return 0 if medians["in-place"] <= IN_PLACE_WANTED else 1


def _back(tool: Vmbackup, point: str, writes: int, *options: str) -> Cost:
    """Changes the guest's disk, stops it and brings it back."""
    tool.guest.change(writes, random.Random(os.urandom(8)))
    tool.guest.stop()
    cost = tool.in_place(point, *options)
    tool.guest.start()
    return cost


def _gateway(guest: Guest, _disk: BenchDisk, folder: Path, rounds: int) -> int:
    ratios = []
    with Ceph() as ceph:
        client = plain_client(ceph.http, *USERS["vmbackup"])
        client.create_bucket(Bucket="bench")
        client.close()
        tools = {"folder": Vmbackup(guest, folder / "folder"),
                 "gateway": GatewayVmbackup(guest, folder / "gateway", ceph.http, *USERS["vmbackup"])}
        for tool in tools.values():
            tool.full()
            guest.forget_checkpoints()
        for number in range(rounds):
            found = {name: tools[name].restore_again() for name in _turned(list(tools), number)}
            _tell(found)
            ratios.append(found["folder"].wall / found["gateway"].wall)
    median = statistics.median(ratios)
    print(f"speed of a restore from the gateway / from a folder: median {median:.2f} (wanted: {GATEWAY_WANTED})")
    return 0 if median >= GATEWAY_WANTED else 1


def _turned(names: list[str], number: int) -> list[str]:
    turn = number % len(names)
    return names[turn:] + names[:turn]


def _tell(found: dict[str, Cost]) -> None:
    told = (f"{name} {cost.wall:.2f} s ({cost.cpu:.1f} s CPU)" for name, cost in sorted(found.items()))
    print(f"{', '.join(told)} (load {os.getloadavg()[0]:.1f})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
