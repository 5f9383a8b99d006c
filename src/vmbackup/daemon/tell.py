"""How the world is told: dead-man's switches, and the operator's own program on failure."""

import contextlib
import http.client
import json
import logging
import queue
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vmbackup.config.models import Job
from vmbackup.daemon.group import parts_of_run
from vmbackup.daemon.work import Request, Run, Status, moment

_PING_SECONDS = 10.0
_PING_TRIES = 3
_HOOK_SECONDS = 60.0
_THREADS = 2
_WAITING = 200  # pings and hooks that may wait for their turn: more are told of, not kept
_log = logging.getLogger("vmbackup.daemon.tell")


@dataclass
class _Firing:
    """What is still to come of one firing of a job."""

    open: set[str] = field(default_factory=set)  # ids of requests
    good: int = 0
    bad: int = 0
    undecided: int = 0


class Teller:
    """Sends pings and starts hooks, in threads of its own, so that none of them delays a backup."""

    def __init__(self, get: Callable[[str], None] | None = None) -> None:
        self._get = get or fetch
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._threads = [threading.Thread(target=self._work, name="tell", daemon=True) for _ in range(_THREADS)]
        for thread in self._threads:
            thread.start()
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
        self._close(failed, None, None, counts=False)

    def dropped(self, request: Request, job: Job | None) -> None:
        """It came to no run, and nobody can say whether its guest is backed up: its former run goes on, say."""
        self._close(request, job, None)

    def missed(self, request: Request, job: Job | None) -> None:
        """It came to no run, and never will: an operator took it out, or the next firing took its place."""
        self._close(request, job, good=False)

    def ended(self, run: Run, job: Job | None) -> None:
        """A run has ended for good."""
        status = run.outcome.status if run.outcome else Status.FAILED
        good = status in (Status.SUCCESS, Status.WARNING)
        for part in parts_of_run(run):
            if part.outcome and part.outcome.status is Status.FAILED and job and job.on_failure:
                self._do(partial(_hook, job.on_failure, run_document(part)))
        self._close(run.request, job, good=good)

    def _close(self, request: Request, job: Job | None, good: bool | None, *, counts: bool = True) -> None:
        with self._lock:
            firing = self._firings.get(request.firing or "")
            if firing is None or request.id not in firing.open:
                return
            firing.open.discard(request.id)
            firing.good += counts and good is True
            firing.bad += counts and good is False
            firing.undecided += counts and good is None
            if firing.open:
                return
            del self._firings[request.firing or ""]
        if job is None or job.ping_url is None:
            return
        if firing.bad:
            self._do(partial(self._ping, job.ping_failure_url or f"{job.ping_url.rstrip('/')}/fail"))
        elif firing.good and not firing.undecided:
            self._do(partial(self._ping, job.ping_url))

    def _ping(self, url: str) -> None:
        for attempt in range(1, _PING_TRIES + 1):
            try:
                self._get(url)
            except (OSError, ValueError, http.client.HTTPException) as error:
                told = getattr(error, "reason", None) or type(error).__name__
                _log.warning("ping %s (attempt %d of %d): %s", _without_secret(url), attempt, _PING_TRIES, told)
            else:
                return

    def _do(self, call: Callable[[], None]) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            _log.error("%d pings and hooks wait already: one is left out", _WAITING)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                _log.exception("telling failed")

    def close(self, within: float = 0.0) -> None:
        """Begins nothing more; what has begun gets so many seconds, and is not waited for beyond."""
        with contextlib.suppress(queue.Empty):
            while within == 0.0:
                self._calls.get_nowait()
        for _ in self._threads:
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(None)
        for thread in self._threads:
            thread.join(within)


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
