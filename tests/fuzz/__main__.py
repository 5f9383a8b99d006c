"""`python -m tests.fuzz [--minutes M | --rounds N] [--seed S] [--target NAME]...` prints counts; 1 if it found any.

Inputs are made from a seed and a number, so that a finding is repeated by `--seed SEED --only NAME:NUMBER`.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.targets import Target, Targets
from vmbackup.errors import VmbackupError

MEMORY = 2 << 30  # bytes of address space beyond what there is at the start
SECONDS = 5.0  # of the processor, for one input; of the whole repository ten times that
WHOLE = "everything"
REFUSED, FINE, FOUND = "refused", "fine", "found"


def attempt(target: Target, name: str, seed: int, number: int) -> tuple[str, str]:
    """One input: what became of it, and where it is a finding, its traceback."""
    chance = random.Random(f"{seed}:{name}:{number}")
    started = time.process_time()
    try:
        target(chance)
        result = FINE, ""
    except VmbackupError:
        result = REFUSED, ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result = FOUND, traceback.format_exc(chain=False)
    took = time.process_time() - started
    if took > SECONDS * (10 if name == WHOLE else 1) and result[0] != FOUND:
        result = FOUND, f"it took {took:.1f} s"
    return result


def fuzz(names: list[str], seed: int, *, seconds: float, rounds: int, only: int | None = None) -> int:
    """The targets in turn, for so long or so many rounds; gives the number of findings."""
    folder = Path(tempfile.mkdtemp(prefix="vmbackup-fuzz-"))
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    told: set[str] = set()
    try:
        targets = Targets(folder).all()
        _limit_memory()
        end = time.monotonic() + seconds
        number = 0 if only is None else only
        while (rounds and number < rounds) or (not rounds and time.monotonic() < end) or number == only:
            for name in names or list(targets):
                if name == WHOLE and number % 20 and only is None:
                    continue
                result, text = attempt(targets[name], name, seed, number)
                counts[name][result] += 1
                if text and (place := _place(name, text)) not in told:
                    told.add(place)
                    print(f"FOUND by --seed {seed} --only {name}:{number}\n{text}", flush=True)
            number += 1
            if only is not None:
                break
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, count in sorted(counts.items()):
        print(f"{name:16} {count.total():9} inputs: {count[FINE]} fine, {count[REFUSED]} refused, {count[FOUND]} found")
    print(f"seed {seed}: {sum(count.total() for count in counts.values())} inputs, {len(told)} different findings")
    return len(told)


def _place(name: str, text: str) -> str:
    """Where a finding was made: equal ones are told once."""
    lines = text.splitlines()
    return next((line for line in reversed(lines) if line.startswith('  File "')), name) + lines[-1].partition(":")[0]


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--only", metavar="NAME:NUMBER")
    given = parser.parse_args()
    name, _, number = (given.only or "").partition(":")
    names, only = ([name], int(number)) if given.only else (given.target, None)
    return 1 if fuzz(names, given.seed, seconds=given.minutes * 60, rounds=given.rounds, only=only) else 0


if __name__ == "__main__":
    sys.exit(main())
