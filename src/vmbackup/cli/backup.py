"""`vmbackup backup`: a restore point of each domain, now."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from vmbackup.cli.options import Command, State
from vmbackup.cli.output import clean, say, say_json
from vmbackup.cli.turns import Turns
from vmbackup.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from vmbackup.config.models import Config, Job
    from vmbackup.engine.backup.run import BackupOptions
    from vmbackup.hypervisor import Host
    from vmbackup.hypervisor.plan import Plan
    from vmbackup.hypervisor.source import FreezeOptions, QuiescePolicy
    from vmbackup.progress import Progress
    from vmbackup.repository.repository import Repository
    from vmbackup.repository.summary import PointSummary

POLICIES = ("auto", "required", "never")


@click.command("backup", cls=Command, short_help="Make restore points of domains, now.")
@click.argument("domains", metavar="[DOMAIN...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every domain that libvirt knows.")
@click.option("--job", metavar="NAME", help="As a job of the configuration says: its domains, or DOMAIN... of them.")
@click.option("--full", is_flag=True, help="Ignore checkpoints and read everything; nothing is stored twice.")
@click.option("--quiesce", type=click.Choice(POLICIES), help="Freeze file systems by the guest agent (auto).")
@click.option("--no-copy", is_flag=True, help="With --job: only the backup, without the job's copy_to.")
@click.option("--dry-run", is_flag=True, help="Tell what would be read, and why; change nothing.")
@click.pass_obj
def command(
    state: State,
    domains: tuple[str, ...],
    every: bool,
    job: str | None,
    full: bool,
    quiesce: str | None,
    no_copy: bool,
    dry_run: bool,
) -> int:
    """Make a restore point of each DOMAIN (a name or UUID) now."""
    if bool(domains or job) + every != 1:
        raise UsageError("name domains, or --all, or --job NAME", "'virsh list --all' names the domains")
    from vmbackup.cli import access

    config = access.load_config(state)
    settings = job_of(config, job) if job else None
    options = _options(full, quiesce, settings, job or "", config.daemon.state_dir / "pace")
    repository_name = state.repository or (settings.repository if settings else None)
    shown_as, _ = access.named_repository(config, repository_name)
    if config.libvirt.domain_metadata:
        options = replace(options, shown_as=shown_as)
    with ExitStack() as stack:
        host = stack.enter_context(access.opened_host(config))
        names = _named(host, domains, job, settings) if domains else _select(host, settings)
        repository = stack.enter_context(access.opened_repository(config, repository_name))
        repository.check_may_write()
        copy_to = settings.copy_to if settings and not no_copy else ()
        run = _Run(state, config, host, repository, options, copy_to, job)
        return run.plan(names) if dry_run else run.backup(names)


def _options(full: bool, quiesce: str | None, job: "Job | None", name: str, paces: Path) -> "BackupOptions":
    """What the command line says, else the job. `paces`: where its runs agree on their pace."""
    from vmbackup.engine.backup.run import BackupOptions
    from vmbackup.engine.pipeline.pace import Limit

    policy = cast("QuiescePolicy", quiesce or (job.quiesce if job else "auto"))
    if job is None:
        return BackupOptions(full=full, quiesce=policy)
    return BackupOptions(
        full=full,
        quiesce=policy,
        freezing=_freezing(job, name),
        verify_uploads=job.verify_uploads,
        limit=Limit(paces / name, job.bandwidth_limit) if job.bandwidth_limit else None,
        reread_every=job.reread_every,
    )


def _freezing(job: "Job", name: str) -> "FreezeOptions":
    """How the guests of a job are brought to rest."""
    from vmbackup.hypervisor.source import FreezeOptions, Hooks

    seconds = job.freeze_timeout.total_seconds() if job.freeze_timeout else None
    if job.hooks is None:
        return FreezeOptions(job.freeze_mounts, seconds)
    hooks = Hooks(
        before=job.hooks.before or (),
        after=job.hooks.after or (),
        guest_before=job.hooks.guest_before or (),
        guest_after=job.hooks.guest_after or (),
        seconds=job.hooks.timeout.total_seconds(),
        environment={"VMBACKUP_JOB": name},
    )
    return FreezeOptions(job.freeze_mounts, seconds, hooks)


def job_of(config: "Config", name: str) -> "Job":
    """The job of that name. UsageError."""
    if name in config.jobs:
        return config.jobs[name]
    from vmbackup.config.mistakes import did_you_mean

    known = ", ".join(config.jobs)
    hint = did_you_mean(name, config.jobs) or (f"the jobs are {known}" if known else f"add [jobs.{name}] to it")
    raise UsageError(f'there is no job "{name}" in the configuration', hint)


def _named(host: "Host", domains: Sequence[str], name: str | None, job: "Job | None") -> list[str]:
    """The domains of the command line, each once. UsageError where one is none of the job's."""
    named = list(dict.fromkeys(domains))
    if job is None:
        return named
    by_uuid = {domain.uuid: domain.name for domain in host.domains()}
    for domain in named:
        if not job.means(by_uuid.get(domain.lower(), domain)):
            but = f", but not {', '.join(job.exclude)}" if job.exclude else ""
            raise UsageError(
                f'domain "{domain}" is none of job "{name}"', f"the job means {', '.join(job.domains)}{but}"
            )
    return named


