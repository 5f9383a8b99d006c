"""`vmbackup show`: one restore point."""

from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from vmbackup.repository.summary import PointSummary


@click.command("show", cls=Command, short_help="Show one restore point.")
@click.argument("point")
@click.pass_obj
def command(state: State, point: str) -> None:
    """Show a restore point: POINT is its id, a prefix of it, DOMAIN@latest or DOMAIN@TIME."""
    from vmbackup.cli import access
    from vmbackup.cli.output import say, say_json
    from vmbackup.cli.points import described, document
    from vmbackup.repository.resolve import resolve

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        points = repository.read_points()
    found = described(points, resolve(points, point))
    if state.json:
        say_json(document([found]))
    else:
        say(_text(found))


def _text(point: "PointSummary") -> str:
    from vmbackup.cli.output import facts, local_time
    from vmbackup.cli.points import disks_table
    from vmbackup.config.units import format_duration

    pairs = [
        ("point", point.id),
        ("domain", f"{point.domain} ({point.domain_uuid})"),
        ("time", local_time(point.time)),
        ("consistency", point.consistency),
        ("host", point.host),
        ("parent", point.parent or "none: the first of its domain"),
        ("took", format_duration(point.duration_seconds)),
    ]
    if point.quiesce_note:
        pairs.append(("quiesce", point.quiesce_note))
    pairs += [("reread", f"{disk.target}: {disk.reason}") for disk in point.disks if disk.reason]
    pairs += [("warning", warning) for warning in point.warnings]
    return f"{facts(pairs)}\n\n{disks_table(point)}"
