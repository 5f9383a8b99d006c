"""What the configuration asks of the service: firings of schedules, the guests of jobs, requests for work."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import tzinfo
from zoneinfo import ZoneInfo

from vmbackup.config.models import Config, Job
from vmbackup.daemon.timetable import next_run, offset
from vmbackup.daemon.work import Kind, Request, Trigger, Work

STORE_RETRIES = 2
_STORE_RETRY = 900.0  # seconds: a provider's trouble lasts longer than a guest's


@dataclass(frozen=True)
class Firing:
    """A schedule: of a job (backup, drill) or of a repository (prune, verify), by their names."""

    kind: Kind
    name: str
    schedule: str
    zone: tzinfo

    @property
    def id(self) -> str:
        """Its name among all."""
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True)
class Guest:
    """A domain under one job; `repository` is where it is backed up to."""

    domain: str
    job: str
    repository: str


def firings(config: Config) -> dict[str, Firing]:
    """All schedules, by id."""
    return {firing.id: firing for firing in _firings(config)}


def _firings(config: Config) -> Iterator[Firing]:
    for name, job in config.jobs.items():
        if job.schedule:
            yield Firing(Kind.BACKUP, name, job.schedule, _zone(job.timezone))
        if job.drill:
            yield Firing(Kind.DRILL, name, job.drill.schedule, _zone(job.timezone))
    for name, repository in config.repositories.items():
        for kind, own in ((Kind.PRUNE, repository.prune), (Kind.VERIFY, repository.verify)):
            if own:
                yield Firing(kind, name, own.schedule, _zone(own.timezone))


def _zone(name: str | None) -> tzinfo:
    """The time zone of that name, this machine's for None."""
    if name:
        return ZoneInfo(name)
    from vmbackup.config.zones import local_zone

    return local_zone()


def guests(config: Config, domains: Iterable[str]) -> list[Guest]:
    """Each of the domains under each job that means it."""
    known = list(domains)
    return [
        Guest(domain, name, config.repository_of(job))
        for name, job in config.jobs.items()
        for domain in known
        if job.means(domain)
    ]


def unprotected(config: Config, domains: Iterable[str]) -> list[str]:
    """The domains that no job with a schedule means."""
    scheduled = [job for job in config.jobs.values() if job.schedule]
    return [domain for domain in domains if not any(job.means(domain) for job in scheduled)]


def seconds_off(job: str, domain: str, settings: Job) -> float:
    """How long after its job's firing a domain starts: always the same, and for all of a group."""
    whose = "" if settings.consistency_group else domain
    return offset(job, whose, settings.window.total_seconds()) if settings.window else 0.0


def backup_request(
    config: Config,
    guest: Guest,
    trigger: Trigger,
    due: float,
    *,
    last_success: float = 0.0,
    firing: str | None = None,
    full: bool = False,
) -> Request:
    """A restore point of a guest. All but an operator's wait for its moment in the job's window."""
    job = config.jobs[guest.job]
    wait = seconds_off(guest.job, guest.domain, job) if trigger is not Trigger.MANUAL else 0.0
    promise = _promise(job, last_success)
    return _request(job, backup_work(guest), trigger, due, due + wait, promise=promise, firing=firing, full=full)


def backup_work(guest: Guest) -> Work:
    """The backup of a guest."""
    return Work(Kind.BACKUP, guest.repository, guest.job, guest.domain)


def copy_requests(config: Config, guest: Guest, now: float) -> list[Request]:
    """The copies that follow a backup."""
    job = config.jobs[guest.job]
    works = [Work(Kind.COPY, guest.repository, guest.job, guest.domain, target) for target in job.copy_to]
    return [_request(job, work, Trigger.FOLLOW, now, now) for work in works]


def drill_request(config: Config, guest: Guest, trigger: Trigger, due: float) -> Request:
    """A drill of a guest's newest restore point."""
    job = config.jobs[guest.job]
    return _request(job, Work(Kind.DRILL, guest.repository, guest.job, guest.domain), trigger, due, due)


def repository_request(kind: Kind, name: str, trigger: Trigger, due: float) -> Request:
    """Work on a repository itself; a store that was out of reach is tried again while that may help."""
    return Request(Work(kind, name), trigger, due, due, retries=STORE_RETRIES, retry_after=_STORE_RETRY)


def next_start(config: Config, guest: Guest, firing: Firing, now: float) -> float:
    """When the run of the guest's next firing may start; 0 for never. That of the last firing waits in the queue."""
    due = next_run(firing.schedule, firing.zone, now)
    return due + seconds_off(guest.job, guest.domain, config.jobs[guest.job]) if due is not None else 0.0


def _request(
    job: Job,
    work: Work,
    trigger: Trigger,
    due: float,
    not_before: float,
    *,
    promise: float | None = None,
    firing: str | None = None,
    full: bool = False,
) -> Request:
    return Request(
        work,
        trigger,
        due,
        not_before,
        promise=promise,
        deadline=job.deadline.total_seconds() if job.deadline else None,
        retries=job.retries,
        retry_after=job.retry_after.total_seconds(),
        firing=firing,
        full=full,
    )


def _promise(job: Job, last_success: float) -> float | None:
    """When the guest's promise breaks; one without a restore point has broken it long ago."""
    return last_success + job.max_age.total_seconds() if job.max_age else None
