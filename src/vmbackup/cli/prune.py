"""`vmbackup prune`: frees what no restore point needs."""

from typing import TYPE_CHECKING, Any

import click

from vmbackup.cli.options import Command, State
from vmbackup.errors import UsageError

if TYPE_CHECKING:
    from vmbackup.repository.collect import PruneReport


@click.command("prune", cls=Command, short_help="Free what no restore point needs.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@click.option("--wait", metavar="DURATION", help="How long to wait for running backups (10m).")
@click.option("--dead-after", metavar="DURATION", help="A run that is open for longer is ended (7d).")
@click.option("--exclusive", is_flag=True, help="Nothing else works on the repository: I see to that.")
@click.pass_obj
def command(state: State, dry_run: bool, wait: str | None, dead_after: str | None, exclusive: bool) -> int:
    """Delete what no restore point needs any more. Backups may run at the same time, and other prunes.

    It waits for those that were running when it began, for they may build on what is about to go; what it cannot
    take is left to the next call.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import clean, say, say_json
    from vmbackup.repository.collect import DEAD_AFTER, WAIT, PruneOptions, prune

    options = PruneOptions(
        wait=_seconds("--wait", wait, WAIT),
        dead_after=_seconds("--dead-after", dead_after, DEAD_AFTER),
        dry_run=dry_run,
        exclusive=exclusive,
    )
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository, access.progress(state) as progress:
        report = prune(repository, options, note=progress.note)
    if state.json:
        say_json(_document(report, dry_run=dry_run))
    else:
        for line in _text(report, dry_run=dry_run):
            say(clean(line))
    return 0


def _seconds(option: str, text: str | None, default: float) -> float:
    from vmbackup.config.units import InvalidValue, parse_duration

    if text is None:
        return default
    if text.strip().rstrip("smhdw") == "0":
        return 0.0
    try:
        return parse_duration(text).total_seconds()
    except InvalidValue as error:
        raise UsageError(f"{option}: {error}", error.hint) from None


def _document(report: "PruneReport", *, dry_run: bool) -> dict[str, Any]:
    return {
        "pruned": {
            "points": report.points,
            "objects": report.objects,
            "bytes": report.bytes,
            "ended_sessions": report.ended_sessions,
        },
        "left": {"objects": report.left_objects, "bytes": report.left_bytes, "waited_for": report.waited_for},
        "kept_bytes": report.kept_bytes,
        "dry_run": dry_run,
    }


def _text(report: "PruneReport", *, dry_run: bool) -> list[str]:
    from vmbackup.cli.output import counted
    from vmbackup.config.units import format_size

    did = "would be freed" if dry_run else "freed"
    freed = f"{counted(report.objects, 'object')}, {format_size(report.bytes)} {did}"
    lines = [f"{freed}; {format_size(report.kept_bytes)} kept."]
    if report.left_objects:
        left = f"{counted(report.left_objects, 'object')}, {format_size(report.left_bytes)}"
        lines.append(f"{left} are left to the next call:")
        lines += [f"  a backup was still running ({key})" for key in report.waited_for]
    return lines
