"""The service for real: real libvirt, real runs; what it does on schedule, on signals, and after it was killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import Workhorse
from tests.lab.service import Service, make_service
from vmbackup.daemon.timetable import offset

pytestmark = pytest.mark.real

Make = Callable[..., Workhorse]


def job(*domains: str, schedule: str = "@every 3s", more: str = "") -> str:
    names = ", ".join(f'"{name}"' for name in domains)
    return f'[jobs.nightly]\ndomains = [{names}]\nschedule = "{schedule}"\nmax_age = "1h"\n{more}\n'


def guest(service: Service, domain: str) -> dict[str, Any]:
    found: dict[str, Any] = next(g for g in service.status()["guests"] if g["domain"] == domain)
    return found


def fill(horse: Workhorse) -> None:
    """Data that takes a while to read at a low rate."""
    for at in range(0, 24 << 20, 4 << 20):
        horse.write_data("vda", at, os.urandom(4 << 20))


def has_job(horse: Workhorse) -> bool:
    return bool(horse.domain.jobInfo()[0])


def metric(text: str, name: str, **labels: str) -> float:
    """The value of the one series of that name with these labels among its own."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
            found.append(float(match[2]))
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_guests_are_backed_up_by_schedule(make_domain: Make, work_dir: Path) -> None:
    """Every few seconds; the second point is incremental; metrics and status say so."""
    horse, other = make_domain(), make_domain()
    with make_service(work_dir, job(horse.name, more="window = '2s'")) as service:
        first = service.wait_for(lambda: guest(service, horse.name)["last_point"], 60)
        second = service.wait_for(
            lambda: (guest(service, horse.name)["last_point"] not in (first, None)) and guest(service, horse.name), 60
        )
        assert second["promise"] == "kept"
        assert other.name in service.status()["unprotected"]
        text = service.metrics()
        labels = {"domain": horse.name, "job_name": "nightly", "repository": "local"}
        assert abs(metric(text, "vmbackup_last_success_timestamp_seconds", **labels) - time.time()) < 60
        assert metric(text, "vmbackup_runs_total", status="success", **labels) >= 1
        assert metric(text, "vmbackup_domain_protected", domain=horse.name) == 1
        assert metric(text, "vmbackup_domain_protected", domain=other.name) == 0
        assert metric(text, "vmbackup_repository_up", repository="local") == 1
        assert service.stop() == 0
    assert "error" not in service.log.read_text().lower()


def test_the_first_scrape_after_a_restart_is_right_though_all_state_is_gone(make_domain: Make, work_dir: Path) -> None:
    horse = make_domain()
    with make_service(work_dir, job(horse.name, schedule="@yearly")) as service:
        service.ask("POST", "/run", {"job": "nightly"})
        last = service.wait_for(lambda: guest(service, horse.name)["last_success"], 60)
    for file in (work_dir / "state").glob("history*"):
        file.unlink()
    with service:
        assert guest(service, horse.name)["last_success"] == last
        labels = {"domain": horse.name, "job_name": "nightly", "repository": "local"}
        assert metric(service.metrics(), "vmbackup_last_success_timestamp_seconds", **labels) > 0


def test_a_bad_configuration_keeps_the_old_one_and_says_why(make_domain: Make, work_dir: Path) -> None:
    horse = make_domain()
    with make_service(work_dir, job(horse.name, schedule="@yearly")) as service:
        good = service.config.read_text()
        service.config.write_text(good.replace("max_age", "max_agee"))
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        error = service.wait_for(lambda: service.status()["config_error"], 60)
        assert 'did you mean "max_age"?' in error or "max_agee" in error
        assert guest(service, horse.name)["max_age"] == 3600
        assert metric(service.metrics(), "vmbackup_config_last_reload_successful") == 0
        service.config.write_text(good.replace('"1h"', '"2h"'))
        assert "error" not in service.ask("POST", "/reload")
        assert guest(service, horse.name)["max_age"] == 7200
        assert metric(service.metrics(), "vmbackup_config_last_reload_successful") == 1
        assert metric(service.metrics(), "vmbackup_max_age_seconds", domain=horse.name) == 7200


