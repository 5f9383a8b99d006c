"""`vmbackup prune`: frees what no restore point needs."""

from datetime import UTC, datetime
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
@click.option(
    "--repack-below", metavar="PERCENT", help="Rewrite packs of which less is in use (80); 0 leaves them as they are."
)
@click.option("--exclusive", is_flag=True, help="Nothing else works on the repository: I see to that.")
@click.pass_obj
def command(
    state: State, dry_run: bool, wait: str | None, dead_after: str | None, repack_below: str | None, exclusive: bool
) -> int:
    """Delete what no restore point needs any more. Backups may run at the same time, and other prunes.

    It waits for those that were running when it began, for they may build on what is about to go; what it cannot
    take is left to the next call. What is still in use of packs that are mostly dead is copied into new ones first.
    """
    from vmbackup.cli import access
    from vmbackup.cli.output import clean, say, say_json
    from vmbackup.engine.identity import host_identity
    from vmbackup.repository.collect import DEAD_AFTER, WAIT, PruneOptions, prune

    options = PruneOptions(
        wait=_seconds("--wait", wait, WAIT),
        dead_after=_seconds("--dead-after", dead_after, DEAD_AFTER),
        dry_run=dry_run,
        exclusive=exclusive,
        repack_below=_share(repack_below),
        host=host_identity(),
    )
    config = access.load_config(state)
    with access.opened_repository(config, state.repository) as repository, access.progress(state) as progress:
        report = prune(repository, options, progress=progress)
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


def _share(text: str | None) -> float:
    from vmbackup.repository.repack import REPACK_BELOW

    if text is None:
        return REPACK_BELOW
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise UsageError(f"--repack-below: '{text}' is no percentage", "write a number from 0 to 100")
    return percent / 100


def _until(report: "PruneReport") -> datetime:
    """When the last of what is locked can go."""
    return datetime.fromtimestamp(max(until for _, until in report.locked.values()), UTC)


def _document(report: "PruneReport", *, dry_run: bool) -> dict[str, Any]:
    return {
        "pruned": {
            "points": report.points,
            "objects": report.objects,
            "bytes": report.bytes,
            "ended_sessions": report.ended_sessions,
        },
        "left": {"objects": report.left_objects, "bytes": report.left_bytes, "waited_for": report.waited_for},
        "repacked": {
            "packs": report.repacked.packs,
            "copied_bytes": report.repacked.copied_bytes,
            "freed_bytes": report.repacked.freed_bytes,
        },
        "locked": {
            "objects": len(report.locked),
            "bytes": sum(size for size, _ in report.locked.values()),
            "until": _until(report).isoformat() if report.locked else None,
        },
        "kept_bytes": report.kept_bytes,
        "dry_run": dry_run,
    }


def _text(report: "PruneReport", *, dry_run: bool) -> list[str]:
    from vmbackup.cli.output import counted, local_time
    from vmbackup.config.units import format_size

    did = "would be freed" if dry_run else "freed"
    freed = f"{counted(report.objects, 'object')}, {format_size(report.bytes)} {did}"
    lines = [f"{freed}; {format_size(report.kept_bytes)} kept."]
    packed = report.repacked
    if packed.packs:
        packs = counted(packed.packs, "mostly dead pack")
        copied = f"{format_size(packed.copied_bytes)} of {packs}"
        lines.append(
            f"Repacking would copy {copied} and free {format_size(packed.freed_bytes)} more."
            if dry_run
            else f"Repacked: {copied} copied, so that about {format_size(packed.freed_bytes)} came free."
        )
    if report.locked:
        locked = f"{counted(len(report.locked), 'object')}, {format_size(sum(s for s, _ in report.locked.values()))}"
        until = local_time(_until(report), seconds=False)
        lines.append(f"{locked}, are needed no more and locked, the last until {until}.")
    if report.left_objects:
        left = f"{counted(report.left_objects, 'object')}, {format_size(report.left_bytes)}"
        lines.append(f"{left} are left to the next call:")
        lines += [f"  a backup was still running ({key})" for key in report.waited_for]
    return lines
