"""`vmbackup recover`: puts right what runs that were killed left on domains."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from vmbackup.cli.failure import Failure, traced
from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.recover import Recovered, Recovery


@click.command("recover", cls=Command, short_help="Put right what killed runs left on domains.")
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1)
@click.pass_obj
def command(state: State, domains: tuple[str, ...]) -> int:
    """Thaw guests that a killed run left frozen, end its backup jobs, remove its scratch files and checkpoints.

    Of all domains, or of each DOMAIN (a name or UUID). Runs that go on are left alone. The service does this when it
    starts, and each backup for its own domain.
    """
    from vmbackup.cli import access
    from vmbackup.engine.recover import Recovery

    config = access.load_config(state)
    with access.opened_host(config) as host:
        recovery = Recovery(host, domains)
        found = list(recovery.free())
        found += _judged(state, config, recovery)
        left = {intent.domain_name for intent in recovery.waiting()}
    _say(state, found, left)
    return 3 if left or any(one.trouble for one in found) else 0


def _judged(state: State, config: "Config", recovery: "Recovery") -> "Iterator[Recovered]":
    """What the repositories have to tell, as far as they can be opened and while anything waits for it."""
    from vmbackup.cli import access
    from vmbackup.cli.output import warn

    for name in config.repositories:
        if not recovery.waiting():
            return
        try:
            with access.opened_repository(config, name) as repository:
                yield from recovery.judge(repository)
        except Exception as error:
            traced(error, debug=state.debug)
            warn(f"repository {name}: {Failure.of(error).message}")


def _say(state: State, found: "list[Recovered]", left: set[str]) -> None:
    from vmbackup.cli.output import clean, say, say_json, warn

    later = "a checkpoint of a killed run waits until its repository can be asked: the next backup does it"
    troubled = [(one.domain, text) for one in found for text in one.trouble]
    troubled += [(domain, later) for domain in sorted(left - {domain for domain, _ in troubled})]
    if state.json:
        recovered = [{"domain": one.domain, "what": text} for one in found for text in one.done]
        say_json({"recovered": recovered, "failed": [{"domain": name, "error": text} for name, text in troubled]})
        return
    for one in found:
        for text in one.done:
            say(clean(f"{one.domain}: {text}"))
    for domain, text in troubled:
        warn(f"{domain}: {text}")
    if not found and not troubled:
        say("nothing was left behind.")
