"""Writers that use what other guests stored, beside forgetters and collectors: the same rules, and what each is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.collection.test_interleavings import contents, judge
from tests.unit.collection.test_rules import Patch, filled, forget_all, loses, no_condemned_lists
from tests.unit.collection.world import CHUNK, CHUNKS, World
from vmbackup.repository import dedup, gather, hooks
from vmbackup.repository import run as run_module
from vmbackup.repository.layout import Lineage
from vmbackup.repository.others import History, Others
from vmbackup.repository.placing import Placing
from vmbackup.repository.repository import newest
from vmbackup.repository.run import Run
from vmbackup.repository.tombstones import forget


@pytest.fixture(autouse=True)
def every_chunk_is_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests of nine chunks find each other; one request after the other, as the scheduler of the orders needs it."""
    monkeypatch.setattr(hooks, "HOOK", 256)
    monkeypatch.setattr(dedup, "HOOK", 256)
    monkeypatch.setattr(hooks, "LEAST", 1)
    monkeypatch.setattr(dedup, "_VAIN", 1 << 20)
    monkeypatch.setattr(gather, "EVERY_SECONDS", -1.0)
    monkeypatch.setattr(gather, "_THREADS", 1)


def crowd(seed: int) -> World:
    """Three guests on two hosts with much in common, two collectors, a forgetter."""
    world = World(seed, shared=True)
    fill = contents(world.chance)
    world.add("writer a", world.writer("guest-a", "host-1", 3, fill))
    world.add("writer b", world.writer("guest-b", "host-2", 3, fill))
    world.add("writer c", world.writer("guest-c", "host-1", 2, fill))
    world.add("collector 1", world.collector(3))
    world.add("collector 2", world.collector(2))
    world.add("forgetter", world.forgetter(4))
    return world


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kills", [0, 3])
def test_any_order(block: int, kills: int) -> None:
    """By chance, with actors that are killed at any request, too."""
    for seed in range(block * 6, block * 6 + 6):
        world = crowd(seed)
        world.run(kills=kills)
        try:
            judge(world)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_they_do_share() -> None:
    """The orders above are about something: a guest's map names packs of others'."""
    world = crowd(1)
    world.run()
    assert any(
        {ref.lineage for ref in point.table.values()} - {point.lineage.id}
        for point in world.repository(world.store).read_points().points
    )


def a_guest(world: World, name: str) -> Any:
    """A run that finds all it has in what others stored."""
    return world.add(name, world.writer(name, "host", 1, filled(1), 1.0))


def a_guests_only_witness_is_forgotten(world: World) -> None:
    """6b with three guests: the second rests on the first, the third on the second, which is forgotten meanwhile.

    The third pins after the collector has asked who is open: it must have seen what is condemned.
    """
    a_guest(world, "first").finish()
    second = a_guest(world, "second")
    second.until("put", "points/")
    forget_all(world)
    collector = world.add("collector", world.collector(1))
    collector.until("put", "condemned/")
    collector.until("stat", "points/")
    second.finish()
    third = a_guest(world, "third")
    third.until("put", "points/")
    forget_all(world)
    collector.finish()
    third.finish()


def deletes_are_late(world: World) -> None:
    """6r: the first guest is forgotten, collected, and the list dropped; the store has not deleted anything yet.

    Who looks at the first guest's points only before that, or at what the cache knows, finds all its packs there.
    """
    a_guest(world, "first").finish()
    second = a_guest(world, "second")
    second.until("put", "sessions/")
    forget_all(world)
    world.store.late = []
    world.add("collector", world.collector(1)).finish()
    assert world.store.late
    second.finish()
    world.store.catch_up()


def a_pack_that_nobody_needs(world: World) -> None:
    """The newest point of a guest names a session of which one pack is needed; another one is being collected.

    A collector has asked who is open, and a run that pins then uses that other pack, for it knows the session.
    """
    world.most = 1
    content = [bytes([n + 1]) * CHUNK for n in range(CHUNKS)]
    old = iter(content)
    world.add("first", world.writer("first", "host", 1, lambda: next(old), 1.0)).finish()
    before = set(world.kept)
    new = iter([bytes([n + 100]) * CHUNK for n in range(CHUNKS - 1)])
    disk = world.disks["first"]
    world.add("second", world.writer("first", "host", 1, lambda: next(new, disk[-1]), 1.0)).finish()
    world.forgotten |= before
    world.add("forgetter", lambda repository: _forget(repository, before)).finish()
    world.store.late = []
    world.add("collector", world.collector(1)).finish()
    assert world.store.late
    again = iter(content)
    world.add("third", world.writer("third", "host", 1, lambda: next(again), 1.0)).finish()
    world.store.catch_up()


def _forget(repository: Any, sessions: set[bytes]) -> None:
    for point in repository.read_points().points:
        if point.session in sessions:
            forget(repository, point.lineage, point.session)


def condemned_packs_of_others(patch: pytest.MonkeyPatch) -> None:
    """W6 for others' packs alone."""
    is_fit = Placing.is_fit
    patch.setattr(Placing, "is_fit", lambda self, ref, kind, pack: kind == "data" or is_fit(self, ref, kind, pack))
    patch.setattr(Others, "_is_doomed", lambda *_: False)


def points_before_the_pin(patch: pytest.MonkeyPatch) -> None:
    """W3, W4: other histories are read before the run pins, or believed as the cache knows them."""
    patch.setattr(run_module, "gather", lambda *_: None)
    opened = Run.open.__func__  # type: ignore[attr-defined]

    def early(cls: type[Run], repository: Any, lineage: Lineage, host: str, **options: Any) -> Run:
        found = repository.read_points(group=lineage.group)
        run: Run = opened(cls, repository, lineage, host, **options)

        def stale(self: Others, history: bytes) -> History | None:
            point = newest([point for point in found.points if point.lineage.id == history])
            return History(self._catalog, [point]) if point else None

        patch.setattr(Others, "_read", stale)
        return run

    patch.setattr(Run, "open", classmethod(early))


def any_pack_of_a_known_session(patch: pytest.MonkeyPatch) -> None:
    """W4: whatever pack of a session that a valid point names, needed or not."""

    class _All(set[Any]):
        def __contains__(self, _name: object) -> bool:
            return True

    read = Others._read

    def all_packs(self: Others, lineage: bytes) -> History | None:
        found = read(self, lineage)
        if found:
            found.packs = _All()
        return found

    patch.setattr(Others, "_read", all_packs)


TRACES: list[tuple[Callable[[World], None], Patch]] = [
    (a_guests_only_witness_is_forgotten, no_condemned_lists),
    (a_guests_only_witness_is_forgotten, condemned_packs_of_others),
    (deletes_are_late, points_before_the_pin),
    (a_pack_that_nobody_needs, any_pack_of_a_known_session),
]


@pytest.mark.parametrize(("trace", "rule"), TRACES, ids=lambda given: given.__name__)
def test_a_trace(trace: Callable[[World], None], rule: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all rules nothing is lost; without the one it is about, something is."""
    world = World(1, shared=True)
    trace(world)
    judge(world)
    rule(monkeypatch)
    world = World(1, shared=True)
    trace(world)
    assert loses(world)
