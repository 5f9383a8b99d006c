"""`vmbackup list`: the restore points."""

import click

from vmbackup.cli.options import Command, State


@click.command("list", cls=Command)
@click.argument("domain", required=False)
@click.pass_obj
def command(state: State, domain: str | None) -> None:
    """List restore points, newest first: all, or those of DOMAIN (its name or UUID)."""
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.cli.points import document, points_table
    from vmbackup.config.mistakes import did_you_mean
    from vmbackup.errors import NotFoundError

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        points = sorted(repository.points(), key=lambda point: point.time, reverse=True)
    if domain is not None:
        names = sorted({point.domain for point in points})
        points = [point for point in points if domain in (point.domain, point.domain_uuid)]
        if not points:
            hint = did_you_mean(domain, names) or "'vmbackup list' shows what there is"
            raise NotFoundError(f'there is no restore point of a domain "{domain}"', hint)
    if state.json:
        say_json(document(points))
    elif points:
        say(points_table(points))
    else:
        say("No restore points yet: 'vmbackup backup DOMAIN' makes the first.")
