"""A disk that changed at random: flat, chain and in place agree with one another and with the disk, at every point."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.lab.domain import Workhorse
from tests.real.engine.evolution import SEED_VARIABLE, Evolution, content, seed_of
from tests.real.engine.kit import Kit
from vmbackup.engine.restore.chained import ChainOptions, chain_points, restore_chain
from vmbackup.engine.restore.in_place import InPlaceOptions, restore_in_place
from vmbackup.progress import Silent

pytestmark = pytest.mark.real
SEED = 6100
ROUNDS, MORE, LONG = 8, 2, 30


def chain(guest: Evolution) -> None:
    """All points as one chain; each level is what the disk was."""
    points = guest.repository.read_points().points
    wanted = chain_points(points, points[0], None)
    folder = guest.folder / "chain"
    done = restore_chain(guest.repository, wanted, ChainOptions(folder, workers=2), Silent())
    assert [file.point for file in done.files] == list(guest.kept)
    for file in done.files:
        subprocess.run(["qemu-img", "check", "-q", str(file.path)], check=True)
        assert content(file.path, "qcow2") == guest.kept[file.point], f"level {file.point} is not what the disk was"
    for path in folder.iterdir():
        path.unlink()


def in_place(guest: Evolution) -> None:
    """The guest's own disk at every point, in random order."""
    horse = guest.horse
    points = {point.id: point for point in guest.repository.read_points().points if point.uuid == horse.uuid}
    horse.stop()
    for point_id in guest.random.sample(list(points), len(points)):
        options = InPlaceOptions(workers=2, quick=guest.random.random() < 0.5)
        restore_in_place(guest.host, guest.repository, points[point_id], options, Silent())
        assert content(horse.path("vda"), "qcow2") == guest.kept[point_id], f"{point_id} in place is not what it was"
        horse.disks["vda"] = replace(horse.disks["vda"], size=points[point_id].disks[0].virtual_size)
    subprocess.run(["qemu-img", "check", "-q", str(horse.path("vda"))], check=True)
    guest.expect(broken=horse.checkpoints() == [])
    horse.start()


def ways(make_domain: Callable[..., Workhorse], kit: Kit, cluster: int, seed: int, rounds: int) -> None:
    """A history, all ways back through it, and more of it from wherever the last way led."""
    print(f"{SEED_VARIABLE}={seed}")
    guest = Evolution.make(kit, make_domain, cluster, seed)
    for _ in range(rounds):
        guest.round()
    chain(guest)
    in_place(guest)
    for _ in range(MORE):
        guest.round()
    guest.restore_many()
    in_place(guest)
    guest.round()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("cluster", [pytest.param(4096, marks=pytest.mark.torture), 65536])
def test_all_ways_agree(make_domain: Callable[..., Workhorse], kit: Kit, cluster: int) -> None:
    """And what the guest writes afterwards is backed up right: no bitmap that lost something is believed."""
    ways(make_domain, kit, cluster, seed_of(SEED) + cluster, ROUNDS)


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_all_ways_agree_for_long(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """Histories that grow, die and start again, of several guests in one repository."""
    seed = seed_of(SEED) + 1
    for number, cluster in enumerate((4096, 65536, 1 << 20)):
        ways(make_domain, kit, cluster, seed + number, LONG)
