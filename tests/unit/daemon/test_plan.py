"""What the configuration asks for: schedules, guests of jobs, requests with their promises."""

from __future__ import annotations

from zoneinfo import ZoneInfo

import pytest

from vmbackup.config.load import parse
from vmbackup.config.models import Config
from vmbackup.daemon import plan
from vmbackup.daemon.plan import Guest
from vmbackup.daemon.work import Kind, Trigger

TEXT = """
[repositories.local]
url = "file:///srv/a"
passphrase_file = "/p"
[repositories.local.prune]
schedule = "0 4 * * *"
[repositories.offsite]
url = "file:///srv/b"
passphrase_file = "/p"
[repositories.offsite.verify]
schedule = "@weekly"
timezone = "Europe/Berlin"

[jobs.nightly]
domains = ["*"]
exclude = ["scratch-*"]
schedule = "0 2 * * *"
timezone = "Europe/Berlin"
copy_to = ["offsite"]
max_age = "26h"
window = "30m"
retries = 4
retry_after = "1m"
deadline = "2h"
[jobs.nightly.drill]
schedule = "@weekly"

[jobs.hand]
domains = ["db", "scratch-db"]
repository = "offsite"
[jobs.hand.drill]
schedule = "@monthly"
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return parse(TEXT, "test.toml")


def test_every_schedule_is_a_firing(config: Config) -> None:
    found = plan.firings(config)
    assert sorted(found) == ["backup/nightly", "drill/hand", "drill/nightly", "prune/local", "verify/offsite"]
    assert found["backup/nightly"].zone == ZoneInfo("Europe/Berlin")


def test_guests_are_domains_under_each_job_that_means_them(config: Config) -> None:
    assert plan.guests(config, ["db", "scratch-db", "web"]) == [
        Guest("db", "nightly", "local"),
        Guest("web", "nightly", "local"),
        Guest("db", "hand", "offsite"),
        Guest("scratch-db", "hand", "offsite"),
    ]


def test_a_job_without_a_schedule_protects_nobody(config: Config) -> None:
    assert plan.unprotected(config, ["db", "scratch-db", "web"]) == ["scratch-db"]


def test_a_request_knows_its_promise_and_its_moment(config: Config) -> None:
    guest = Guest("web", "nightly", "local")
    request = plan.backup_request(config, guest, Trigger.SCHEDULE, 1000.0, last_success=500.0, firing="f")
    assert request.promise == 500.0 + 26 * 3600
    assert 1000.0 <= request.not_before < 1000.0 + 1800
    assert (request.retries, request.retry_after, request.deadline, request.firing) == (4, 60.0, 7200.0, "f")
    again = plan.backup_request(config, guest, Trigger.SCHEDULE, 2000.0)
    assert again.not_before - 2000.0 == request.not_before - 1000.0
    assert again.promise is not None
    assert again.promise < request.promise


def test_an_operator_does_not_wait_for_the_window(config: Config) -> None:
    guest = Guest("web", "nightly", "local")
    assert plan.backup_request(config, guest, Trigger.MANUAL, 1000.0).not_before == 1000.0


def test_the_next_start_is_of_a_firing_to_come(config: Config) -> None:
    """What has fired waits in the queue, or was never asked for: no run is promised that nobody will make."""
    guest, firing = Guest("web", "nightly", "local"), plan.firings(config)["backup/nightly"]
    start = plan.next_start(config, guest, firing, 1_790_000_000.0)
    assert plan.next_start(config, guest, firing, start - 1.0) == start + 86400
    assert plan.next_start(config, guest, firing, start) == start + 86400


def test_copies_follow_to_each_target(config: Config) -> None:
    (request,) = plan.copy_requests(config, Guest("web", "nightly", "local"), 1000.0)
    assert (request.work.kind, request.work.target, request.trigger) == (Kind.COPY, "offsite", Trigger.FOLLOW)
