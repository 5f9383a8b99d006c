"""A forget and a prune with repacking beside verify and repair, at each of their requests: no damage that is none."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import SECRET, RamKit
from tests.unit.engine.test_repack import scattered
from vmbackup.engine.care.repair import RepairOptions, repair
from vmbackup.engine.care.verify import verify
from vmbackup.errors import NotFoundError, RepositoryError
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.tombstones import forget
from vmbackup.repository.trust import Trust

CHUNK = 4096
COUNTED = ("get", "stat", "list", "put", "delete", "read_into")


class Interposed:
    """A store where something happens before the n-th request."""

    def __init__(self, store: MemoryStore, at: int, happen: Callable[[], None]) -> None:
        self._store, self._at, self._happen = store, at, happen
        self.requests = 0
        self._lock = threading.Lock()

    def __getattr__(self, verb: str) -> Any:
        found = getattr(self._store, verb)
        if verb not in COUNTED:
            return found

        def request(*args: Any, **options: Any) -> Any:
            with self._lock:  # the others wait until it has happened
                if self.requests == self._at:
                    self._happen()
                self.requests += 1
            return found(*args, **options)

        return request


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RamKit:
    """Eight points of scattered changes in memory."""
    store: Any = MemoryStore()
    kit, chance = RamKit(tmp_path_factory.mktemp("kit"), {"vda": 48 * CHUNK}, store=store), random.Random(2)
    scattered(kit, chance, 48)
    kit.backup()
    for _ in range(7):
        scattered(kit, chance, 10)
        kit.backup()
    return kit


def copied(kit: RamKit) -> MemoryStore:
    store: Any = kit.store
    return MemoryStore(store.objects)


def opened(store: Any) -> Repository:
    return Repository.open(store, SECRET, Trust(None))


def thin(store: MemoryStore, repack_below: float = 1.0) -> None:
    """Half of the points are forgotten, what is left is repacked, and the old packs go."""
    repository = opened(store)
    points = sorted(repository.read_points().points, key=lambda p: p.session)
    for point in points[:-1:2]:
        forget(repository, point.lineage, point.session)
    for _ in range(2):
        prune(repository, PruneOptions(wait=0.0, repack_below=repack_below, host="there"), sleep=lambda _s: None)


def sweep(
    kit: RamKit, step: int, harm: Callable[[MemoryStore], None] = lambda _s: None, repack_below: float = 1.0
) -> Iterator[Interposed]:
    """A store for each request that something happens before, until nothing did."""
    for at in range(0, 100_000, step):
        objects = copied(kit)
        harm(objects)
        happened: list[int] = []

        def happen(objects: MemoryStore = objects, happened: list[int] = happened) -> None:
            happened.append(1)
            thin(objects, repack_below)

        store = Interposed(objects, at, happen)
        yield store
        if not happened:
            return


def fitting(step: int) -> list[Any]:
    """Some of the requests always, each in the long tests."""
    long = [pytest.mark.torture, pytest.mark.timeout(3600)]
    return [pytest.param(step, id="some"), pytest.param(1, id="each", marks=long)]


@pytest.mark.parametrize("step", fitting(13))
@pytest.mark.parametrize("read_data", [None, 1.0])
def test_verify_calls_nothing_damaged_that_is_not(whole: RamKit, step: int, read_data: float | None) -> None:
    for store in sweep(whole, step):
        found = verify(opened(store), None, read_data, Silent())
        assert found.damaged == (), store.requests
        assert found.points in (4, 8)
        assert not list(store.list("damage/"))


@pytest.mark.parametrize("step", fitting(13))
def test_nor_where_nothing_is_repacked(whole: RamKit, step: int) -> None:
    """Points go, and packs with them; no table of moves tells of it."""
    for store in sweep(whole, step, repack_below=0.0):
        assert verify(opened(store), None, None, Silent()).damaged == (), store.requests


@pytest.mark.parametrize("step", fitting(13))
def test_verify_finds_what_is_damaged(whole: RamKit, step: int) -> None:
    """A pack that the newest point needs, and that no repacking can read, is damaged before and after."""
    for store in sweep(whole, step, harmed):
        found = verify(opened(store), None, 1.0, Silent())
        assert found.damaged
        newest = max(opened(store).read_points().points, key=lambda p: p.session)
        assert {point for damage in found.damaged for point in damage.points} == {newest.id}, store.requests


def harmed(store: MemoryStore) -> None:
    """The newest point's own data is gone."""
    newest = max(opened(store).read_points().points, key=lambda p: p.session)
    for key in [key for key in store.objects if key.startswith("data/") and newest.session.hex() in key]:
        del store.objects[key]


@pytest.mark.parametrize("step", fitting(29))
@pytest.mark.parametrize("replica", [False, True])
def test_repair_heals_what_is_damaged(whole: RamKit, step: int, replica: bool) -> None:
    """With a replica all of it; without one what is lost stays, and nothing else is called damaged."""
    for store in sweep(whole, step, harmed):
        away = opened(copied(whole)) if replica else None
        lost = {key for key in copied(whole).objects if key not in store._store.objects}
        done = repair(opened(store), RepairOptions(True, away), Silent())
        assert {damage.object for damage in done.last.damaged} == (set() if replica else lost)
        after = verify(opened(store), None, 1.0, Silent())
        assert {damage.object for damage in after.damaged} == (set() if replica else lost)


def test_a_point_that_is_forgotten_meanwhile(whole: RamKit) -> None:
    """It is no damage: it is not there any more."""
    for store in sweep(whole, 9):
        repository = opened(store)
        named = sorted(repository.read_points().points, key=lambda p: p.session)[2:3]
        if not named or named[0].id != sorted(whole.kept)[2]:
            continue
        with contextlib.suppress(NotFoundError):
            assert verify(repository, named, 1.0, Silent()).damaged == ()


def test_a_repository_that_never_rests(whole: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """What seems damaged is judged only so often; then it is said so, and nothing is recorded."""
    store = copied(whole)
    harmed(store)
    monkeypatch.setattr("vmbackup.engine.care.verify.changed", lambda _before, _now: True)
    with pytest.raises(RepositoryError, match="changes too fast"):
        verify(opened(store), None, None, Silent())
    assert not list(store.list("damage/"))


def test_a_healing_whose_table_went_at_once(whole: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prune that found it needless: what is damaged is judged anew. Where nothing has changed, the error is told."""
    from vmbackup.engine.care import repair as module

    store, original, calls = copied(whole), module.heal, 0
    harmed(store)

    def heal(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            return original(*args, **options)
        thin(store)
        raise RepositoryError("it was ended")

    monkeypatch.setattr(module, "heal", heal)
    assert repair(opened(store), RepairOptions(True, opened(copied(whole))), Silent()).last.damaged == ()
    store, calls = copied(whole), 0
    harmed(store)
    monkeypatch.setattr("tests.unit.engine.test_beside_a_prune.thin", lambda _store: None)
    with pytest.raises(RepositoryError, match="it was ended"):
        repair(opened(store), RepairOptions(True), Silent())
