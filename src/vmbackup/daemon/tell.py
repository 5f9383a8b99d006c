"""How the world is told: dead-man's switches, and the operator's own program on failure."""

import json
import logging
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from vmbackup.config.models import Job
from vmbackup.daemon.work import Request, Run, Status, moment

_PING_SECONDS = 10.0
_PING_TRIES = 3
_HOOK_SECONDS = 60.0
_WAITING = 200  # pings and hooks that may wait for their turn: more are told of, not kept
_log = logging.getLogger("vmbackup.daemon.tell")


@dataclass
class _Firing:
    """What is still to come of one firing of a job."""

    open: set[str] = field(default_factory=set)  # ids of requests
    good: int = 0
    bad: list[str] = field(default_factory=list)  # domains


class Teller:
    """Sends pings and starts hooks, in threads of its own, so that none of them delays a backup."""

    def __init__(self, get: Callable[[str], None] | None = None) -> None:
        self._get = get or fetch
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tell")
        self._slots = threading.BoundedSemaphore(_WAITING)
        self._lock = threading.Lock()
        self._firings: dict[str, _Firing] = {}

    def expects(self, requests: Sequence[Request]) -> None:
        """These belong together: their firing is told of when the last has ended."""
        with self._lock:
            for request in requests:
                if request.firing:
                    self._firings.setdefault(request.firing, _Firing()).open.add(request.id)

    def again(self, request: Request, failed: Request) -> None:
        """`request` tries again what failed."""
        self.expects([request])
        self._close(failed, None, None)

    def dropped(self, request: Request, job: Job | None) -> None:
        """It came to no run: its domain vanished, or its former run goes on."""
        self._close(request, job, None)

    def ended(self, run: Run, job: Job | None) -> None:
        """A run has ended for good."""
        status = run.outcome.status if run.outcome else Status.FAILED
        good = status in (Status.SUCCESS, Status.WARNING)
        if status is Status.FAILED and job and job.on_failure:
            self._do(_hook, job.on_failure, run_document(run))
        self._close(run.request, job, good)

    def _close(self, request: Request, job: Job | None, good: bool | None) -> None:
        with self._lock:
            firing = self._firings.get(request.firing or "")
            if firing is None:
                return
            firing.open.discard(request.id)
            if good:
                firing.good += 1
            elif good is not None:
                firing.bad.append(request.work.domain or "")
            if firing.open:
                return
            del self._firings[request.firing or ""]
        if job and job.ping_url and firing.bad:
            self._do(self._ping, job.ping_failure_url or f"{job.ping_url.rstrip('/')}/fail")
        elif job and job.ping_url and firing.good:
            self._do(self._ping, job.ping_url)

    def _ping(self, url: str) -> None:
        for attempt in range(1, _PING_TRIES + 1):
            try:
                self._get(url)
            except (OSError, ValueError) as error:
                told = getattr(error, "reason", None) or error
                _log.warning("ping %s (attempt %d of %d): %s", _without_secret(url), attempt, _PING_TRIES, told)
            else:
                return

    def _do(self, call: Callable[..., None], *arguments: Any) -> None:
        if not self._slots.acquire(blocking=False):
            _log.error("%d pings and hooks wait already: one is left out", _WAITING)
            return

        def work() -> None:
            try:
                call(*arguments)
            except Exception:
                _log.exception("telling failed")
            finally:
                self._slots.release()

        self._pool.submit(work)

    def close(self) -> None:
        """Ends what has not begun; what has begun is bounded in time."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def fetch(url: str) -> None:
    """Gets a URL. Raises OSError, also for an answer that is no success."""
    with urllib.request.urlopen(url, timeout=_PING_SECONDS) as answer:  # noqa: S310 - the configuration allows http(s) only
        answer.read(1)


def _without_secret(url: str) -> str:
    """The host of a ping's address: the path is as good as a password."""
    return urllib.parse.urlsplit(url).hostname or "?"


def _hook(command: Sequence[str], document: Mapping[str, Any]) -> None:
    """Runs the operator's program with the document on its standard input."""
    try:
        done = subprocess.run(
            list(command),
            input=json.dumps(document),
            text=True,
            capture_output=True,
            timeout=_HOOK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        _log.warning("on_failure %s was ended after %.0f s", command[0], _HOOK_SECONDS)
    except OSError as error:
        _log.warning("on_failure %s: %s", command[0], error.strerror)
    else:
        if done.returncode:
            _log.warning("on_failure %s ended with %d: %s", command[0], done.returncode, done.stderr.strip()[-500:])


def run_document(run: Run) -> dict[str, Any]:
    """A run as JSON for hooks: names as on the control socket."""
    request, outcome = run.request, run.outcome
    work = request.work
    return {
        "run": run.id,
        "kind": work.kind.value,
        "job": work.job,
        "domain": work.domain,
        "repository": work.repository,
        "target": work.target,
        "trigger": request.trigger.value,
        "attempt": request.attempt,
        "due": moment(request.due),
        "started": moment(run.started),
        "finished": moment(run.finished),
        "status": outcome.status.value if outcome else None,
        "exit_code": outcome.exit_code if outcome else None,
        "error": outcome.error if outcome else None,
        "hint": outcome.hint if outcome else None,
    }
