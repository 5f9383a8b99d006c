"""What came due while the service was down is asked for once, by what the repository and the history say."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from vmbackup.config.load import parse
from vmbackup.config.models import Config
from vmbackup.daemon import plan
from vmbackup.daemon.catchup import missed
from vmbackup.daemon.outlook import Seen
from vmbackup.daemon.snapshot import LastRun
from vmbackup.daemon.work import DIED, STOPPED, Kind, Request, Trigger

TEXT = """
[repositories.local]
url = "file:///srv/a"
passphrase_file = "/p"
[repositories.local.prune]
schedule = "0 4 * * *"
timezone = "UTC"
[jobs.nightly]
domains = ["web"]
schedule = "0 2 * * *"
timezone = "UTC"
window = "30m"
"""
CONFIG = parse(TEXT, "test.toml")


def at(day: int, hour: int, minute: int = 0) -> float:
    return datetime(2026, 11, day, hour, minute, tzinfo=UTC).timestamp()


@dataclass
class World:
    """An outlook and a history of the test's own."""

    point: float = 0.0
    copied: float = 0.0
    known: bool = True
    runs: dict[Kind, LastRun] = field(default_factory=dict)

    def domains(self) -> dict[str, str]:
        return {"web": "u"} if self.known else {}

    def seen(self, repository: str, domain: str) -> Seen | None:
        time = self.copied if repository == "offsite" else self.point
        return Seen("web", "u", (time,), time) if time else None

    def last(self, kind: Kind, job: str | None, domain: str | None, repository: str) -> LastRun | None:
        return self.runs.get(kind)

    def missed(self, alive: float, now: float, config: Config = CONFIG) -> dict[Kind, Request]:
        found = list(missed(config, self, self, alive, now))  # type: ignore[arg-type]
        kinds = {request.work.kind: request for request in found}
        assert len(kinds) == len(found)
        assert all(request.trigger is Trigger.CATCH_UP and request.due <= now for request in found)
        return kinds


def run(started: float, error: str | None = None, status: str = "success") -> LastRun:
    return LastRun("r", status, "schedule", 1, started, started + 60, error)


PRUNED = {Kind.PRUNE: run(at(20, 4))}


def test_several_firings_are_caught_up_by_one_run() -> None:
    world = World(point=at(17, 2, 20), runs={Kind.PRUNE: run(at(17, 4))})
    found = world.missed(at(17, 5), at(20, 12))
    assert found[Kind.BACKUP].due == at(20, 2)
    assert found[Kind.PRUNE].due == at(20, 4)


def test_nothing_is_caught_up_where_nothing_was_missed() -> None:
    assert World(point=at(20, 2, 20), runs=PRUNED).missed(at(20, 5), at(20, 12)) == {}


def test_a_guest_whose_moment_in_the_window_has_not_come_yet_waits_for_it() -> None:
    """The service starts between the firing, which it has missed, and the guest's own moment."""
    for runs in ({}, {Kind.BACKUP: run(at(19, 2, 20))}):
        world = World(point=at(19, 2, 20) if runs else 0.0, runs={Kind.PRUNE: run(at(20, 4)), **runs})
        moment = plan.seconds_off("nightly", "web", CONFIG.jobs["nightly"])
        found = world.missed(at(20, 2) + moment / 2, at(20, 2) + moment - 1)
        assert found[Kind.BACKUP].not_before == at(20, 2) + moment


def failed(attempt: int) -> LastRun:
    return replace(run(at(20, 2, 20), "no space", "failed"), attempt=attempt)


def test_one_that_failed_for_good_is_not_tried_again() -> None:
    world = World(point=at(19, 2, 20), runs={Kind.BACKUP: failed(attempt=3), **PRUNED})
    assert world.missed(at(20, 5), at(20, 12)) == {}


def test_attempts_that_the_service_did_not_live_to_see_are_made() -> None:
    world = World(point=at(19, 2, 20), runs={Kind.BACKUP: failed(attempt=2), **PRUNED})
    assert Kind.BACKUP in world.missed(at(20, 5), at(20, 12))


def test_a_point_that_somebody_made_meanwhile_is_as_good() -> None:
    world = World(point=at(20, 3), runs={Kind.BACKUP: failed(attempt=1), **PRUNED})
    assert world.missed(at(20, 5), at(20, 12)) == {}


def test_maintenance_that_ended_with_the_service_is_made_again() -> None:
    world = World(point=at(20, 2, 20), runs={Kind.PRUNE: run(at(20, 4), DIED, "failed")})
    assert set(world.missed(at(20, 4, 1), at(20, 12))) == {Kind.PRUNE}


def test_a_copy_that_did_not_come_about_is_made() -> None:
    world = World(point=at(20, 2, 20), copied=at(19, 2, 20), runs=PRUNED)
    offsite = '[repositories.offsite]\nurl = "file:///b"\n[jobs.nightly]\ncopy_to = ["offsite"]'
    copying = parse(TEXT.replace("[jobs.nightly]", offsite), "test.toml")
    (found,) = world.missed(at(20, 5), at(20, 12), copying).values()
    assert (found.work.kind, found.work.target) == (Kind.COPY, "offsite")
    world.copied = world.point
    assert world.missed(at(20, 5), at(20, 12), copying) == {}


@pytest.mark.parametrize("error", [DIED, STOPPED])
def test_one_that_ended_with_the_service_is_made_again(error: str) -> None:
    world = World(point=at(19, 2, 20), runs={Kind.BACKUP: run(at(20, 2, 20), error, "failed"), **PRUNED})
    assert Kind.BACKUP in world.missed(at(20, 5), at(20, 12))


def test_a_guest_without_any_point_counts_from_the_last_sign_of_life() -> None:
    assert Kind.BACKUP in World(runs=PRUNED).missed(at(20, 1), at(20, 12))
    assert World(runs=PRUNED).missed(at(20, 5), at(20, 12)) == {}


def test_a_new_host_starts_nothing_by_itself() -> None:
    """No history, no restore points: the first backup is the schedule's, not the first start's."""
    assert World().missed(0.0, at(20, 12)) == {}


def test_a_vanished_guest_is_left_alone() -> None:
    assert World(point=at(1, 2, 20), known=False, runs=PRUNED).missed(at(20, 5), at(20, 12)) == {}
