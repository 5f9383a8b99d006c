"""Whether a disk that was moved has in its file all that it should.

QEMU takes the name of the backing image out of a file when its copy is done, but holds tables of what it copied in
memory, until it flushes them: where it is killed before that, the file hangs on nothing and reads as zeros.
"""

import json
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmbackup.engine.boot.images import hangs
from vmbackup.engine.boot.records import Booted, BootedDisk
from vmbackup.engine.boot.space import data_runs
from vmbackup.engine.images.qemu_img import run_tool
from vmbackup.errors import TargetError
from vmbackup.hypervisor.started.booted import BootedDomain

Run = tuple[int, int]  # where it begins, where it ends


def is_torn(booted: Booted, disk: BootedDisk) -> bool:
    """Whether its file lacks what the restore point or the overlay holds. Raises TargetError, NbdError."""
    there = _joined(_map(booted.image(disk.target), "present"))
    wanted = [*data_runs(booted, disk.target), *_written(booted.overlay(disk.target))]
    return lacks(there, sorted(wanted))


def lacks(there: Iterable[Run], wanted: Iterable[Run]) -> bool:
    """Whether a part of `wanted` is not in `there`; both in order, and no neighbours in `there`."""
    rest = iter(there)
    start, end = next(rest, (0, 0))
    for first, last in wanted:
        while end < last:
            following = next(rest, None)
            if following is None or first < end:  # it would go on behind a gap
                return True
            start, end = following
        if first < start:
            return True
    return False


def hang_again(booted: Booted, domain: BootedDomain) -> None:
    """Gives files of which QEMU has not written all their backing images again: what lacks is copied once more.

    The domain is off. Raises TargetError, NbdError, HypervisorError.
    """
    torn = [disk for disk in booted.disks if not hangs(booted, disk) and is_torn(booted, disk)]
    for disk in torn:
        path, below = Path(booted.image(disk.target)), booted.overlay(disk.target)
        run_tool(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", str(path)], path)
    domain.look_again([disk.target for disk in torn])


def _written(overlay: str) -> Iterator[Run]:
    """What the guest wrote into the overlay, but for zeros: these a file that lacks them has too."""
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": overlay}}
    return _map(f"json:{json.dumps(alone)}", "data")


def _map(image: str, kind: str) -> Iterator[Run]:
    """The runs of an image of which its map says so, by what is in its file."""
    command = ["qemu-img", "map", "-U", "--output=json", image]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        raise TargetError(f"qemu-img cannot read {image}: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return ((run["start"], run["start"] + run["length"]) for run in found if run[kind])


def _joined(runs: Iterable[Run]) -> Iterator[Run]:
    begun: Run | None = None
    for start, end in runs:
        if begun is not None and begun[1] == start:
            begun = begun[0], end
            continue
        if begun is not None:
            yield begun
        begun = start, end
    if begun is not None:
        yield begun
