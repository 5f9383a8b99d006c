"""What came due while the service was down: asked for once, by what the repositories say."""

from collections.abc import Iterator

from vmbackup.config.models import Config
from vmbackup.daemon import plan
from vmbackup.daemon.history import History
from vmbackup.daemon.outlook import Outlook
from vmbackup.daemon.plan import Firing, Guest
from vmbackup.daemon.timetable import last_due
from vmbackup.daemon.work import DIED, STOPPED, Kind, Request, Trigger


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
    since = last.started if last else alive
    due = last_due(firing.schedule, firing.zone, 0.0, since, now) if since else None
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
    seen = outlook.seen(guest.repository, guest.domain)
    point = seen.last if seen else 0.0
    backup = firings.get(f"{Kind.BACKUP}/{guest.job}")
    wait = plan.seconds_off(guest.job, guest.domain, config.jobs[guest.job])
    since = max(point, _tried(history, Kind.BACKUP, guest)) or (alive and alive - wait)
    due = last_due(backup.schedule, backup.zone, 0.0, since, now) if backup and since else None
    if due is not None:
        yield plan.backup_request(config, guest, Trigger.CATCH_UP, due, last_success=point)
    drill = firings.get(f"{Kind.DRILL}/{guest.job}")
    since = _tried(history, Kind.DRILL, guest) or alive
    due = last_due(drill.schedule, drill.zone, 0.0, since, now) if drill and since else None
    if due is not None:
        yield plan.drill_request(config, guest, Trigger.CATCH_UP, due)


def _tried(history: History, kind: Kind, guest: Guest) -> float:
    """When it was tried last, other than by a run that ended with the service; 0 for never."""
    last = history.last(kind, guest.job, guest.domain, guest.repository)
    return last.started if last and last.error not in (STOPPED, DIED) else 0.0
