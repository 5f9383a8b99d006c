"""`vmbackup cancel`: ends a run of the service, or takes one out of its queue."""

import click

from vmbackup.cli.options import Command, State


@click.command("cancel", cls=Command, short_help="End a run of the service, or all of a job.")
@click.argument("run")
@click.pass_obj
def command(state: State, run: str) -> int:
    """End RUN: an id that `vmbackup status` shows or its beginning, or the name of a job, of which all runs end.

    All guests of a consistency group end together. Each guest is thawed and its backup job ended; the previous restore
    point stays the base of the next run.
    """
    from vmbackup.cli.control import Control, socket_path
    from vmbackup.cli.output import clean, say, say_json

    ended = Control(socket_path(state)).cancel(run)
    if state.json:
        say_json({"cancelled": ended[0], "runs": ended})
        return 0
    for each in ended:
        say(clean(f"{each['kind']} of {each['domain'] or each['repository']} ({each['id']}) is being cancelled"))
    return 0
