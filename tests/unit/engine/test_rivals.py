"""Two hosts want to back one guest up at one moment: exactly one does, whatever their clocks say."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.engine.kit import SECRET, RamKit
from vmbackup.errors import JobConflictError
from vmbackup.repository import Repository
from vmbackup.repository.run import Run
from vmbackup.repository.trust import Trust

EARLY, LATE = b"\x01", b"\x02"


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """A repository with one restore point."""
    kit = RamKit(tmp_path, {"vda": 65536})
    kit.backup()
    return kit


def open_run(kit: RamKit, host: str, first: bytes, wait: Callable[[float], None] = lambda _: None) -> Run:
    """A run of that host, which knows the repository by itself; its session's id begins with `first`."""
    repository = Repository.open(kit.store, SECRET, Trust(None))
    lineage = kit.points()[0].lineage
    return Run.open(repository, lineage, host, name=lambda: first + os.urandom(15), wait=wait)


@pytest.mark.parametrize(("first", "second"), [(EARLY, LATE), (LATE, EARLY)])
def test_who_comes_later_gives_way(kit: RamKit, first: bytes, second: bytes) -> None:
    """Also with a clock that is behind, whose session sorts before the one that runs; then it is let in."""
    running = open_run(kit, "one/0123", first)
    with pytest.raises(JobConflictError, match="another host, one, is backing this guest up") as caught:
        open_run(kit, "two", second)
    assert caught.value.exit_code == 1
    running.abandon()
    open_run(kit, "two", second).abandon()


def test_a_session_that_was_there_before_is_not_waited_for(kit: RamKit, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the store's clock: it has looked already."""
    running = open_run(kit, "one", LATE)
    monkeypatch.setattr("vmbackup.repository.rivals._SETTLED", -3600.0)
    waited: list[float] = []
    with pytest.raises(JobConflictError):
        open_run(kit, "two", EARLY, waited.append)
    assert waited == []
    running.abandon()


def test_of_two_at_one_moment_one_goes_on(kit: RamKit) -> None:
    """Both have pinned before either looks: the higher id gives way, and the lower one waits until it has."""
    both = threading.Barrier(2)
    won: list[str] = []
    lost: list[str] = []

    def back_up(host: str, first: bytes) -> None:
        repository = Repository.open(kit.store, SECRET, Trust(None))

        def name() -> bytes:
            return first + os.urandom(15)

        put = repository.store.put
        pinned = threading.Event()

        def put_and_meet(key: str, data: bytes) -> None:
            put(key, data)
            if key.startswith("sessions/") and not pinned.is_set():
                pinned.set()
                both.wait(30)

        repository.store.put = put_and_meet  # type: ignore[method-assign]
        try:
            run = Run.open(repository, lineage, host, name=name)
        except JobConflictError:
            lost.append(host)
        else:
            won.append(host)
            run.abandon()

    lineage = kit.points()[0].lineage
    hosts = [threading.Thread(target=back_up, args=each) for each in (("one", LATE), ("two", EARLY))]
    for host in hosts:
        host.start()
    for host in hosts:
        host.join()
    assert (won, lost) == (["two"], ["one"])
