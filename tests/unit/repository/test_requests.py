"""What looking at many restore points asks of the store: each object once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.torture.scale import CHUNK, build
from tests.unit.collection.steps import MemoryStore
from vmbackup.engine.care.verify import verify
from vmbackup.progress import Silent
from vmbackup.repository import catalog, maps
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.keys import Secret
from vmbackup.repository.repository import Repository
from vmbackup.repository.trust import Trust
from vmbackup.repository.usage import freed_bytes

SECRET = Secret.passphrase("a passphrase for tests", random=True)
DOMAINS, POINTS = 3, 6


class CountingStore(MemoryStore):
    """Counts what is read of which object: (key, offset)."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[tuple[str, int]] = Counter()

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.reads[key, offset] += 1
        return super().get(key, offset, length)

    def stat(self, key: str) -> Any:
        found = super().stat(key)
        self.reads[key, 0] -= 1
        return found

    def most(self, folder: str) -> int:
        """How often the part of an object in that folder that was read most was read."""
        return max((n for (key, _), n in self.reads.items() if key.startswith(folder)), default=0)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def repository(store: CountingStore, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """Of several domains with several points each, whose maps share small leaves; opened anew, with one node held."""
    monkeypatch.setattr(maps, "LEAF_ENTRIES", 8)
    monkeypatch.setattr(catalog, "_LEAVES", 1)
    handle: Any = store
    made, _ = Repository.create(handle, SECRET, Trust(None), chunk_size=CHUNK)
    build(made, DOMAINS, POINTS, 300, 10)
    opened = Repository.open(handle, SECRET, Trust(None))
    store.reads.clear()
    return opened


def plan(repository: Repository) -> None:
    prune(repository, PruneOptions(dry_run=True))


def check(repository: Repository) -> None:
    assert verify(repository, None, None, Silent()).damaged == ()


def freed(repository: Repository) -> None:
    points = repository.survey().points
    assert freed_bytes(repository.catalog(), points[0], points) > 0


@pytest.mark.parametrize(("command", "nodes"), [(plan, 1), (check, 1), (freed, 2)])
def test_each_object_is_read_once(
    store: CountingStore, repository: Repository, command: Callable[[Repository], None], nodes: int
) -> None:
    """Points, index roots, headers, nodes: once each, whatever shares them (for what a point frees, once more)."""
    command(repository)
    assert sum(n for (key, _), n in store.reads.items() if key.startswith("points/")) == DOMAINS * POINTS
    assert {folder: store.most(folder) for folder in ("points/", "index/", "meta/", "data/")} == {
        "points/": 1, "index/": 1, "meta/": nodes, "data/": 0,
    }  # fmt: skip


def test_a_session_is_looked_at_as_a_whole(
    store: CountingStore, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where few index roots can be held, a verify reads each four times: for maps, for itself, for runs, for packs."""
    monkeypatch.setattr(catalog, "_ROOT_PACKS", 1)
    check(repository)
    assert store.most("index/") <= 4


def test_what_was_used_last_is_held() -> None:
    """As much as costs no more than the limit, but always the last value, however large."""
    cache: catalog._Cache[str, int] = catalog._Cache(10, lambda value: value)
    for key, cost in (("a", 4), ("b", 4), ("a", 4), ("c", 4)):
        assert cache.fetch(key, lambda cost=cost: cost) == cost
    assert list(cache) == ["a", "c"]
    cache.fetch("d", lambda: 50)
    assert list(cache) == ["d"]
    cache.fetch("e", lambda: 10)
    assert list(cache) == ["e"]
