"""`vmbackup daemon`: the service."""

import logging

import click

from vmbackup.cli.options import Command, State


@click.command("daemon", cls=Command, short_help="The service: schedule, control socket, metrics.")
@click.pass_obj
def command(state: State) -> int:
    """Run the service in the foreground, as systemd starts it, until SIGTERM. SIGHUP reads the configuration again."""
    from vmbackup.config.load import find
    from vmbackup.daemon.serve import serve

    if not (state.quiet or state.verbose or state.debug):
        logging.getLogger("vmbackup").setLevel(logging.INFO)
    return serve(find(state.config))
