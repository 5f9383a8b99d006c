"""The order of a recovery: all guests are thawed before anything slow, and a repository is opened only if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit
from vmbackup.engine.backup.recover import Candidate, Recovery, recover
from vmbackup.errors import JobConflictError, NotFoundError
from vmbackup.hypervisor.names import CheckpointName
from vmbackup.hypervisor.tidy.intents import Intent
from vmbackup.hypervisor.tidy.recovery import Leftover
from vmbackup.repository import Repository

OTHER = "0123abcd"


def intent(name: str, repository: str = OTHER, *, frozen: bool = False) -> Intent:
    checkpoint = f"vmbackup-{repository}-20261124T020000Z-1a2b3c4d0000"
    return Intent(
        f"session of {name}", repository, "qemu:///system", f"uuid of {name}", name, 1, 1, checkpoint, (), {}, "", (),
        0, True, frozen,
    )  # fmt: skip


class Host:
    """Says what it was asked for; what dead runs left is decided on by the repository's word."""

    def __init__(self, *intents: Intent) -> None:
        self.intents = list(intents)
        self.asked: list[str] = []
        self.live: set[str] = set()

    def thaw(self, dead: Intent) -> list[Leftover]:
        self.asked.append(f"thaw {dead.domain_name}")
        if dead.domain_name in self.live:
            raise JobConflictError("another run works on it")
        return [self._left(each, None, "thawed") for each in self._of(dead) if each.frozen]

    def recover(self, dead: Intent, committed: Callable[[CheckpointName], bool | None]) -> list[Leftover]:
        self.asked.append(f"recover {dead.domain_name}")
        left = []
        for each in self._of(dead):
            name = CheckpointName.parse(each.checkpoint or "")
            assert name
            word = committed(name)
            left.append(self._left(each, word, *([] if word is None else [f"committed: {word}"])))
            if word is not None:
                self.intents.remove(each)
        return left

    def _of(self, dead: Intent) -> list[Intent]:
        return [each for each in self.intents if each.domain_uuid == dead.domain_uuid]

    @staticmethod
    def _left(dead: Intent, word: bool | None, *done: str) -> Leftover:
        return Leftover(dead.session, dead.repository_id, dead.domain_name, dead.checkpoint, word, done, ())


def recovered(host: Any, *candidates: Candidate) -> Recovery:
    return recover(host, list(host.intents), candidates)


def never(name: str, known: str | None) -> Candidate:
    """A repository that must not be opened."""
    return Candidate(name, known, lambda: pytest.fail(f"{name} was opened"))


def opens(host: Host, repository: Repository, known: str | None = None) -> Candidate:
    @contextmanager
    def opened() -> Iterator[Repository]:
        host.asked.append("open")
        yield repository

    return Candidate("local", known, opened)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return RamKit(tmp_path, {"vda": 4096}).repository


def test_all_guests_are_thawed_first(repository: Repository) -> None:
    host = Host(intent("db", repository.id), intent("web1", repository.id, frozen=True))
    found = recovered(host, opens(host, repository))
    assert host.asked == [
        *("thaw web1", "thaw db", "recover web1", "recover db", "open", "recover web1", "recover db"),
    ]
    assert found.done == [("web1", "thawed"), ("web1", "committed: False"), ("db", "committed: False")]
    assert (found.failed, host.intents) == ([], [])


def test_no_repository_is_opened_for_nothing() -> None:
    assert recovered(Host(), never("local", None)) == Recovery()


def test_only_the_repository_whose_word_is_needed_is_opened(repository: Repository) -> None:
    host = Host(intent("web1", repository.id))
    recovered(host, never("offsite", OTHER), opens(host, repository, repository.id), never("late", None))
    assert host.intents == []


def test_a_live_run_is_left_alone() -> None:
    host = Host(intent("web1", frozen=True))
    host.live.add("web1")
    found = recovered(host, never("local", None))
    assert (found.done, found.failed, found.running) == ([], [], ["web1"])
    assert host.asked == ["thaw web1"]


def test_what_waits_is_told_with_the_reason(repository: Repository) -> None:
    """The repository is not in the configuration, or cannot be opened."""

    def away() -> Any:
        raise NotFoundError("there is no repository at file:///srv", "")

    host = Host(intent("web1"))
    (trouble,) = recovered(host, opens(host, repository)).failed
    assert trouble.domain == "web1"
    assert trouble.message.endswith(f"the configuration has no repository {OTHER}")
    (trouble,) = recovered(host, Candidate("offsite", None, away)).failed
    assert trouble.message.endswith("repository offsite cannot be asked: there is no repository at file:///srv")
    assert host.intents


def test_runs_into_two_repositories_of_one_guest(repository: Repository) -> None:
    """What one of them says is done, though the other is away."""
    host = Host(intent("web1", repository.id), intent("web1"))
    found = recovered(host, opens(host, repository))
    assert found.done == [("web1", "committed: False")]
    assert [each.repository_id for each in host.intents] == [OTHER]
    assert len(found.failed) == 1
