"""`vmbackup drill`: restore points booted in throw-away guests, to see that they do."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State
from vmbackup.cli.output import clean, counted, say, say_json
from vmbackup.cli.turns import Turns
from vmbackup.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config, Drill
    from vmbackup.engine.drill.drill import DrillOptions, DrillReport
    from vmbackup.hypervisor import Host
    from vmbackup.progress import Progress
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList, Repository


@click.command("drill", cls=Command, short_help="Boot restore points in throw-away guests, to see that they do.")
@click.argument("domains", metavar="[DOMAIN|POINT...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="The newest point of every guest in the repository.")
@click.option("--job", metavar="NAME", help="As a job's drill says: all its guests, or those named.")
@click.option("--memory", metavar="SIZE", help="Of the throw-away guest; as much as the guest has unless told.")
@click.option("--boot-within", metavar="DURATION", help="How long it may take to answer (10m).")
@click.option("--console", metavar="REGEX", help="Booted when its console shows this, instead of its agent's answer.")
@click.pass_obj
def command(
    state: State,
    domains: tuple[str, ...],
    every: bool,
    job: str | None,
    memory: str | None,
    boot_within: str | None,
    console: str | None,
) -> int:
    """Boot the newest restore point of each DOMAIN, or POINT, in a guest with no network that is thrown away.

    It has booted when its guest agent answers. Then the checks of the job's drill are made (services, files, commands),
    a picture of its screen is taken, and what was seen is recorded in the repository. The guest itself, its disks and
    its networks are not touched.
    """
    if bool(domains or job) + every != 1:
        raise UsageError("name domains or restore points, or --all, or --job NAME", "'vmbackup list' names them")
    from vmbackup.cli import access

    config = access.load_config(state)
    given = _given(memory, boot_within, console)
    repository_name = state.repository or (_repository_of(config, job) if job else None)
    repository_name, _ = access.named_repository(config, repository_name)
    with ExitStack() as stack:
        repository = stack.enter_context(access.opened_repository(config, repository_name))
        repository.check_may_read()
        points = repository.survey()
        host = stack.enter_context(access.opened_host(config))
        progress = stack.enter_context(access.progress(state))
        run = _Run(state, config, host, repository, repository_name, job, given, progress)
        return run.drill(domains or _guests(points, config, job), points)


def _given(memory: str | None, boot_within: str | None, console: str | None) -> dict[str, Any]:
    """What the command line says, as DrillOptions takes it, checked as the configuration's is."""
    from vmbackup.config.models import check_memory, check_pattern
    from vmbackup.config.units import InvalidValue, parse_duration

    options: list[tuple[str, str, str | None, Callable[[str], Any]]] = [
        ("memory", "--memory", memory, check_memory),
        ("boot_seconds", "--boot-within", boot_within, lambda text: parse_duration(text).total_seconds()),
        ("console", "--console", console, check_pattern),
    ]
    given: dict[str, Any] = {}
    for name, option, text, parse in options:
        try:
            given |= {name: parse(text)} if text is not None else {}
        except InvalidValue as error:
            raise UsageError(f"{option}: {error}", error.hint) from None
    return given


def _repository_of(config: "Config", name: str) -> str:
    from vmbackup.cli.backup import job_of

    return config.repository_of(job_of(config, name))


def _guests(points: "PointList", config: "Config", job: str | None) -> list[str]:
    """The guests that have a restore point, by their newest names: all, or those that the job means."""
    means = config.jobs[job].means if job else lambda _name: True
    newest = {point.uuid: point.domain for point in reversed(points.points)}
    found = sorted(uuid for uuid, name in newest.items() if means(name))
    if not found:
        what = f'of job "{job}" ' if job else ""
        raise NotFoundError(f"no guest {what}has a restore point", "'vmbackup backup DOMAIN' makes the first")
    names = list(newest.values())
    return sorted(newest[uuid] if names.count(newest[uuid]) == 1 else f"{uuid}@latest" for uuid in found)


