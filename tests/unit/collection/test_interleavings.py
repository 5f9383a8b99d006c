"""Writers, forgetters and collectors at once, request by request: no valid restore point ever loses anything."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.unit.collection.world import CHUNK, World
from vmbackup.errors import VmbackupError

# The last: forgotten and collected between its commit and its look at it.
EXPECTED = ("another host", "ended by a collector", "ended and cleaned up", "does not read back")


def contents(chance: random.Random, variety: int = 12) -> Callable[[], bytes]:
    """Few different chunks: they come again and again."""
    return lambda: bytes([chance.randrange(variety)]) * CHUNK


def crowd(seed: int, most: int = 0, variety: int = 12) -> World:
    """Two guests, one of them on two hosts by turns, two collectors, a forgetter."""
    world = World(seed, most)
    fill = contents(world.chance, variety)
    world.add("writer a", world.writer("guest-a", "host-1", 4, fill))
    world.add("writer b", world.writer("guest-b", "host-2", 3, fill))
    world.add("collector 1", world.collector(3))
    world.add("collector 2", world.collector(2))
    world.add("forgetter", world.forgetter(5))
    return world


def judge(world: World) -> None:
    for actor in world.actors:
        if actor.error is not None:
            assert isinstance(actor.error, VmbackupError), repr(actor.error)
            assert any(text in str(actor.error) for text in EXPECTED), f"{actor.name}: {actor.error}"
    world.check()
    world.clean()
    world.check()


@pytest.mark.parametrize("block", range(8))
def test_any_order(block: int) -> None:
    """By chance; the seed is in the name of what fails."""
    for seed in range(block * 8, block * 8 + 8):
        world = crowd(seed)
        world.run()
        try:
            judge(world)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("block", range(8))
def test_any_order_with_deaths(block: int) -> None:
    """The same with actors that are killed at any request."""
    for seed in range(1000 + block * 12, 1000 + block * 12 + 12):
        world = crowd(seed)
        world.run(kills=3)
        try:
            judge(world)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def packers(seed: int) -> World:
    """One guest whose packs die slot by slot, two collectors that repack what is left, a forgetter."""
    world = World(seed, most=3)
    world.add("writer", world.writer("guest-a", "host-1", 8, lambda: world.chance.randbytes(1) * CHUNK, 0.3))
    world.add("collector 1", world.collector(9))
    world.add("collector 2", world.collector(9))
    world.add("forgetter", world.forgetter(25, 0.25))
    return world


@pytest.mark.parametrize("block", range(4))
def test_any_order_of_repacking(block: int) -> None:
    """Tables of moves are made, flattened, superseded and collected beside a writer that builds on them."""
    for seed in range(2000 + block * 12, 2000 + block * 12 + 12):
        world = packers(seed)
        world.run(kills=seed % 2)
        try:
            judge(world)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
