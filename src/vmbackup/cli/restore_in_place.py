"""`vmbackup restore --in-place`: a stopped guest's own disks, brought back."""

from typing import TYPE_CHECKING

from vmbackup.cli.options import State
from vmbackup.cli.output import clean, say, say_json, table, warn

if TYPE_CHECKING:
    from vmbackup.config.models import Config
    from vmbackup.engine.restore.in_place import InPlaceFile, InPlaceOptions, InPlaceSummary
    from vmbackup.repository.points import Point


def run(state: State, config: "Config", name: str, options: "InPlaceOptions") -> int:
    """Does it for the restore point that `name` means, prints the result, returns the exit code."""
    from vmbackup.cli import access
    from vmbackup.engine.restore.in_place import restore_in_place
    from vmbackup.repository.resolve import resolve

    with access.opened_repository(config, state.repository) as repository:
        found = resolve(repository.survey(), name, domains=True)
        with access.opened_host(config) as host, access.progress(state) as progress:
            done = restore_in_place(host, repository, found, options, progress)
    if state.json:
        _show_json(found, done, dry_run=options.dry_run)
    else:
        _show(found, done, dry_run=options.dry_run)
    return 3 if done.warnings else 0


def _show_json(point: "Point", done: "InPlaceSummary", *, dry_run: bool) -> None:
    files = [{**vars(file), "path": str(file.path)} for file in done.files]
    say_json(
        {
            "point": done.point,
            "kept_point": done.kept,
            "dry_run": dry_run,
            "files": files,
            "duration_seconds": round(done.duration_seconds, 3),
            "warnings": list(done.warnings),
            "point_warnings": list(point.warnings),
        }
    )


def _show(point: "Point", done: "InPlaceSummary", *, dry_run: bool) -> None:
    from vmbackup.config.units import format_duration, format_size

    def row(file: "InPlaceFile") -> tuple[str, ...]:
        sizes = (file.virtual_size, file.compared_bytes, file.written_bytes)
        return (file.target, str(file.path), file.format, *map(format_size, sizes))

    took = format_duration(done.duration_seconds)
    what = "would be brought to" if dry_run else "is as of"
    say(f"{clean(point.domain)} {what} {done.point}, in {took}:")
    written = "TO WRITE" if dry_run else "WRITTEN"
    titles = ("DISK", "FILE", "FORMAT", "SIZE", "COMPARED", written)
    say(table(titles, map(row, done.files), right=("SIZE", "COMPARED", written)))
    for file in done.files:
        if file.why_not_quick:
            say(f"{file.target} was compared whole: {clean(file.why_not_quick)}")
    if done.kept:
        say(f"The state before is restore point {done.kept}.")
    for warning in (*point.warnings, *done.warnings):
        warn(warning)
