"""The random evolution of a disk for as long as one likes, with a new seed each time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from tests.lab.domain import Workhorse
from tests.real.engine.evolution import seed_of
from tests.real.engine.kit import Kit
from tests.real.engine.test_evolution import evolve

ROUNDS_VARIABLE = "VMBACKUP_TEST_ROUNDS"
ROUNDS = 400


@pytest.mark.torture
@pytest.mark.timeout(6 * 3600)
def test_a_disk_that_changes_at_random_for_long(make_domain: Callable[..., Workhorse], work_dir, scratch_dir) -> None:
    """Four guests of 400 rounds (VMBACKUP_TEST_ROUNDS) each, with chunks of another size than the blocks' 64 KiB."""
    seed = seed_of(int(time.time()))
    print(f"seed {seed}")
    rounds = int(os.environ.get(ROUNDS_VARIABLE, ROUNDS))
    kit = Kit(work_dir, scratch_dir, chunk_size=256 << 10)
    evolve(kit, make_domain, seed=seed, rounds=rounds, clusters=(4096, 65536, 4096, 65536))
    kit.close()
