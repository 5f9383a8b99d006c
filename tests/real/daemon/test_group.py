"""A group in the service: one run, each of its guests told of by itself; one that is busy lets all be tried again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.service import Service, make_service

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]
JOB = """
[jobs.crm]
domains = ["{one}", "{other}"]
consistency_group = true
retries = 1
retry_after = "1s"
max_age = "1h"
"""


def ended(service: Service) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.ask("GET", "/runs?limit=50")["runs"]
    return found


def group_of(service: Service, run: dict[str, Any]) -> dict[str, Any]:
    assert run["points"], run
    found: dict[str, Any] = run["points"][0]
    return found


def test_a_group_is_cancelled_by_its_own_id(make_domain: Callable[..., Workhorse], work_dir: Path) -> None:
    """While its guests are read: nothing is left of either, and nothing is tried again."""
    one, other = (make_domain(Disk(size=16 * MiB)) for _ in range(2))
    for horse in (one, other):
        for block in range(16):
            horse.write_data("vda", block * MiB, os.urandom(MiB))
    text = JOB.format(one=one.name, other=other.name) + 'bandwidth_limit = "1MiB/s"\n'
    with make_service(work_dir, text) as service:
        ids = service.ask("POST", "/run", {"job": "crm", "domains": [], "full": False})["requests"]
        service.wait_for(lambda: [r for r in service.status()["runs"] if r["progress"]["done_bytes"]], 60)
        told = service.ask("POST", "/cancel", {"run": ids[0].partition("-")[0]})
        assert [run["id"] for run in told["runs"]] == ids
        service.wait_for(lambda: len(ended(service)) == 2, 60)
        assert {(run["id"], run["status"]) for run in ended(service)} == {(id_, "cancelled") for id_ in ids}
        assert service.status()["runs"] == []
        for horse in (one, other):
            assert horse.checkpoints() == []
            assert horse.domain.jobInfo()[0] == 0
    assert list((work_dir / "scratch").iterdir()) == []


def test_a_group(make_domain: Callable[..., Workhorse], work_dir: Path) -> None:
    """Asked for with one word, with one turn for all; the lock of one is held at first, and the retry is whole."""
    horses = [make_domain(Disk(size=MiB)) for _ in range(2)]
    one, other = horses
    text = JOB.format(one=one.name, other=other.name)
    with make_service(work_dir, text, "max_parallel_domains = 1") as service:
        ids = service.ask("POST", "/run", {"job": "crm", "domains": [], "full": False})["requests"]
        assert [each.partition("-")[2] for each in ids] == ["1", "2"]
        service.wait_for(lambda: len(ended(service)) == 2, 120)
        runs = {run["domain"]: run for run in ended(service)}
        assert {run["status"] for run in runs.values()} == {"success"}, runs
        assert {run["id"] for run in runs.values()} == set(ids)
        assert len({group_of(service, run)["time"] for run in runs.values()}) == 1
        locks = next(work_dir.rglob("locks"))
        with (locks / f"{other.uuid}.lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            service.ask("POST", "/run", {"job": "crm", "domains": [], "full": False})
            service.wait_for(lambda: len(ended(service)) == 4, 120)
        first = {run["domain"]: run for run in ended(service)[:2]}
        assert first[one.name]["status"] == "warning"
        assert f"the group is not whole: {other.name} failed" in first[one.name]["error"]
        assert (first[other.name]["status"], first[other.name]["error_kind"]) == ("failed", "job_conflict")
        service.wait_for(lambda: len(ended(service)) == 6, 120)
        assert [(run["status"], run["trigger"]) for run in ended(service)[:2]] == [("success", "retry")] * 2
