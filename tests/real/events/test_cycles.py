"""One guest under all that may happen to it, between and during backups: no cycle without a good restore point."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Any

import pytest

from tests.lab import apart, machine
from tests.real.engine.evolution import SEED_VARIABLE, seed_of
from tests.real.events.between import BETWEEN
from tests.real.events.during import DURING

pytestmark = pytest.mark.real
SEED = 7
CYCLES, MANY = 15, 100
CYCLES_VARIABLE = "VMBACKUP_TEST_CYCLES"
LOST_BY = {
    "qemu_killed": "bitmap_broken",
    "power_lost": "bitmap_broken",
    "bitmap_inconsistent": "bitmap_broken",
    "bitmap_removed": "bitmap_broken",
    "checkpoint_deleted": "checkpoint_gone",
    "image_replaced": "other_image",
    "image_overwritten": "bitmap_broken",
    "rolled_back": "bitmap_broken",
}
"""Why the next backup reads whole; after the other events of BETWEEN it is incremental."""


def cycles(*arguments: str) -> list[dict[str, Any]]:
    """What became of each cycle; the last one failed, or is the end."""
    reason = machine.missing()
    if reason:
        pytest.skip(reason)
    program = apart.python("-m", "tests.real.events.cycles", *arguments)
    done = subprocess.run(**program, check=False, capture_output=True, text=True)
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert told, done.stdout + done.stderr
    return told


@pytest.fixture(scope="module")
def each() -> dict[str, dict[str, Any]]:
    """Every event once, in one guest's life, by its name."""
    return {cycle["cycle"].partition("@")[0]: cycle for cycle in cycles("--each")}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("event", BETWEEN)
def test_what_happens_between_backups(each: dict[str, Any], event: str) -> None:
    """Its disk is read whole with the reason, or incrementally; the point is right, and the next one incremental."""
    assert event in each, "an earlier event failed"
    assert "error" not in each[event], each[event]["error"]
    assert each[event]["whole"] == LOST_BY.get(event)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("event", DURING)
def test_what_happens_during_a_backup(each: dict[str, Any], event: str) -> None:
    """The run makes its point, or fails with a sentence; the next one builds on the same parent, and is right."""
    assert event in each, "an earlier event failed"
    assert "error" not in each[event], each[event]["error"]
    assert bool(each[event]["failed"]) == bool(DURING[event].ends)


@pytest.mark.timeout(600)
def test_nothing_is_left_of_it(each: dict[str, Any]) -> None:
    """No job, checkpoint, bitmap, qemu-nbd, socket or scratch file, and all points still restore."""
    assert list(each)[-1] == "end"


def survive(seed: int, number: int) -> None:
    print(f"{SEED_VARIABLE}={seed}")
    told = cycles("--seed", str(seed), "--cycles", str(number))
    print(*told[:-1], sep="\n")
    assert told[-1]["cycle"] == "end", f"{SEED_VARIABLE}={seed} {told[-1]['cycle']}\n{told[-1]['error']}"
    assert told[-1]["points"] > number


@pytest.mark.timeout(600)
def test_a_guest_with_a_hard_life() -> None:
    """15 cycles under events of both lists; the seed is printed, and repeats them."""
    survive(seed_of(SEED), CYCLES)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_guest_with_a_long_hard_life() -> None:
    """100 cycles (VMBACKUP_TEST_CYCLES), others each time."""
    survive(seed_of(int(time.time())), int(os.environ.get(CYCLES_VARIABLE, MANY)))
