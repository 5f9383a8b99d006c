"""`python -m bench`: see README.md beside this."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.session import Lab

from .disk import FULL, QUICK, BenchDisk, TiB, bench_disk
from .guest import Guest
from .measure import BenchError, run
from .profile import profile
from .report import limits, ratios, table
from .rounds import TASKS, Bench, Results
from .tools import ALWAYS, ON_DEMAND, Tool

_SPARSE = ("sparse-full", "sparse", "sparse-scattered")


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))   # so that the lab is cleaned up
    tools, tasks = _chosen(options)
    try:
        _install(tools)
        disk = bench_disk(QUICK if options.quick else FULL, _say)
        _say(_machine(tools))
        _say(_about(disk))
        with Lab() as lab:
            if options.profile:
                _profile(lab, disk)
            else:
                _compare(lab, disk, tools, tasks, options)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    names = [*(task for task in TASKS if task not in _SPARSE), "sparse", *map(_short, ALWAYS)]
    parser = argparse.ArgumentParser(prog="python -m bench", description="vmbackup and its peers, measured in turn.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="medians of N rounds (3)")
    parser.add_argument("--quick", action="store_true", help="a disk of 1 GiB: to try the bench, not to quote")
    parser.add_argument("--only", action="append", default=[], choices=names, metavar="NAME",
                        help=f"only this task or tool; again for more: {', '.join(names)}")
    parser.add_argument("--also", action="append", default=[], choices=list(map(_short, ON_DEMAND)), metavar="TOOL",
                        help="this tool too: restic, borg")
    parser.add_argument("--keep", type=Path, metavar="DIR",
                        help="leave repositories, logs and images of the last round in DIR (new, on a real disk)")
    parser.add_argument("--profile", action="store_true", help="instead: a full backup under py-spy, its top functions")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if options.keep is not None and options.keep.exists():
        parser.error(f"{options.keep} exists already")
    return options


def _short(kind: type[Tool]) -> str:
    return kind.__name__.lower()


def _chosen(options: argparse.Namespace) -> tuple[list[type[Tool]], list[str]]:
    """Tools and tasks; the full backup comes along where a later task needs it."""
    wanted = set(options.only)
    tools = [kind for kind in ALWAYS if not wanted & set(map(_short, ALWAYS)) or _short(kind) in wanted]
    tools += [kind for kind in ON_DEMAND if _short(kind) in options.also]
    tasks = [task for task in TASKS if not wanted & set(TASKS) or task in wanted]
    return tools, tasks


def _install(tools: Sequence[type[Tool]]) -> None:
    if os.geteuid() != 0:
        raise BenchError("the bench needs root: it starts domains of qemu:///system and reads their disks")
    needed = {package for kind in tools for package in kind.packages}
    needed |= {word for packages in machine.PROGRAMS.values() for word in packages.split()} | {"e2fsprogs"}
    absent = sorted(package for package in needed if not _version(package))
    if absent:
        _say(f"installing {' '.join(absent)}")
        run("apt-get", "update", "-q")
        run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-q", "-y", "--no-install-recommends",
            *absent)
    if reason := machine.missing():
        raise BenchError(reason)


def _compare(lab: Lab, disk: BenchDisk, tools: Sequence[type[Tool]], tasks: Sequence[str],
             options: argparse.Namespace) -> None:
    folder = options.keep or lab.folder / "bench"
    folder.mkdir(parents=True)
    guest = Guest(lab, disk.size, disk.path)
    sparse = Guest(lab, TiB) if "sparse" in tasks and any(_short(kind) == "vmbackup" for kind in tools) else None
    for each in (guest, sparse):
        if each is not None:
            each.scatter(0)   # so that the first full backup reads as much as the later ones
    results = Results()
    bench = Bench(guest, sparse, tools, tasks, folder, results, _say, keep=options.keep is not None)
    for number in range(options.rounds):
        _say(f"round {number + 1} of {options.rounds} ({time.strftime('%H:%M:%S')}, load {os.getloadavg()[0]:.1f})")
        bench.round(number, last=number == options.rounds - 1)
    median = f"median of {options.rounds} rounds" if options.rounds > 1 else "one round"
    _say(f"\nfigures: {median}\n{table(results)}\n\nwall time over the peers', within each round, then the median")
    _say(f"{ratios(results)}\n\n{limits(results)}")


def _profile(lab: Lab, disk: BenchDisk) -> None:
    guest = Guest(lab, disk.size, disk.path)
    folder = lab.folder / "bench"
    folder.mkdir()
    for gil in (False, True):
        _say(f"\n{profile(guest, folder, gil=gil)}")


def _machine(tools: Sequence[type[Tool]]) -> str:
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    packages = dict.fromkeys(["qemu-system-x86", "libvirt-daemon", *(p for kind in tools for p in kind.packages)])
    return (
        f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, Linux {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f}\n"
        + ", ".join(f"{package} {_version(package)}" for package in packages)
        + "\npage cache: warm. The source, or what is restored from, is read whole into it before each run, and the "
        "file\nsystem is synced before and after (SYNC AFTER: what the run had left to be written)."
    )


def _about(disk: BenchDisk) -> str:
    return (f"disk: {disk.size >> 30} GiB qcow2, {disk.data / 1e9:.2f} GB in it, md5 {disk.md5}\n  {disk.told}\n"
            f"  {disk.path}")


def _version(package: str) -> str:
    try:
        status, _, version = run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package).partition(" ")
    except BenchError:
        return ""
    return version if status == "installed" else ""


def _say(text: str) -> None:
    print(text, flush=True)


sys.exit(main())
