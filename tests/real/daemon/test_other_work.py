"""What the service does beside backups: copies, forget and prune, verify, drills; guests that come and go; secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.lab.domain import Workhorse
from tests.lab.service import Service, make_service
from tests.lab.tiny_system import boot_sector

pytestmark = pytest.mark.real

Make = Callable[..., Workhorse]

OFFSITE = """
[repositories.offsite]
url = "file://{folder}/offsite"
passphrase_file = "{folder}/secrets/passphrase"
"""


def jobs(name: str, schedule: str, more: str = "", after: str = "") -> str:
    return f'[jobs.nightly]\ndomains = ["{name}"]\nschedule = "{schedule}"\n{more}\n{after}\n'


def guest(service: Service, domain: str) -> dict[str, Any]:
    found: dict[str, Any] = next(g for g in service.status()["guests"] if g["domain"] == domain)
    return found


def repository(service: Service, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(r for r in service.status()["repositories"] if r["name"] == name)
    return found


def kinds(service: Service) -> list[tuple[str, str]]:
    return [(run["kind"], run["status"]) for run in service.ask("GET", "/runs?limit=200")["runs"]]


@pytest.mark.timeout(300)
def test_copies_follow_and_repositories_are_looked_after(make_domain: Make, work_dir: Path) -> None:
    """A point is copied after its backup; keep is applied, the space freed, the repository verified; all is shown."""
    horse = make_domain()
    horse.write_data("vda", 0, boot_sector("the tiny system is up"))
    after = (
        OFFSITE.format(folder=work_dir)
        + '[repositories.offsite.verify]\nschedule = "@every 7s"\nread_data = 50\nmax_age = "1h"\n'
        + '[repositories.offsite.prune]\nschedule = "@every 11s"\nmax_age = "1h"\n'
        + '[jobs.nightly.drill]\nschedule = "@every 19s"\nconsole = "tiny system"\nmax_age = "1d"\n'
    )
    more = 'copy_to = ["offsite"]\ncopy_max_age = "1h"\nkeep = { last = 2 }'
    service = make_service(work_dir, jobs(horse.name, "@every 4s", more, after), "web = true")
    program = Path(sys.executable).with_name("vmbackup")
    subprocess.run([str(program), "--config", str(service.config), "--repository", "offsite", "init"],
                   check=True, capture_output=True)  # fmt: skip
    with service:
        wanted = {(kind, "success") for kind in ("backup", "copy", "prune", "verify", "drill")}
        service.wait_for(lambda: wanted <= set(kinds(service)), 90)
        service.wait_for(lambda: guest(service, horse.name)["copies"][0]["last"], 30)
        service.wait_for(lambda: repository(service, "offsite")["last_verified"], 60)
        state = repository(service, "offsite")
        assert state["last_prune"]
        assert state["objects"]
        drill = service.wait_for(lambda: (d := guest(service, horse.name)["drill"])["boot_seconds"] and d, 30)
        assert drill["last_success"]
        picture = f"http://127.0.0.1:{service.port}/pictures/{drill['picture']}"
        with urllib.request.urlopen(picture, timeout=20) as shown:
            assert shown.read(8) == b"\x89PNG\r\n\x1a\n"
        history = work_dir / "state/history.sqlite"
        assert {status for _, status in kinds(service)} <= {"success", "warning"}, service.tail()
    history.unlink()
    with service:  # what the repository knows is known again at once
        known = [datetime.fromisoformat(told["last_success"]) for told in (drill, guest(service, horse.name)["drill"])]
        assert known[1] - known[0] > timedelta(seconds=-30)  # the run ends a moment after what it tells of
        line = rf'vmbackup_last_drill_success_timestamp_seconds\{{domain="{horse.name}".*\}} 1\.\d+e\+09'
        assert re.search(line, service.metrics())


def test_run_wait_ends_with_the_copies_and_tells_of_a_failed_one(make_domain: Make, work_dir: Path) -> None:
    """When it has ended the copy is there; one that failed makes it 3, and is named."""
    horse = make_domain()
    service = make_service(
        work_dir, jobs(horse.name, "0 3 1 1 *", 'copy_to = ["offsite"]\nretries = 0', OFFSITE.format(folder=work_dir))
    )
    program = [str(Path(sys.executable).with_name("vmbackup")), "--config", str(service.config)]

    def wait() -> tuple[int, dict[str, Any]]:
        done = subprocess.run([*program, "--json", "run", "nightly", "--wait"], capture_output=True, text=True)
        return done.returncode, json.loads(done.stdout)

    subprocess.run([*program, "--repository", "offsite", "init"], check=True, capture_output=True)
    with service:
        code, told = wait()
        assert (code, [run["status"] for run in told["copies"]]) == (0, ["success"]), told
        (work_dir / "offsite").rename(work_dir / "away")
        code, told = wait()
        assert (code, told["runs"][0]["status"]) == (3, "success"), told
        (copy,) = told["copies"]
        assert (copy["target"], copy["status"]) == ("offsite", "failed")
        assert copy["error"]


def test_guests_that_appear_are_picked_up_and_those_that_vanish_are_told(make_domain: Make, work_dir: Path) -> None:
    first = make_domain()
    text = f'[jobs.nightly]\ndomains = ["{first.name[: first.name.rindex("-")]}-*"]\nschedule = "@every 3s"\n'
    with make_service(work_dir, text) as service:
        service.wait_for(lambda: guest(service, first.name)["last_point"], 60)
        second = make_domain()
        service.wait_for(lambda: guest(service, second.name)["last_point"], 60)
        second.remove()
        gone = service.wait_for(lambda: (g := guest(service, second.name)) and not g["present"] and g, 60)
        assert gone["last_point"]
        service.wait_for(lambda: guest(service, second.name)["totals"]["skipped"].get("domain_vanished"), 60)
    assert f"domain={second.name} of job=nightly is not known to libvirt any more" in service.log.read_text()


def test_secrets_appear_nowhere(make_domain: Make, work_dir: Path) -> None:
    """Not in the log at its most talkative, nor in ps, metrics, status, history, or what a hook is told."""
    horse = make_domain()
    secret, token = "correct-horse-battery", "a-token-of-the-page-0123456789"
    heard = work_dir / "heard"
    hook = f'on_failure = ["{sys.executable}", "-c", "import sys; open(\'{heard}\', \'a\').write(sys.stdin.read())"]'
    ping = 'ping_url = "http://127.0.0.1:9/ping-secret-uuid"'
    more = f'quiesce = "required"\nretries = 0\n{ping}\n{hook}'
    (work_dir / "secrets").mkdir(mode=0o700)
    (work_dir / "secrets" / "passphrase").write_text(f"{secret}\n")
    (work_dir / "secrets" / "passphrase").chmod(0o600)
    (work_dir / "secrets" / "token").write_text(f"{token}\n")
    (work_dir / "secrets" / "token").chmod(0o600)
    daemon = f'web = true\nweb_token_file = "{work_dir}/secrets/token"'
    service = make_service(work_dir, jobs(horse.name, "@every 3s", more), daemon)
    seen = ""
    with service:
        deadline = time.monotonic() + 60
        while not heard.exists() and time.monotonic() < deadline:
            seen += subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
            seen += _environments(service)
        assert heard.exists(), service.tail()
        seen += service.metrics() + str(service.status()) + str(service.ask("GET", "/runs")) + heard.read_text()
    seen += service.log.read_text()
    for word in (secret, token, "ping-secret-uuid"):
        assert word not in seen, re.findall(f".*{word}.*", seen)[:3]
    assert "127.0.0.1" in seen


def _environments(service: Service) -> str:
    """The environment of the service and of its runs."""
    assert service.process is not None
    found = ""
    children = subprocess.run(["pgrep", "-P", str(service.process.pid)], capture_output=True, text=True, check=False)
    for pid in (str(service.process.pid), *children.stdout.split()):
        try:
            found += Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
        except OSError:  # it has ended
            continue
    return found


def test_a_second_service_is_refused(make_domain: Make, work_dir: Path) -> None:
    horse = make_domain()
    with make_service(work_dir, jobs(horse.name, "@yearly")) as service:
        program = Path(sys.executable).with_name("vmbackup")
        again = subprocess.run(
            [str(program), "--config", str(service.config), "daemon"],
            capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "NO_COLOR": "1"},
        )  # fmt: skip
        assert again.returncode == 1
        assert "another vmbackup daemon" in again.stderr
        assert service.status()["state"] == "running"
