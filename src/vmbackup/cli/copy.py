"""`vmbackup copy`: restore points in another repository, only what it lacks."""

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError


@click.command("copy", cls=Command, short_help="Copy restore points to another repository.")
@click.argument("domains", metavar="[DOMAIN...]", nargs=-1)
@click.option("--from", "source", metavar="NAME", required=True, help="The repository to copy from.")
@click.option("--to", "target", metavar="NAME", required=True, help="The repository to copy to.")
@click.pass_obj
def command(state: State, domains: tuple[str, ...], source: str, target: str) -> int:
    """Bring the restore points that another repository lacks there: of all domains, or of each DOMAIN.

    What was copied and then forgotten there is not brought again. A copy that was cut off is taken up where it was.
    """
    from vmbackup.cli import access
    from vmbackup.cli.copying import Copies

    config = access.load_config(state)
    access.named_repository(config, source)
    access.named_repository(config, target)
    if source == target:
        raise UsageError(f'"{source}" is where the restore points are', "name another repository after --to")
    copies = Copies(state, target)
    with access.opened_repository(config, source) as here, access.progress(state) as progress:
        copies.run(config, here, domains, progress)
    return copies.finish()
