"""Jobs whose guests are backed up at one instant: one run of all, and a history for each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.daemon.rig import NOON, Rig, backup, runs
from tests.unit.daemon.test_follow import Parts
from vmbackup.config.load import parse
from vmbackup.daemon import plan
from vmbackup.daemon.commands import commands
from vmbackup.daemon.follow import Follower
from vmbackup.daemon.group import grouped, parts_of_request, parts_of_run, verdict, whole
from vmbackup.daemon.plan import Guest
from vmbackup.daemon.queue import Limits
from vmbackup.daemon.work import Outcome, Progress, Request, Run, Status, Trigger

CONFIG = parse(
    """
[repositories.local]
url = "file:///a"
passphrase_file = "/p"
[jobs.crm]
domains = ["db", "web*"]
consistency_group = true
schedule = "@hourly"
window = "30m"
max_age = "2h"
[jobs.other]
domains = ["mail", "db"]
""",
    "test.toml",
)
KNOWN = ("db", "mail", "web1", "web2")
POINT = {"domain": "db", "domain_uuid": "u", "time": "2026-11-24T12:00:00+00:00", "id": "p", "warnings": []}
FAILED = {"domain": "web1", "error": "it is off", "hint": "start it", "kind": "hypervisor"}


def asked(job: str, *domains: str, last: float = NOON) -> list[Request]:
    return [
        plan.backup_request(CONFIG, Guest(domain, job, "local"), Trigger.SCHEDULE, NOON, last_success=last)
        for domain in domains
    ]


def group() -> Request:
    return grouped(CONFIG, asked("crm", "db", "web1", "web2"))[0]


def test_the_requests_of_a_group_are_one() -> None:
    """Of its guests, starting together; those of other jobs stay apart."""
    requests = [*asked("crm", "web1", "db"), *asked("other", "mail", "db")]
    assert len({request.not_before for request in requests[:2]}) == 1
    mail, db, one = grouped(CONFIG, requests)
    assert (mail.work.domain, db.work.domain) == ("mail", "db")
    assert (one.work.domain, one.work.members) == (None, ("db", "web1"))
    assert one.promise == NOON + 7200


def test_what_is_due_for_one_is_due_for_all() -> None:
    """After a downtime."""
    (one,) = grouped(CONFIG, asked("crm", "web2"), KNOWN)
    assert one.work.members == ("db", "web1", "web2")


def test_one_guest_alone_is_no_group() -> None:
    (one,) = grouped(CONFIG, asked("crm", "web2"))
    assert (one.work.domain, one.work.members) == ("web2", ())


def test_it_is_one_command() -> None:
    assert commands(CONFIG, group()) == [
        ("backup", "--job", "crm", "--no-copy", "--", "db", "web1", "web2"),
    ]


def test_it_takes_one_turn_and_waits_for_each_of_its_guests() -> None:
    """With one turn in all it runs, so that no group is too large; never beside another backup of one of its guests."""
    rig = Rig(Limits(1))
    one, mail = group(), backup("mail", job="other")
    one = replace(one, not_before=NOON, due=NOON - 1)
    rig.submit(one, mail)
    rig.tick()
    assert rig.running() == [one.id]
    rig = Rig(Limits(9))
    db = replace(backup("db", job="other"), due=NOON - 2, not_before=NOON - 2)
    rig.submit(db)
    rig.tick()
    rig.submit(one)
    rig.tick()
    assert (rig.running(), rig.waiting()) == ([db.id], [one.id])
    rig.end(db)
    rig.tick()
    assert rig.running() == [one.id]
    rig.submit(backup("web1", job="other"))
    rig.tick()
    assert len(rig.running()) == 1


def ended(outcome: Outcome) -> Run:
    request = group()
    return Run(request.id, request, NOON, finished=NOON + 5, outcome=outcome)


def test_each_guest_has_its_own_outcome() -> None:
    """Of the one document."""
    warned = {**POINT, "domain": "web2", "status": "warning", "warnings": ["the group is not whole: web1 failed"]}
    document = {"points": [{**POINT, "status": "success"}, warned], "failed": [FAILED]}
    run = ended(verdict(Outcome(Status.WARNING, 3, "warned", document=document)))
    db, web1, web2 = parts_of_run(run)
    assert [part.id for part in (db, web1, web2)] == [f"{run.id}-{n}" for n in (1, 2, 3)]
    assert [part.request.work.domain for part in (db, web1, web2)] == ["db", "web1", "web2"]
    assert db.outcome == Outcome(Status.SUCCESS, 0, document={"points": [document["points"][0]]})
    assert web1.outcome == Outcome(Status.FAILED, 1, "it is off", "start it", "hypervisor")
    assert web2.outcome
    assert (web2.outcome.status, web2.outcome.error) == (Status.WARNING, "the group is not whole: web1 failed")
    assert run.outcome
    assert (run.outcome.status, run.outcome.retriable) == (Status.FAILED, True)
    assert run.outcome.error == "the group is not whole: web1 failed: it is off"


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_what_ends_all_ends_each(status: Status) -> None:
    """Killed, cancelled: nothing is known of a guest."""
    outcome = Outcome(status, None, "killed", kind="killed")
    assert [part.outcome for part in parts_of_run(ended(verdict(outcome)))] == [outcome] * 3


def test_progress_is_of_the_guest_that_is_read() -> None:
    (run,) = runs(group())
    run = replace(run, progress=Progress("web1", 5, 10))
    assert [part.progress.done_bytes for part in parts_of_run(run)] == [0, 5, 0]


def test_its_parts_lead_back_to_it() -> None:
    request = group()
    assert {whole(part.id) for part in parts_of_request(request)} == {request.id}
    alone = backup("db")
    assert parts_of_request(alone) == [alone]
    assert whole(alone.id) == alone.id


def test_history_is_told_of_each_and_the_firing_of_one() -> None:
    """Points of those that are good are known at once, though the group failed."""
    parts = Parts()
    told: Any = parts
    follower = Follower(lambda: CONFIG, told, told, told, parts.submitted.append, parts.looked.append, lambda: None)
    document = {"points": [{**POINT, "status": "success"}], "failed": [FAILED, {**FAILED, "domain": "web2"}]}
    run = ended(verdict(Outcome(Status.WARNING, 3, document=document)))
    follower.started(replace(run, outcome=None, finished=None))
    follower.ended(run, None)
    assert parts.names() == ["start"] * 3 + ["end", "add_point", "end", "end", "ended"]
    assert parts.told[-1][1] is run
