"""`vmbackup recover`: puts right what dead runs left on domains."""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.backup.recover import Candidate, Recovery
    from vmbackup.hypervisor import Host
    from vmbackup.hypervisor.tidy.intents import Intent


@click.command("recover", cls=Command, short_help="Put right what killed backups left on domains.")
@click.argument("domains", metavar="[DOMAIN...]", nargs=-1)
@click.pass_obj
def command(state: State, domains: tuple[str, ...]) -> int:
    """Put right what backups that were killed left on this host: on each DOMAIN, or on all.

    Guests are thawed first. Then stale backup jobs are ended, scratch files and sockets removed, and checkpoints
    deleted that no restore point names. A domain that a backup works on is left alone. The next backup of a domain does
    the same by itself. Throw-away guests of drills that were killed are removed, with their files.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say_json
    from vmbackup.engine.backup.recover import recover
    from vmbackup.engine.drill.bench import drilled

    config = access.load_config(state)
    with access.opened_host(config) as host:
        wanted = _wanted(host, domains, drilled(host)) if domains else None
        done = recover(host, _intents(host, wanted), _candidates(config))
        _end_drills(host, done, wanted)
    if state.json:
        failed = [{"domain": t.domain, "error": t.message, "hint": t.hint} for t in done.failed]
        recovered = [{"domain": domain, "what": what} for domain, what in done.done]
        say_json({"recovered": recovered, "failed": failed, "running": done.running})
    else:
        _say(done)
    return 3 if done.failed else 0


def _end_drills(host: "Host", done: "Recovery", wanted: Collection[str] | None) -> None:
    from vmbackup.engine.backup.recover import Trouble
    from vmbackup.engine.drill.bench import left_over
    from vmbackup.errors import HypervisorError, TargetError

    try:
        done.done.extend(left_over(host, wanted))
    except (HypervisorError, TargetError) as error:
        done.failed.append(Trouble("a drill", error.message, error.hint or "run 'vmbackup recover' again"))


def _wanted(host: "Host", domains: Sequence[str], drills: Collection[str]) -> set[str]:
    """The names and UUIDs of these domains, as far as they are known; NotFoundError for one that nobody knows.

    A domain need not be there any more: it may have left a run, or a drill of its restore point.
    """
    from vmbackup.errors import NotFoundError

    intents = host.intents()
    wanted = set(domains)
    for name in domains:
        try:
            domain = host.domain(name)
        except NotFoundError:
            if name not in drills and not any(name in (each.domain_name, each.domain_uuid) for each in intents):
                raise
        else:
            wanted |= {domain.name, domain.uuid}
    return wanted


def _intents(host: "Host", wanted: Collection[str] | None) -> "list[Intent]":
    """The runs, dead or alive, on these domains, or on all."""
    intents = host.intents()
    return intents if wanted is None else [i for i in intents if {i.domain_name, i.domain_uuid} & set(wanted)]


def _candidates(config: "Config") -> "Iterator[Candidate]":
    """The repositories of the configuration; those that were here before, and so are quickly told apart, first."""
    from functools import partial

    from vmbackup.cli import access
    from vmbackup.engine.backup.recover import Candidate

    ids = {name: _remembered(config, name) for name in config.repositories}
    for name in sorted(ids, key=lambda name: ids[name] is None):
        yield Candidate(name, ids[name], partial(access.opened_repository, config, name))


def _remembered(config: "Config", name: str) -> str | None:
    """The id of the repository that this host saw there last; None where nothing is remembered."""
    from contextlib import closing

    from vmbackup.cli import access
    from vmbackup.errors import VmbackupError
    from vmbackup.storage_backends import StoreError

    try:
        with closing(access.open_store_of(config.repositories[name])) as store:
            seen = access.trust(config.daemon.state_dir).recall(store.place)
    except (VmbackupError, StoreError):
        return None
    return seen.repository[:8] if seen else None


def _say(done: "Recovery") -> None:
    from vmbackup.cli.failure import Failure, tell
    from vmbackup.cli.output import clean, say

    for domain, what in done.done:
        say(clean(f"{domain}: {what}"))
    for name in done.running:
        say(clean(f"{name}: a backup works on it; left alone"))
    for trouble in done.failed:
        tell(Failure("failed", trouble.message, trouble.hint, 1), about=trouble.domain)
    if not (done.done or done.running or done.failed):
        say("Nothing to put right.")
