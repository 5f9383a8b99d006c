"""`vmbackup residency`: where the data of the repository may lie."""

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError


@click.command("residency", cls=Command, short_help="Tell or change where the data may lie.")
@click.option("--allow-endpoint", "hosts", metavar="HOST", multiple=True, help="Only there; again for more.")
@click.option("--anywhere", is_flag=True, help="Wherever a url leads.")
@click.pass_obj
def command(state: State, hosts: tuple[str, ...], anywhere: bool) -> None:
    """Tell at which hosts the data of the repository may lie; with an option, change it.

    HOST is a name as in the endpoint, with * for any part of it, or `file` for folders. The list that is given takes
    the place of the former. Every host refuses the repository, and copies of it, anywhere else.
    """
    if hosts and anywhere:
        raise UsageError("--allow-endpoint and --anywhere exclude each other", "leave one of them out")
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.repository import residency

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        if hosts or anywhere:
            residency.restrict(repository, hosts or None)
        allowed = repository.config.allowed_endpoints
        here = residency.location(repository.store.place)
    if state.json:
        say_json({"allowed_endpoints": None if allowed is None else list(allowed), "endpoint": here})
    elif allowed is None:
        say(f"It may lie anywhere; it lies at {here}.")
    else:
        say(f"It may lie at {', '.join(allowed)} only; it lies at {here}.")
