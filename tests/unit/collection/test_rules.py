"""Each rule of the protocol, left out: then some order of requests loses data. So the search would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.collection.steps import DAY, Actor
from tests.unit.collection.test_interleavings import crowd, judge
from tests.unit.collection.world import CHUNK, CHUNKS, World, write
from vmbackup.errors import DamageError
from vmbackup.repository import run as run_module
from vmbackup.repository.collect import _Cycle
from vmbackup.repository.condemned import TABLE
from vmbackup.repository.repository import PointList, Repository
from vmbackup.repository.run import Run
from vmbackup.repository.session import Session
from vmbackup.repository.tombstones import forget

MOST_SEEDS = 400

Patch = Callable[[pytest.MonkeyPatch], None]


def late_pin(patch: pytest.MonkeyPatch) -> None:
    """W1: the pin only after all is read."""
    read, pin = Run._read_protocol, Session.pin
    patch.setattr(Session, "pin", lambda _self: None)

    def protocol(self: Run) -> object:
        found = read(self)
        pin(self._main)
        return found

    patch.setattr(Run, "_read_protocol", protocol)


def no_condemned_lists(patch: pytest.MonkeyPatch) -> None:
    """W2, W6: the writer does not look at what is about to go."""

    class _Blind:
        read = staticmethod(lambda *_: {})

    patch.setattr(run_module, "condemned", _Blind)


def sessions_before_the_list(patch: pytest.MonkeyPatch) -> None:
    """C4: who is open is asked before the list stands."""
    opened = _Cycle._open
    asked: dict[int, Any] = {}

    def collected(self: _Cycle, names: Any) -> Any:
        asked[id(self)] = opened(self)
        return original(self, names)

    original = _Cycle._collect
    patch.setattr(_Cycle, "_collect", collected)
    patch.setattr(_Cycle, "_open", lambda self: asked.pop(id(self), None) or opened(self))


def nobody_is_waited_for(patch: pytest.MonkeyPatch) -> None:
    """C5."""
    patch.setattr(_Cycle, "_wait", lambda *_: [])


def no_second_reading(patch: pytest.MonkeyPatch) -> None:
    """C6."""
    read = _Cycle._read
    first: set[int] = set()

    def once(self: _Cycle) -> PointList:
        if id(self) in first:
            return PointList([], [], [], set())
        first.add(id(self))
        return read(self)

    patch.setattr(_Cycle, "_read", once)


def packs_of_open_sessions(patch: pytest.MonkeyPatch) -> None:
    """C2: what a run that is going on has stored is a candidate, and it is not waited for as it has none to name."""
    read = _Cycle._read

    def all_ended(self: _Cycle) -> PointList:
        found = read(self)
        found.ended.update((lineage, session) for session, lineage, _ in self._pins())
        return found

    patch.setattr(_Cycle, "_read", all_ended)
    patch.setattr(_Cycle, "_refuse_unknown", lambda *_: None)
    nobody_is_waited_for(patch)


def dead_without_aborted(patch: pytest.MonkeyPatch) -> None:
    """C1: a session is taken for dead by its age, without making its commit impossible."""
    opened = _Cycle._open

    def young(self: _Cycle) -> Any:
        age = self._options.dead_after
        return {s: (place, e) for s, (place, e) in opened(self).items() if self._now - e.modified <= age}

    patch.setattr(_Cycle, "_open", young)
    patch.setattr(_Cycle, "_end_if_dead", lambda *_: None)


RULES: list[Patch] = [nobody_is_waited_for, no_second_reading, packs_of_open_sessions]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_rule_left_out_loses_data(rule: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among a few hundred orders there is one that does."""
    rule(monkeypatch)
    for seed in range(MOST_SEEDS):
        world = crowd(seed, most=1, variety=4)  # packs that are whole or gone: what goes wrong shows soon
        world.run()
        if loses(world):
            return
    pytest.fail(f"none of {MOST_SEEDS} orders lost anything")


def loses(world: World) -> bool:
    try:
        world.check()
    except (AssertionError, DamageError):
        return True
    return False


def filled(chunk: int) -> Callable[[], bytes]:
    return lambda: bytes([chunk]) * CHUNK


def a_point(world: World) -> None:
    world.add("first", world.writer("guest", "host", 1, filled(1), 1.0)).finish()


def forget_all(world: World) -> None:
    world.add("forgetter", world.forgetter(1, 1.0)).finish()


