"""What follows from runs: history, restore points known at once, copies, looks at repositories, and telling."""

import logging
from collections.abc import Callable
from typing import Any

from vmbackup.config.models import Config, Job
from vmbackup.daemon import plan
from vmbackup.daemon.group import parts_of_request, parts_of_run
from vmbackup.daemon.history import History
from vmbackup.daemon.outlook import Outlook
from vmbackup.daemon.plan import Guest
from vmbackup.daemon.tell import Teller
from vmbackup.daemon.work import STOPPED, SUPERSEDED, Kind, Request, Run, Skip, Status, Trigger, Work

_log = logging.getLogger("vmbackup.daemon")


class Follower:
    """The dispatcher's listener.

    `submit` asks for further work, `look` for a look at a repository, soon; `changed` is told that there is news.
    """

    def __init__(
        self,
        config: Callable[[], Config],
        history: History,
        outlook: Outlook,
        teller: Teller,
        submit: Callable[[Request], object],
        look: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self._config, self._history, self._outlook, self._teller = config, history, outlook, teller
        self._submit, self._look, self._changed = submit, look, changed
        self._again: set[Work] = set()  # copies that were asked for while the same copy went on

    def started(self, run: Run) -> None:
        """A process was started."""
        for part in parts_of_run(run):
            self._history.start(part)
        self._changed()
        _log.info("run=%s started %s", run.id, _named(run.request))

    def progressed(self, run: Run) -> None:
        """It is shown, not kept."""

    def ended(self, run: Run, retry: Request | None) -> None:
        """It has ended; `retry` is what tries again."""
        for part in parts_of_run(run):
            self._history.end(part)
            _log_end(part, retry if part.outcome and part.outcome.status is Status.FAILED else None)
            if part.outcome and part.outcome.status in (Status.SUCCESS, Status.WARNING):
                self._succeeded(part)
        if run.request.work in self._again:
            self._again.discard(run.request.work)
            self._copy(run)
        self._changed()  # whoever looks after this sees what follows, too
        if retry:
            self._teller.again(retry, run.request)
        elif run.outcome and run.outcome.error == STOPPED:  # the next start does it
            self._teller.dropped(run.request, self._job(run.request))
        else:
            self._teller.ended(run, self._job(run.request))

    def skipped(self, request: Request, skip: Skip) -> None:
        """It comes to no run. A copy does later: the one that goes on began before there was what it is to copy."""
        if request.work.kind is Kind.COPY and skip is Skip.RUNNING:
            self._again.add(request.work)
            return
        for part in parts_of_request(request):
            self._history.skip(part.work, skip)
        self._changed()
        self._teller.dropped(request, self._job(request))
        _log.warning("skipped %s: %s", _named(request), skip.value.replace("_", " "))

    def dropped(self, request: Request, why: str) -> None:
        """It was taken out of the queue."""
        self._changed()
        if why == SUPERSEDED and request.trigger is not Trigger.RETRY:  # an operator has it done now
            self._teller.dropped(request, self._job(request))
        else:
            self._teller.missed(request, self._job(request))
        _log.info("dropped %s: %s", _named(request), why)

    def _succeeded(self, run: Run) -> None:
        work = run.request.work
        if work.kind is Kind.BACKUP:
            for point in _points(run):
                self._outlook.add_point(work.repository, point)
            self._copy(run)
        elif work.kind is Kind.COPY and work.target:
            self._look(work.target)
        elif work.kind is Kind.DRILL:
            self._look(work.repository)
        elif work.kind in (Kind.PRUNE, Kind.VERIFY):
            self._outlook.forget_sizes(work.repository)
            self._look(work.repository)

    def _copy(self, run: Run) -> None:
        work, config = run.request.work, self._config()
        if work.job in config.jobs and work.domain:
            guest = Guest(work.domain, work.job or "", work.repository)
            for request in plan.copy_requests(config, guest, run.finished or run.started):
                self._submit(request)

    def _job(self, request: Request) -> Job | None:
        return self._config().jobs.get(request.work.job or "")


def _points(run: Run) -> list[dict[str, Any]]:
    return list(run.outcome.document.get("points", [])) if run.outcome else []


def _named(request: Request) -> str:
    """The work in words of a log line."""
    work = request.work
    words = [("kind", work.kind.value), ("job", work.job), ("domain", work.domain), ("repository", work.repository)]
    words += [("guests", ",".join(work.members)), ("target", work.target), ("trigger", request.trigger.value)]
    return " ".join(f"{name}={value}" for name, value in words if value)


def _log_end(run: Run, retry: Request | None) -> None:
    outcome = run.outcome
    if outcome is None:
        return
    took = (run.finished or run.started) - run.started
    level = {Status.SUCCESS: logging.INFO, Status.FAILED: logging.ERROR}.get(outcome.status, logging.WARNING)
    told = f": {outcome.error}" if outcome.error else ""
    again = f"; attempt {retry.attempt} follows" if retry else ""
    _log.log(
        level, "run=%s %s %s seconds=%.1f%s%s", run.id, outcome.status.value, _named(run.request), took, told, again
    )