@dataclass
class _Run:
    """What a drill of several guests needs, and what has come of it."""

    state: State
    config: "Config"
    host: "Host"
    repository: "Repository"
    repository_name: str
    job: str | None
    given: dict[str, Any]
    progress: "Progress"
    documents: list[dict[str, Any]] = field(default_factory=list)

    def drill(self, names: Sequence[str], points: "PointList") -> int:
        """Drill all, print what was seen, return the exit code."""
        from vmbackup.repository.resolve import resolve

        turns = Turns(self.state)
        for name in dict.fromkeys(names):
            with turns.of(name):
                self._one(resolve(points, name, domains=True))
        if self.state.json:
            say_json(turns.add_failures({"drills": self.documents}))
        elif total := turns.total("booted"):
            say(total)
        return turns.exit_code(warned=False)

    def _one(self, point: "Point") -> None:
        from vmbackup.engine.drill.drill import Clocks, DrillFailedError, drill

        try:
            report = drill(self.host, self.repository, point, self._options(point), self.progress, Clocks())
        except DrillFailedError as error:
            self._tell(error.report)
            if not self.state.json:
                error.hint = error.report.advice  # what the console showed is told already
            raise
        self._tell(report)

    def _options(self, point: "Point") -> "DrillOptions":
        """What the command line says, else the job's drill: that of --job, or the first that means the guest."""
        from vmbackup.cli.access import host_name
        from vmbackup.engine.drill.checks import Check
        from vmbackup.engine.drill.drill import DrillOptions

        settings = self._settings(point.domain)
        options = DrillOptions(host=host_name())
        if settings is not None:
            options = DrillOptions(
                host_name(),
                settings.boot_within.total_seconds(),
                settings.checks_within.total_seconds(),
                settings.memory,
                settings.console,
                (
                    *(Check("service", (name,)) for name in settings.services),
                    *(Check("file", (path,)) for path in settings.files),
                    *(Check("command", arguments) for arguments in settings.commands),
                ),
            )
        return replace(options, **self.given)

    def _settings(self, domain: str) -> "Drill | None":
        jobs = self.config.jobs
        meant = [jobs[self.job]] if self.job else [job for job in jobs.values() if job.means(domain)]
        here = [job for job in meant if self.job or self.config.repository_of(job) == self.repository_name]
        return next((job.drill for job in here if job.drill), None)

    def _tell(self, report: "DrillReport") -> None:
        picture = self._kept(report)
        if self.state.json:
            self.documents.append(_document(report, picture))
            return
        for line in _text(report, picture):
            say(clean(line))

    def _kept(self, report: "DrillReport") -> Path | None:
        """The picture's file. It is no reason to fail."""
        from vmbackup.cli.output import warn
        from vmbackup.engine.drill import pictures
        from vmbackup.errors import TargetError

        if report.picture is None:
            return None
        try:
            return pictures.keep(
                self.config.daemon.state_dir, self.repository_name, report.domain_uuid, report.seen.time, report.picture
            )
        except TargetError as error:
            warn(error.message)
            return None


def _document(report: "DrillReport", picture: Path | None) -> dict[str, Any]:
    seen = report.seen
    return {
        "point": report.point,
        "domain": report.domain,
        "domain_uuid": report.domain_uuid,
        "time": seen.time.isoformat(),
        "success": seen.success,
        "boot_seconds": seen.boot_seconds,
        "duration_seconds": seen.duration_seconds,
        "checks": [
            {"name": each.check.name, "success": each.problem is None, "problem": each.problem}
            for each in report.checks
        ],
        "problem": seen.problem,
        "console": report.console,
        "picture": str(picture) if picture else None,
        "left_out": list(report.left_out),
    }


def _text(report: "DrillReport", picture: Path | None) -> list[str]:
    """For people; of one that failed what was seen, for the error tells the rest."""
    from vmbackup.config.units import format_duration

    seen = report.seen
    took = f"booted in {format_duration(seen.boot_seconds)}" if seen.boot_seconds is not None else "did not boot"
    held = f", {counted(len(report.checks), 'check')} held" if seen.success and report.checks else ""
    lines = [f"{report.domain}: {took}{held} ({report.point})"]
    lines += [f"  {each.check.name}: {each.problem or 'ok'}" for each in report.checks if not seen.success]
    if not seen.success:
        lines += [f"  it was booted without {', '.join(report.left_out)}"] * bool(report.left_out)
        lines += ["  its console's last lines:", *(f"    {line}" for line in report.console)] * bool(report.console)
    lines += [f"  its screen: {picture}"] * (picture is not None)
    return lines
