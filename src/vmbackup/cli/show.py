"""`vmbackup show`: one restore point."""

from typing import TYPE_CHECKING

import click

from vmbackup.cli.options import Command, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmbackup.repository import PointSummary, Repository
    from vmbackup.repository.points import Point


@click.command("show", cls=Command, short_help="Show one restore point.")
@click.argument("point")
@click.pass_obj
def command(state: State, point: str) -> None:
    """Show a restore point: POINT is its id, a prefix of it, DOMAIN@latest or DOMAIN@TIME."""
    from vmbackup.cli import access
    from vmbackup.cli.drills import drill_document, drill_text
    from vmbackup.cli.output import say, say_json
    from vmbackup.cli.points import described, document, summaries
    from vmbackup.repository import drills
    from vmbackup.repository.resolve import resolve

    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository:
        points = repository.survey()
        chosen = resolve(points, point)
        freed = _freed(repository, chosen, points.points)
        drill = next((d for d in drills.of_history(repository, chosen.lineage) if d.session == chosen.session), None)
    found, every = described(points, chosen), summaries(points)
    if state.json:
        shown = document([found], every)
        shown["points"][0] |= {"freed_bytes": freed, "drill": drill_document(drill) if drill else None}
        say_json(shown)
    else:
        say(_text(found, every, freed, drill_text(drill) if drill else "never: 'vmbackup drill POINT' boots it"))


def _freed(repository: "Repository", point: "Point", others: list["Point"]) -> int | None:
    """Bytes that only this point holds; None where a damaged map hides it."""
    from vmbackup.errors import DamageError
    from vmbackup.repository.usage import freed_bytes

    try:
        return freed_bytes(repository.catalog(point.lineage.group), point, others)
    except DamageError:
        return None


def _text(point: "PointSummary", every: "Sequence[PointSummary]", freed: int | None, drilled: str) -> str:
    from vmbackup.cli.groups import group_facts, present
    from vmbackup.cli.output import facts, local_time
    from vmbackup.cli.points import disks_table, files_table
    from vmbackup.config.units import format_duration, format_size

    pairs = [
        ("point", point.id),
        ("domain", f"{point.domain} ({point.domain_uuid})"),
        ("time", local_time(point.time)),
        ("consistency", point.consistency),
        ("host", point.host),
        ("parent", point.parent or "none: the first of its domain"),
        ("took", format_duration(point.duration_seconds)),
        ("drilled", drilled),
        ("would free", "unknown, for a map is damaged" if freed is None else format_size(freed)),
    ]
    if point.copied_from:
        pairs.append(("copied from", f"repository {point.copied_from}"))
    pairs += group_facts(point.group, present(every))
    if point.freeze_seconds is not None:
        pairs.append(("stood still", format_duration(point.freeze_seconds)))
    if point.quiesce_note:
        pairs.append(("quiesce", point.quiesce_note))
    pairs += [("reread", f"{disk.target}: {disk.reason}") for disk in point.disks if disk.reason]
    pairs += [("warning", warning) for warning in point.warnings]
    return "\n\n".join(filter(None, (facts(pairs), disks_table(point), files_table(point))))
