"""`vmbackup cancel`: ends a run of the service, or takes one out of its queue."""

import click

from vmbackup.cli.options import Command, State


@click.command("cancel", cls=Command, short_help="End a run of the service.")
@click.argument("run")
@click.pass_obj
def command(state: State, run: str) -> int:
    """End RUN: an id that `vmbackup status` shows, or its beginning.

    The guest is thawed, its backup job ended; the previous restore point stays the base of the next run.
    """
    from vmbackup.cli.control import Control, socket_path
    from vmbackup.cli.output import clean, say, say_json

    ended = Control(socket_path(state)).cancel(run)
    if state.json:
        say_json({"cancelled": ended})
    else:
        say(clean(f"{ended['kind']} of {ended['domain'] or ended['repository']} ({ended['id']}) is being cancelled"))
    return 0
