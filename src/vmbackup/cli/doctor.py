"""`vmbackup doctor`: is everything in place for backups, and if not, what mends it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import ConfigError, NotFoundError, VmbackupError

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.hypervisor import Check


@click.command("doctor", cls=Command, short_help="Check that everything is in place for backups.")
@click.argument("domains", metavar="[DOMAIN...]", nargs=-1)
@click.pass_obj
def command(state: State, domains: tuple[str, ...]) -> int:
    """Check host, libvirt, QEMU, permissions, scratch space, repository and clock, then each DOMAIN.

    Without DOMAIN all domains are checked. What is wrong is shown with the command that mends it.
    """
    from vmbackup.cli.output import say, say_json

    checks: list[Check] = []
    for check in _checks(state, domains):
        checks.append(check)
        if not state.json:
            say(_line(check))
    count = Counter(check.status for check in checks)
    if state.json:
        say_json({"checks": [asdict(check) for check in checks]})
    else:
        say(f"\n{count['ok']} OK, {count['warn']} WARN, {count['fail']} FAIL")
    return 1 if count["fail"] else 3 if count["warn"] else 0


def _checks(state: State, domains: Sequence[str]) -> Iterator["Check"]:
    """All checks in order; each part that cannot even begin is one FAIL of its own."""
    from vmbackup.cli import access
    from vmbackup.cli.checks import cache_check, config_checks, program_checks, repository_checks
    from vmbackup.cli.service_checks import service_checks
    from vmbackup.config.load import find, load
    from vmbackup.config.mistakes import ConfigMistakesError
    from vmbackup.hypervisor import Check

    path = find(state.config)
    try:
        config = load(path)
    except ConfigMistakesError as error:
        for line in error.lines(hints=True):
            yield Check("config", str(path), "fail", line, error.hint)
        return
    except ConfigError as error:
        yield Check("config", str(path), "fail", error.message, error.hint)
        return
    yield from config_checks(path, config)
    yield from program_checks(config)
    yield cache_check(config.host.cache_dir)
    yield from service_checks(path, config)
    names = [access.named_repository(config, state.repository)[0]] if state.repository else config.repositories
    for name in names:
        yield from repository_checks(config, name)
    yield from _host_checks(config, domains)


def _host_checks(config: "Config", domains: Sequence[str]) -> Iterator["Check"]:
    """What the hypervisor finds about itself and its domains."""
    from vmbackup.cli import access
    from vmbackup.hypervisor import Check

    try:
        with access.opened_host(config) as host:
            known = [host.domain(name) for name in dict.fromkeys(domains)] if domains else host.domains()
            yield from host.checks(known)
    except NotFoundError:
        raise
    except VmbackupError as error:
        yield Check("libvirt", config.libvirt.uri, "fail", error.message, error.hint)


_LABELS = {"ok": ("OK  ", "green"), "warn": ("WARN", "yellow"), "fail": ("FAIL", "red")}
_WIDTH = 17  # the longest name of a check: backup-capability


def _line(check: "Check") -> str:
    from vmbackup.cli.output import clean, paint

    label, colour = _LABELS[check.status]
    line = f"{paint(label, colour)}  {check.name:{_WIDTH}}  {clean(f'{check.subject}: {check.message}')}"
    if check.fix and check.status != "ok":
        line += f"\n{'':{6 + _WIDTH + 2}}fix: {clean(check.fix)}"
    return line
