"""Dead-man's switches and hooks: one ping a firing, when its last guest has ended; a hook for what failed for good."""

from __future__ import annotations

import http.client
import json
import logging
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.unit.daemon.rig import NOON
from vmbackup.config.models import Job
from vmbackup.daemon.tell import Teller
from vmbackup.daemon.work import Kind, Outcome, Request, Run, Status, Trigger, Work

URL = "https://hc.example.org/secret-uuid"


class Pings:
    """Collects what is fetched; `wait` for so many."""

    def __init__(self, failures: int = 0, error: Exception | None = None) -> None:
        self._error = error or OSError("no route")
        self.urls: list[str] = []
        self._failures = failures
        self._more = threading.Semaphore(0)

    def __call__(self, url: str) -> None:
        self.urls.append(url)
        self._more.release()
        if self._failures:
            self._failures -= 1
            raise self._error

    def wait(self, number: int) -> list[str]:
        for _ in range(number):
            assert self._more.acquire(timeout=60)
        return self.urls


def job(**keys: object) -> Job:
    return Job.model_validate({"domains": ["*"], "ping_url": URL, **keys})


def asked(*domains: str, firing: str | None = "f1") -> list[Request]:
    works = [Work(Kind.BACKUP, "local", "nightly", domain) for domain in domains]
    return [Request(work, Trigger.SCHEDULE, NOON, NOON, firing=firing) for work in works]


def ended(request: Request, status: Status = Status.SUCCESS) -> Run:
    error = None if status is Status.SUCCESS else "scratch space ran full"
    return Run(request.id, request, NOON, finished=NOON + 5, outcome=Outcome(status, 0, error))


def finish(teller: Teller) -> None:
    """Waits for all that was asked for."""
    teller.close(10)


def test_a_firing_is_told_of_when_its_last_guest_has_ended() -> None:
    pings = Pings()
    teller = Teller(pings)
    web, db = asked("web", "db")
    teller.expects([web, db])
    teller.ended(ended(web), job())
    assert pings.urls == []
    teller.ended(ended(db, Status.WARNING), job())
    assert pings.wait(1) == [URL]
    finish(teller)
    assert pings.urls == [URL]


@pytest.mark.parametrize(
    ("keys", "url"), [({}, f"{URL}/fail"), ({"ping_failure_url": "https://x.example.org/down"}, "https://x.example.org/down")]
)
def test_one_that_failed_makes_the_firing_a_failure(keys: dict[str, object], url: str) -> None:
    pings = Pings()
    teller = Teller(pings)
    web, db = asked("web", "db")
    teller.expects([web, db])
    teller.ended(ended(web, Status.FAILED), job(**keys))
    teller.ended(ended(db), job(**keys))
    assert pings.wait(1) == [url]
    finish(teller)
    assert pings.urls == [url]


def test_a_retry_that_succeeds_makes_it_good() -> None:
    pings = Pings()
    teller = Teller(pings)
    web, again = asked("web", "web")
    teller.expects([web])
    teller.again(again, web)
    teller.ended(ended(again), job())
    assert pings.wait(1) == [URL]
    finish(teller)


def test_a_firing_that_made_no_run_is_not_told_of() -> None:
    """Neither good nor bad: the switch goes off by itself if that goes on."""
    pings = Pings()
    teller = Teller(pings)
    requests = asked("web", "db")
    teller.expects(requests)
    for request in requests:
        teller.dropped(request, job())
    finish(teller)
    assert pings.urls == []


def test_a_guest_that_had_no_turn_keeps_the_firing_from_being_good() -> None:
    """Its former run goes on, and nobody knows yet how that ends."""
    pings = Pings()
    teller = Teller(pings)
    web, db = asked("web", "db")
    teller.expects([web, db])
    teller.ended(ended(web), job())
    teller.dropped(db, job())
    finish(teller)
    assert pings.urls == []


def test_a_request_that_was_taken_out_makes_it_a_failure() -> None:
    pings = Pings()
    teller = Teller(pings)
    web, db = asked("web", "db")
    teller.expects([web, db])
    teller.ended(ended(web), job())
    teller.missed(db, job())
    finish(teller)
    assert pings.urls == [f"{URL}/fail"]


def test_the_end_of_the_service_waits_for_no_hook() -> None:
    started = time.monotonic()
    teller = Teller(Pings())
    (web,) = asked("web")
    teller.ended(ended(web, Status.FAILED), job(on_failure=[sys.executable, "-c", "import time; time.sleep(20)"]))
    teller.close()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("error", [OSError("no route"), http.client.BadStatusLine("SSH-2.0")])
def test_a_ping_is_tried_three_times_and_its_address_is_no_secret_told(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    pings = Pings(failures=5, error=error)
    teller = Teller(pings)
    (web,) = asked("web")
    teller.expects([web])
    with caplog.at_level(logging.WARNING, "vmbackup.daemon"):
        logging.getLogger("vmbackup").propagate = True
        teller.ended(ended(web), job())
        pings.wait(3)
        finish(teller)
    assert pings.urls == [URL] * 3
    assert "hc.example.org" in caplog.text
    assert "secret-uuid" not in caplog.text


def test_the_hook_gets_the_run_as_json(tmp_path: Path) -> None:
    """Once, for a run that failed for good; not for one that succeeded, or that an operator ended."""
    written = tmp_path / "got"
    script = f"import sys; open({str(written)!r}, 'a').write(sys.stdin.read() + '\\n')"
    hook = job(on_failure=[sys.executable, "-c", script])
    teller = Teller(Pings())
    web, db = asked("web", "db", firing=None)
    teller.ended(ended(db), hook)
    teller.ended(ended(db, Status.CANCELLED), hook)
    teller.ended(ended(web, Status.FAILED), hook)
    finish(teller)
    (line,) = written.read_text().splitlines()
    told = json.loads(line)
    assert told["domain"] == "web"
    assert told["status"] == "failed"
    assert told["error"] == "scratch space ran full"
    assert told["due"].startswith("20")
