"""An operator learns of a missing backup: real guests, the real service, real Prometheus and Alertmanager, a pager."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.domain import Workhorse
from tests.lab.prometheus import Monitoring, missing
from tests.lab.service import Service, make_service
from tests.lab.tiny_system import boot_sector
from tests.unit.monitoring.dashboard import queries
from vmbackup.daemon import series

pytestmark = [pytest.mark.real, pytest.mark.skipif(bool(missing()), reason=missing() or "")]

Make = Callable[..., Workhorse]
PROMISE = 20  # seconds; a run takes two on a machine with nothing else to do

JOB = """
[jobs.{name}]
domains = ["{domain}"]
schedule = "@every 2s"
max_age = "{max_age}"
quiesce = "{quiesce}"
retries = 0
"""


def jobs(strict: str, lax: str, quiesce: str) -> str:
    """Two guests, one with a promise of seconds, one of an hour."""
    return JOB.format(name="strict", domain=strict, max_age=f"{PROMISE}s", quiesce=quiesce) + JOB.format(
        name="lax", domain=lax, max_age="1h", quiesce=quiesce
    )


def set_quiesce(service: Service, old: str, new: str) -> None:
    """What an operator does: the file, then a reload."""
    text = service.config.read_text()
    service.config.write_text(text.replace(f'quiesce = "{old}"', f'quiesce = "{new}"'))
    assert "error" not in service.ask("POST", "/reload")


def test_a_broken_promise_is_told_and_so_is_its_end(make_domain: Make, work_dir: Path) -> None:
    """Each guest by its own max_age; nothing is told while all is well; the end is told after the next success."""
    strict, lax = make_domain(), make_domain()
    text = jobs(strict.name, lax.name, "auto")
    with make_service(work_dir, text) as service, Monitoring(work_dir, service.port) as monitoring:
        both = f'domain=~"{strict.name}|{lax.name}"'
        kept = f"time() - (vmbackup_last_success_timestamp_seconds{{{both}}} > 0) < 600"
        monitoring.wait_for(lambda: len(monitoring.query(kept)) == 2, "the first backups of both", 60)
        about_us = {strict.name, lax.name}
        assert {alert for alert, domain in monitoring.alerts() if domain in about_us} == set()

        set_quiesce(service, "auto", "required")  # neither guest has an agent: every run fails
        failed = {("VMBackupLastRunFailed", strict.name), ("VMBackupLastRunFailed", lax.name)}
        monitoring.wait_for(lambda: failed <= monitoring.alerts(), "the failures of both", 60)
        too_old = ("VMBackupTooOld", strict.name)
        monitoring.wait_for(lambda: too_old in monitoring.alerts(), "the broken promise", 60 + PROMISE)
        monitoring.wait_for(lambda: (*too_old, "firing") in monitoring.pager.calls, "a call", 30)
        assert ("VMBackupTooOld", lax.name) not in monitoring.alerts()
        (age,) = monitoring.query(f'time() - vmbackup_last_success_timestamp_seconds{{domain="{strict.name}"}}')
        assert float(age["value"][1]) > PROMISE
        (told, *_) = [
            text for text in monitoring.pager.texts if strict.name in text["summary"] and "old" in text["summary"]
        ]
        assert f"vmbackup run strict {strict.name}" in told["description"]

        set_quiesce(service, "required", "auto")
        monitoring.wait_for(lambda: too_old not in monitoring.alerts(), "the end of the alert", 60)
        monitoring.wait_for(lambda: (*too_old, "resolved") in monitoring.pager.calls, "the call that all is well", 30)
        monitoring.wait_for(lambda: not failed & monitoring.alerts(), "the end of the failures", 60)
        assert service.stop() == 0
        monitoring.wait_for(lambda: ("VMBackupExporterAbsent", "") in monitoring.alerts(), "the absence", 30)


ALL_WORK = """
[repositories.local.prune]
schedule = "@every 4s"
max_age = "1h"

[repositories.local.verify]
schedule = "@every 3s"
max_age = "1h"

[repositories.offsite]
url = "file://{folder}/offsite"
passphrase_file = "{folder}/secrets/passphrase"

[jobs.nightly]
domains = ["{domain}"]
schedule = "@every 5s"
max_age = "1h"
repository = "local"
copy_to = ["offsite"]
copy_max_age = "1h"

[jobs.nightly.drill]
schedule = "@every 3s"
console = "tiny system"
boot_within = "60s"
max_age = "1h"
"""


@pytest.mark.timeout(300)
def test_every_panel_of_the_dashboard_shows_something(make_domain: Make, work_dir: Path) -> None:
    """With work of each kind done, every query finds series; and every metric is scraped."""
    horse = make_domain()
    horse.write("vda", 1 << 20, 1 << 20, 0x11)
    horse.write_data("vda", 0, boot_sector("the tiny system is up"))
    jobs = ALL_WORK.format(folder=work_dir, domain=horse.name)
    service = make_service(work_dir, jobs, daemon='look_every = "2s"')
    program = [sys.executable, "-m", "vmbackup.cli", "--config", str(service.config)]
    subprocess.run([*program, "--repository", "offsite", "init"], check=True, capture_output=True)
    with service, Monitoring(work_dir, service.port) as monitoring:
        names = {metric.name for metric in series.ALL}
        monitoring.wait_for(lambda: all(monitoring.query(f"count({name})") for name in names), "all metrics", 60)
        waiting = {name: expression for name, (expression, _) in queries().items()}

        def shown() -> bool:
            horse.write_data("vda", 1 << 20, os.urandom(1 << 16))  # or there is nothing to store after the first scrape
            for name in [name for name, expression in waiting.items() if monitoring.query(expression)]:
                del waiting[name]
            return not waiting

        try:
            monitoring.wait_for(shown, "all panels", 120)
        finally:
            print("empty panels:", sorted(waiting))
        assert service.stop() == 0