def a_fresh_point_is_forgotten_at_once(world: World, list_stands_first: bool) -> None:
    """6b, 6e: one writer rests on a forgotten point, another on the first one's, which is forgotten too.

    The second pins after the collector has asked who is open. It must have seen the list, or been asked for.
    """
    a_point(world)
    one = world.add("one", world.writer("guest", "host", 1, filled(1), 0.0))
    one.until("put", "points/")  # it rests on the packs of the first point
    forget_all(world)
    collector = world.add("collector", world.collector(1))
    collector.until("put", "condemned/")
    two = world.add("two", world.writer("guest", "host", 1, filled(1), 0.0))
    if list_stands_first:
        collector.until("stat", "points/")  # C5: it has asked, and looks whether the one has ended
        one.finish()
        two.until("put", "points/")
    else:
        one.finish()
        two.until("put", "points/")
    forget_all(world)
    collector.finish()
    two.finish()


def no_list(world: World) -> None:
    a_fresh_point_is_forgotten_at_once(world, list_stands_first=True)


def no_session(world: World) -> None:
    a_fresh_point_is_forgotten_at_once(world, list_stands_first=False)


def a_sleeper(world: World) -> None:
    """6f: a run stands still for days, and goes on."""
    a_point(world)
    sleeper = world.add("sleeper", world.writer("guest", "host", 1, filled(1), 0.0))
    sleeper.until("put", "points/")
    forget_all(world)
    world.store.now += 30 * DAY
    world.add("collector", world.collector(1)).finish()
    sleeper.finish()


def tables_are_not_looked_at_again(patch: pytest.MonkeyPatch) -> None:
    """C6 for tables of moves: one that came to be needed while the collector waited goes all the same (6w)."""
    collected = _Cycle._collect

    def collect(self: _Cycle, names: Any) -> Any:
        read, doomed = self._read, [name for name in names if name.kind == TABLE]

        def again() -> PointList:
            found = read()
            self._needs._objects.difference_update(doomed)
            return found

        patch.setattr(self, "_read", again, raising=False)
        return collected(self, names)

    patch.setattr(_Cycle, "_collect", collect)


def a_table_comes_to_be_needed(world: World) -> None:
    """A run rests on a point whose slots were moved; the point is forgotten, and a collector finds the table idle."""
    disk = [bytes([n + 1]) * CHUNK for n in range(CHUNKS)]

    def back_up(name: str, changed: set[int]) -> Actor:
        def work(repository: Repository) -> None:
            point = write(repository, "guest", "host", disk, changed, world.newest.get("guest"), world.chance, 3)
            world.kept[point.session], world.newest["guest"] = list(disk), point.session

        return world.add(name, work)

    back_up("first", set(range(CHUNKS))).finish()
    disk[0] = bytes([99]) * CHUNK
    first = set(world.kept)
    back_up("second", {0}).finish()
    world.forgotten |= first
    world.add("forgetter", lambda repository: _forget(repository, first)).finish()
    world.add("repacker", world.collector(1)).finish()
    assert world.repository(world.store).read_points().moves
    one = back_up("one", set())
    one.until("put", "points/")  # its map is the second's, which names the slots by their old place
    forget_all(world)
    collector = world.add("collector", world.collector(1))
    collector.until("put", "condemned/")
    collector.until("stat", "points/")
    one.finish()
    collector.finish()


def _forget(repository: Repository, sessions: set[bytes]) -> None:
    for point in repository.read_points().points:
        if point.session in sessions:
            forget(repository, point.lineage, point.session)


def a_pin_after_the_reading(world: World) -> None:
    """6a: what a run has read is forgotten and collected before anybody can see that it goes on."""
    a_point(world)
    one = world.add("one", world.writer("guest", "host", 1, filled(1), 0.0))
    one.until("put", "sessions/")
    forget_all(world)
    collector = world.add("collector", world.collector(1))
    collector.until("delete", "data/")
    one.until("put", "points/")  # it has looked whether all packs are there
    collector.finish()
    one.finish()


TRACES = [
    (a_pin_after_the_reading, late_pin),
    (a_table_comes_to_be_needed, tables_are_not_looked_at_again),
    (no_list, no_condemned_lists),
    (no_session, sessions_before_the_list),
    (a_sleeper, dead_without_aborted),
]


@pytest.mark.parametrize(("trace", "rule"), TRACES, ids=lambda given: given.__name__)
def test_a_trace(trace: Callable[[World], None], rule: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all rules nothing is lost; without the one it is about, something is."""
    world = World(1)
    trace(world)
    judge(world)
    rule(monkeypatch)
    world = World(1)
    trace(world)
    assert loses(world)