def _select(host: "Host", job: "Job | None") -> list[str]:
    """The names of all domains, or of those that a job means; but of none that hangs on a repository."""
    names = [domain.name for domain in host.own_domains()]
    if job is not None:
        names = list(filter(job.means, names))
    if not names:
        what = "domain of the job" if job is not None else "domain"
        raise NotFoundError(f"libvirt knows no {what}", "'virsh list --all' names the domains")
    return names


@dataclass
class _Run:
    """What a backup of several domains needs, and what has come of it."""

    state: State
    config: "Config"
    host: "Host"
    repository: "Repository"
    options: "BackupOptions"
    copy_to: Sequence[str]
    job: str | None = None

    def backup(self, domains: Sequence[str]) -> int:
        """Back up all, copy what is new, print the result, return the exit code."""
        from vmbackup.cli import access
        from vmbackup.cli.copying import Copies
        from vmbackup.cli.findings import look
        from vmbackup.cli.points import document

        turns = Turns(self.state)
        points: list[PointSummary] = []
        changed = look(self.config.daemon.state_dir, self.repository.store)
        with access.progress(self.state) as progress:
            for domain, result in self._made(domains, progress):
                with turns.of(domain):
                    points.append(result())
                    if not self.state.json:
                        say(_text(points[-1]))
            if not self.state.json and (total := turns.total("backed up")):
                say(total)
            copies = [Copies(self.state, name) for name in self.copy_to]
            for copy in copies:
                copy.follow(self.config, self.repository, domains, progress)
        if self.state.json:
            made = {"copies": [copy.document() for copy in copies]} if copies else {}
            say_json(turns.add_failures(document(points)) | made)
        warned = any(point.status == "warning" for point in points) or any(copy.failed for copy in copies) or changed
        return turns.exit_code(warned=warned)

    def _made(
        self, domains: Sequence[str], progress: "Progress"
    ) -> Iterator[tuple[str, Callable[[], "PointSummary"]]]:
        """Each domain, and what makes its restore point, or has made it with those of its group."""
        from vmbackup.engine.backup.group import backup_group
        from vmbackup.engine.backup.run import backup

        if self.job is None or len(domains) == 1 or not self.config.jobs[self.job].consistency_group:
            for domain in domains:
                yield domain, partial(backup, self.host, self.repository, domain, self.options, progress)
            return
        group = backup_group(self.host, self.repository, self.job, domains, self.options, progress)
        for outcome in group:
            yield outcome.name, outcome.result

    def plan(self, domains: Sequence[str]) -> int:
        """Tell what a backup would read, return the exit code."""
        from vmbackup.cli.plans import document, text
        from vmbackup.engine.backup.plan import plan

        turns = Turns(self.state)
        plans: list[Plan] = []
        for domain in domains:
            with turns.of(domain):
                plans.append(plan(self.host, self.repository, domain, self.options))
                if not self.state.json:
                    say(text(plans[-1]))
        if self.state.json:
            say_json(turns.add_failures(document(plans)))
        return turns.exit_code(warned=False)


def _text(point: "PointSummary") -> str:
    """What came of one domain, for people."""
    from vmbackup.cli.points import mode_of, stored
    from vmbackup.config.units import format_duration, format_size

    read = sum(disk.read_bytes for disk in point.disks)
    parts = [mode_of(point), f"{format_size(read)} read", f"{format_size(stored(point))} stored"]
    took, seal = format_duration(point.duration_seconds), format_duration(point.seal_seconds)
    parts += [f"{point.consistency}-consistent", f"{took} (seal {seal})"]
    lines = [f"{point.domain}: {point.id}", f"  {', '.join(parts)}"]
    if point.quiesce_note:
        lines.append(f"  quiesce: {point.quiesce_note}")
    whole: dict[str, list[str]] = {}
    for disk in point.disks:
        if disk.reason:
            whole.setdefault(disk.reason, []).append(disk.target)
    lines += [f"  read whole ({', '.join(targets)}): {reason}" for reason, targets in whole.items()]
    lines += [f"  warning: {warning}" for warning in point.warnings]
    return "\n".join(clean(line) for line in lines)
