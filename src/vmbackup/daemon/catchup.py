"""What came due while the service was down: asked for once, by what the repositories say."""

from collections.abc import Iterator
from dataclasses import replace

from vmbackup.config.models import Config
from vmbackup.daemon import plan
from vmbackup.daemon.history import History
from vmbackup.daemon.outlook import Outlook
from vmbackup.daemon.plan import Firing, Guest
from vmbackup.daemon.snapshot import LastRun
from vmbackup.daemon.timetable import last_due
from vmbackup.daemon.work import DIED, STOPPED, Kind, Request, Status, Trigger


def missed(config: Config, outlook: Outlook, history: History, alive: float, now: float) -> Iterator[Request]:
    """A request for each work of which at least one firing passed unseen. `alive`: the last sign of the former life.

    A guest that never had a restore point counts from then; one that neither it nor any repository has seen waits for
    its next firing.
    """
    firings = plan.firings(config)
    for firing in firings.values():
        if firing.kind in (Kind.PRUNE, Kind.VERIFY):
            yield from _of_repository(firing, history, alive, now)
    for guest in plan.guests(config, sorted(outlook.domains())):
        yield from _of_guest(config, guest, firings, outlook, history, alive, now)


def _of_repository(firing: Firing, history: History, alive: float, now: float) -> Iterator[Request]:
    last = history.last(firing.kind, None, None, firing.name)
    due = _due(firing, last, plan.STORE_RETRIES, alive, now)
    if due is not None:
        yield plan.repository_request(firing.kind, firing.name, Trigger.CATCH_UP, due)


def _of_guest(
    config: Config,
    guest: Guest,
    firings: dict[str, Firing],
    outlook: Outlook,
    history: History,
    alive: float,
    now: float,
) -> Iterator[Request]:
    place, job = (guest.job, guest.domain, guest.repository), config.jobs[guest.job]
    seen = outlook.seen(guest.repository, guest.domain)
    point = seen.last if seen else 0.0
    wait = plan.seconds_off(guest.job, guest.domain, job)
    last = history.last(Kind.BACKUP, *place)
    due = _due(firings.get(f"{Kind.BACKUP}/{guest.job}"), last, job.retries, alive and alive - wait, now, point)
    if due is not None:
        yield plan.backup_request(config, guest, Trigger.CATCH_UP, due, last_success=point)
    else:
        yield from _copies(config, guest, outlook, point, now)
    last = history.last(Kind.DRILL, *place)
    due = _due(firings.get(f"{Kind.DRILL}/{guest.job}"), last, job.retries, alive, now, seen.drilled if seen else 0.0)
    if due is not None and point:
        yield plan.drill_request(config, guest, Trigger.CATCH_UP, due)


def _due(
    firing: Firing | None, last: LastRun | None, retries: int, alive: float, now: float, point: float = 0.0
) -> float | None:
    """When it came due and was not done; None where nothing is to be made up for.

    `last`: its last run; `point`: the newest restore point, whoever made it; `alive` stands for both where there is
    neither.
    """
    if firing is None:
        return None
    if last and point < last.started and _was_cut_short(last, retries):
        return last.started
    since = max(point, last.started if last else 0.0) or alive
    return last_due(firing.schedule, firing.zone, 0.0, since, now) if since else None


def _was_cut_short(last: LastRun, retries: int) -> bool:
    """Whether it ended with the service, or failed with attempts left that the service did not live to see."""
    return last.error in (STOPPED, DIED) or (last.status == Status.FAILED and last.attempt <= retries)


def _copies(config: Config, guest: Guest, outlook: Outlook, point: float, now: float) -> Iterator[Request]:
    """Copies that did not come about: a target whose newest point is older than the guest's."""
    for request in plan.copy_requests(config, guest, now):
        there = outlook.seen(request.work.target or "", guest.domain)
        if point > (there.last if there else 0.0):
            yield replace(request, trigger=Trigger.CATCH_UP)
