"""`vmbackup list`: the restore points."""

import click

from vmbackup.cli.options import Command, State


@click.command("list", cls=Command, short_help="List restore points.")
@click.argument("domain", required=False)
@click.pass_obj
def command(state: State, domain: str | None) -> int:
    """List restore points, newest first: all, or those of DOMAIN (its name or UUID).

    One that cannot be read is told of, and the exit code is 4; it is 3 where a revoked key made some since, or where
    some are doubtful: they claim to be one run, or to be older than the key that signed them.
    """
    from vmbackup.cli import access
    from vmbackup.cli.doubt import doubtful_document, warn_of_doubtful
    from vmbackup.cli.output import say, say_json, warn
    from vmbackup.cli.points import document, points_table, summaries
    from vmbackup.cli.quarantine import quarantined_document, warn_of_quarantined
    from vmbackup.config.mistakes import did_you_mean
    from vmbackup.errors import NotFoundError
    from vmbackup.repository.doubt import doubtful
    from vmbackup.repository.quarantine import quarantined

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        found = repository.survey()
        held, unclear = quarantined(repository, found), doubtful(repository, found)
    every = points = summaries(found)
    if domain is not None:
        names = sorted({point.domain for point in points})
        points = [point for point in points if domain in (point.domain, point.domain_uuid)]
        if not points and not found.damaged:
            hint = did_you_mean(domain, names) or "'vmbackup list' shows what there is"
            raise NotFoundError(f'there is no restore point of a domain "{domain}"', hint)
    code = 4 if found.damaged else 3 if held or unclear else 0
    if state.json:
        damaged = [{"object": error.object_key, "problem": error.message} for error in found.damaged]
        doubts = {"quarantined": quarantined_document(held), "doubtful": doubtful_document(unclear)}
        say_json(document(points, every) | {"damaged": damaged, **doubts})
        return code
    if points:
        say(points_table(points, every))
    elif not found.damaged and not held:
        say("No restore points yet: 'vmbackup backup DOMAIN' makes the first.")
    for error in found.damaged:
        warn(f"a restore point cannot be read: {error.message}")
    warn_of_quarantined(held)
    warn_of_doubtful(unclear)
    return code
