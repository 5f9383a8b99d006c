"""What follows from runs: points known at once, copies, looks, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit.daemon.rig import FAILED, NOON, SUCCESS, backup, copy, prune
from vmbackup.config.load import parse
from vmbackup.daemon.follow import Follower
from vmbackup.daemon.work import STOPPED, SUPERSEDED, Kind, Outcome, Request, Run, Skip, Status, Trigger, Work

CONFIG = parse(
    """
[repositories.local]
url = "file:///a"
passphrase_file = "/p"
[repositories.offsite]
url = "file:///b"
passphrase_file = "/p"
[jobs.nightly]
domains = ["*"]
copy_to = ["offsite"]
""",
    "test.toml",
)


@dataclass
class Parts:
    """History, outlook and teller, which only note what they are told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    submitted: list[Request] = field(default_factory=list)
    looked: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.told.append((name, *arguments))

    def names(self) -> list[str]:
        return [call[0] for call in self.told]


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def follower(parts: Parts) -> Follower:
    teller: Any = parts
    return Follower(
        lambda: CONFIG, teller, teller, teller, parts.submitted.append, parts.looked.append, lambda: None
    )


def ended(request: Request, outcome: Outcome = SUCCESS) -> Run:
    return Run(request.id, request, NOON, finished=NOON + 5, outcome=outcome)


def test_a_backup_makes_its_point_known_and_is_copied(parts: Parts, follower: Follower) -> None:
    made = Outcome(Status.SUCCESS, 0, document={"points": [{"id": "p"}]})
    follower.ended(ended(backup("web"), made), None)
    assert ("add_point", "local", {"id": "p"}) in parts.told
    (request,) = parts.submitted
    assert request.work == Work(Kind.COPY, "local", "nightly", "web", "offsite")
    assert request.trigger is Trigger.FOLLOW


def test_a_failed_backup_is_not_copied(parts: Parts, follower: Follower) -> None:
    follower.ended(ended(backup("web"), FAILED), None)
    assert parts.submitted == []
    assert "add_point" not in parts.names()
    assert "ended" in parts.names()


def test_repositories_are_looked_at_when_they_have_changed(parts: Parts, follower: Follower) -> None:
    follower.ended(ended(copy("web")), None)
    follower.ended(ended(prune("offsite")), None)
    assert parts.looked == ["offsite", "offsite"]
    assert "forget_sizes" in parts.names()


def test_a_copy_that_was_asked_for_during_the_same_copy_is_made_after_it(parts: Parts, follower: Follower) -> None:
    """The one that goes on may have read the repository before the new point was there."""
    going = copy("web")
    follower.skipped(copy("web"), Skip.RUNNING)
    assert "skip" not in parts.names()
    follower.ended(ended(going, FAILED), None)
    assert [request.work for request in parts.submitted] == [going.work]
    follower.ended(ended(going), None)
    assert len(parts.submitted) == 1


def test_whoever_is_told_of_an_end_finds_the_copies_that_follow(parts: Parts) -> None:
    """`run --wait` looks whether anything goes on yet."""
    teller: Any = parts
    seen: list[int] = []

    def changed() -> None:
        seen.append(len(parts.submitted))

    follower = Follower(lambda: CONFIG, teller, teller, teller, parts.submitted.append, parts.looked.append, changed)
    follower.ended(ended(backup("web")), None)
    follower.skipped(copy("web"), Skip.RUNNING)
    follower.ended(ended(copy("web")), None)
    assert seen == [1, 2]


def test_a_run_that_ended_with_the_service_is_nobodys_failure(parts: Parts, follower: Follower) -> None:
    follower.ended(ended(backup("web"), Outcome(Status.CANCELLED, 130, STOPPED)), None)
    assert "dropped" in parts.names()
    assert "ended" not in parts.names()


def test_what_an_operator_has_done_now_instead_is_not_missed(parts: Parts, follower: Follower) -> None:
    follower.dropped(backup("web"), SUPERSEDED)
    assert "dropped" in parts.names()
    follower.dropped(backup("web", trigger=Trigger.RETRY), SUPERSEDED)
    assert "missed" in parts.names()


def test_what_was_taken_out_counts_as_missed(parts: Parts, follower: Follower) -> None:
    follower.dropped(backup("web"), "an operator ended it")
    assert "missed" in parts.names()
    follower.skipped(backup("web"), Skip.RUNNING)
    assert {"skip", "dropped"} <= set(parts.names())
