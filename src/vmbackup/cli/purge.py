"""`vmbackup purge`: takes what is ours off domains; restore points stay."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from vmbackup.hypervisor.tidy.purge import PurgeReport


@click.command("purge", cls=Command, short_help="Take checkpoints and leftovers off domains.")
@click.argument("domains", metavar="DOMAIN...", nargs=-1, required=True)
@click.pass_obj
def command(state: State, domains: tuple[str, ...]) -> int:
    """Take our checkpoints, bitmaps, stale jobs and scratch files off each DOMAIN. Restore points stay.

    Afterwards nothing of vmbackup blocks snapshots or undefine; the next backup reads the disks whole.
    With --repository only what belongs to that repository goes.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import say_json
    from vmbackup.cli.turns import Turns

    config = access.load_config(state)
    turns = Turns(state)
    reports: dict[str, PurgeReport] = {}
    with ExitStack() as stack:
        host = stack.enter_context(access.opened_host(config))
        only = None
        if state.repository is not None:
            only = stack.enter_context(access.opened_repository(config, state.repository)).id
        for name in dict.fromkeys(domains):
            with turns.of(name):
                reports[name] = report = host.purge(host.domain(name), only)
                if not state.json:
                    _say(name, report)
    if state.json:
        say_json(turns.add_failures({"purged": [_document(name, report) for name, report in reports.items()]}))
    return turns.exit_code(warned=any(report.trouble for report in reports.values()))


def _document(name: str, report: "PurgeReport") -> dict[str, Any]:
    return {
        "domain": name,
        "checkpoints": list(report.checkpoints),
        "bitmaps": list(report.bitmaps),
        "job_ended": report.job_ended,
        "warnings": list(report.trouble),
    }


def _say(name: str, report: "PurgeReport") -> None:
    from vmbackup.cli.output import clean, counted, say, warn

    checkpoints, bitmaps = len(report.checkpoints), len(report.bitmaps)
    gone = [f"{counted(checkpoints, 'checkpoint')} and {counted(bitmaps, 'stray bitmap')} taken off"]
    if report.job_ended:
        gone.append("a stale backup job ended")
    say(f"{clean(name)}: {', '.join(gone)}")
    for trouble in report.trouble:
        warn(f"{name}: {trouble}")