def test_sigterm_ends_a_run_cleanly(make_domain: Make, work_dir: Path) -> None:
    """Within a minute: no job, no scratch file, no open session; the next start backs up again."""
    horse = make_domain()
    limited = job(horse.name, schedule="@yearly", more='bandwidth_limit = "1MiB/s"')
    with make_service(work_dir, limited) as service:
        fill(horse)
        service.ask("POST", "/run", {"job": "nightly"})
        service.wait_for(lambda: [r for r in service.status()["runs"] if r["progress"]["done_bytes"]], 60)
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 60
    assert not has_job(horse)
    assert list((work_dir / "scratch").iterdir()) == []
    service.config.write_text(service.config.read_text().replace('bandwidth_limit = "1MiB/s"', ""))
    with service:
        service.ask("POST", "/run", {"job": "nightly"})
        service.wait_for(lambda: guest(service, horse.name)["last_point"], 60)


def test_after_kill_9_the_next_start_puts_all_right(make_domain: Make, work_dir: Path) -> None:
    """The service and its run are killed in the middle: the stale job is gone before anything is scheduled."""
    horse = make_domain()
    limited = job(horse.name, schedule="@yearly", more='bandwidth_limit = "1MiB/s"')
    with make_service(work_dir, limited) as service:
        fill(horse)
        service.ask("POST", "/run", {"job": "nightly"})
        run = service.wait_for(lambda: [r for r in service.status()["runs"] if r["progress"]["done_bytes"]], 60)[0]
        assert service.process is not None
        children = subprocess.run(
            ["pgrep", "-P", str(service.process.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # a run that saw the service die would put things right itself
            for pid in (service.process.pid, *map(int, children)):
                os.kill(pid, number)
        service.process.wait()
        assert has_job(horse)
        service.start()
        assert not has_job(horse)
        history = service.ask("GET", "/runs")["runs"]
        assert [(r["id"], r["status"]) for r in history][:1] == [(run["id"], "failed")]
        assert list((work_dir / "scratch").iterdir()) == []


def test_an_operator_cancels_a_run(make_domain: Make, work_dir: Path) -> None:
    horse = make_domain()
    limited = job(horse.name, schedule="@yearly", more='bandwidth_limit = "1MiB/s"\nretries = 5\nretry_after = "1s"')
    with make_service(work_dir, limited) as service:
        fill(horse)
        (run,) = service.ask("POST", "/run", {"job": "nightly"})["requests"]
        service.wait_for(lambda: [r for r in service.status()["runs"] if r["progress"]["done_bytes"]], 60)
        service.ask("POST", "/cancel", {"run": run[:6]})
        ended = service.wait_for(lambda: guest(service, horse.name)["last_run"], 60)
        assert ended["status"] == "cancelled"
        assert service.status()["runs"] == []
        assert not has_job(horse)


def test_what_came_due_while_it_was_down_is_caught_up_once(make_domain: Make, work_dir: Path) -> None:
    horse = make_domain()
    with make_service(work_dir, job(horse.name, schedule="@yearly")) as service:
        service.ask("POST", "/run", {"job": "nightly"})
        first = service.wait_for(lambda: guest(service, horse.name)["last_point"], 60)
    every = 10
    text = service.config.read_text().replace("@yearly", f"@every {every}s")
    service.config.write_text(text)
    time.sleep(max(0.0, every - time.time() % every + 1))  # a firing passes while nobody is there
    with service:
        service.wait_for(lambda: guest(service, horse.name)["last_point"] != first, 60)
        triggers = [r["trigger"] for r in service.ask("GET", "/runs")["runs"]]
        assert triggers.count("catch-up") == 1


def test_what_waits_for_a_job_that_was_renamed_waits_for_its_heir(make_domain: Make, work_dir: Path) -> None:
    """A reload between the firing and the guest's moment in the window loses no run."""
    horse = make_domain()
    late = next(name for name in map("nightly-{}".format, count()) if offset(name, horse.name, 30) > 22)
    jobs = job(horse.name, schedule="@every 30s", more='window = "30s"').replace("nightly", late)
    with make_service(work_dir, jobs) as service:
        service.wait_for(lambda: guest(service, horse.name)["queued"], 60)
        (before,) = service.status()["runs"]
        text = service.config.read_text()
        service.config.write_text(text.replace(f"[jobs.{late}]", "[jobs.renamed]").replace("@every 30s", "@yearly"))
        assert "error" not in service.ask("POST", "/reload")
        after = service.wait_for(lambda: [r for r in service.status()["runs"] if r["job"] == "renamed"], 60)
        assert [(run["domain"], run["not_before"]) for run in after] == [(horse.name, before["not_before"])]
        assert len(service.status()["runs"]) == 1
        service.ask("POST", "/run", {"job": "renamed"})  # an operator need not wait for the moment
        service.wait_for(lambda: guest(service, horse.name)["last_point"], 60)
