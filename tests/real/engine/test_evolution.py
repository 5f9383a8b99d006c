"""Two hundred and more rounds of random changes, each restored and compared; then all again, in random order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab.domain import Workhorse
from tests.real.engine.evolution import SEED_VARIABLE, Evolution, seed_of
from tests.real.engine.kit import SECRET, Kit
from vmbackup.engine.care.verify import verify
from vmbackup.progress import Silent
from vmbackup.repository import Repository

pytestmark = pytest.mark.real
SEED = 20240
CLUSTERS = (4096, 65536) * 3
ROUNDS = 35
SAMPLE = 30


def evolve(
    kit: Kit, make_domain: Callable[..., Workhorse], *, seed: int, rounds: int, clusters: tuple[int, ...]
) -> None:
    """A guest a cluster size, side by side in one repository; a seed for each."""
    guests = [Evolution.make(kit, make_domain, cluster, seed + n) for n, cluster in enumerate(clusters)]

    def live(guest: Evolution) -> None:
        for number in range(rounds):
            try:
                guest.round()
            except BaseException as error:
                cluster = guest.horse.disks["vda"].cluster_size
                place = f"round {number}, clusters of {cluster}, seed {guest.seed} ({SEED_VARIABLE}={seed})"
                raise AssertionError(f"{place}: {error}") from error

    with ThreadPoolExecutor(len(guests)) as pool:
        list(pool.map(live, guests))
    assert verify(kit.repository, None, 1.0, Silent()).damaged == ()
    for guest in guests:
        assert len(guest.kept) == rounds
        assert guest.modes.count("incremental") > rounds // 2
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Evolution.restore_many, guests))

    for guest in guests:
        guest.forget_host()
    shutil.rmtree(kit.root / "trust")
    shutil.rmtree(kit.root / "state")
    kit.reopen()
    for guest in guests:
        guest.host, guest.repository = kit.host, Repository.open(kit.store, SECRET, kit.trust)
        guest.restore_many(-(-SAMPLE // len(guests)))
        guest.round()
        assert guest.modes[-1] in ("reread", "full")


@pytest.mark.timeout(900)
def test_a_disk_that_changes_at_random_is_followed(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """Each of 210 restore points restores as the disk was at that instant, now and later, in any order."""
    seed = seed_of(SEED)
    print(f"seed {seed}")
    evolve(kit, make_domain, seed=seed, rounds=ROUNDS, clusters=CLUSTERS)
