"""What a request is in commands of vmbackup."""

from vmbackup.config.models import Config, Job
from vmbackup.daemon.work import Kind, Request, Work
from vmbackup.errors import NotFoundError

Command = tuple[str, ...]
"""Arguments of `vmbackup`, after its global options."""


def commands(config: Config, request: Request) -> list[Command]:
    """The commands of a request, to be run one after the other. NotFoundError where the configuration lacks its job."""
    work = request.work
    if work.kind is Kind.PRUNE:
        return _prune(config, work.repository)
    make = {Kind.BACKUP: _backup, Kind.COPY: _copy, Kind.VERIFY: _verify, Kind.DRILL: _drill}[work.kind]
    return [make(config, request)]


def _backup(config: Config, request: Request) -> Command:
    job = _job(config, request.work)[0]
    full = ("--full",) if request.full else ()
    domains = request.work.members or (_domain(request.work),)
    return ("backup", "--job", job, "--no-copy", *full, "--", *domains)


def _copy(_config: Config, request: Request) -> Command:
    work = request.work
    return ("copy", "--from", work.repository, "--to", work.target or "", "--", _domain(work))


def _verify(config: Config, request: Request) -> Command:
    name = request.work.repository
    settings = config.repositories[name].verify if name in config.repositories else None
    share = settings.read_data if settings else None
    return ("--repository", name, "verify", *(() if share is None else (f"--read-data={share:g}",)))


def _prune(config: Config, name: str) -> list[Command]:
    """The `keep` of each job that writes to the repository, copies too; then what no restore point needs goes."""
    jobs = [job for job, settings in config.jobs.items() if settings.keep and _writes_to(config, settings, name)]
    forgets = [("--repository", name, "forget", "--job", job) for job in jobs]
    return [*forgets, ("--repository", name, "prune")]


def _writes_to(config: Config, job: Job, name: str) -> bool:
    home = job.repository or next(iter(config.repositories), None)
    return name == home or name in job.copy_to


def _drill(config: Config, request: Request) -> Command:
    work = request.work
    return ("--repository", work.repository, "drill", "--job", _job(config, work)[0], "--", _domain(work))


def _job(config: Config, work: Work) -> tuple[str, Job]:
    if work.job not in config.jobs or work.job is None:
        raise NotFoundError(f'there is no job "{work.job}" in the configuration any more', "")
    return work.job, config.jobs[work.job]


def _domain(work: Work) -> str:
    assert work.domain is not None
    return work.domain
