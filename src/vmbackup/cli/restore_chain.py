"""`vmbackup restore --chain`: restore points as a backing chain."""

from typing import TYPE_CHECKING

from vmbackup.cli.output import clean, say, say_json, table, warn

if TYPE_CHECKING:
    from vmbackup.engine.restore_chain import ChainOptions, ChainSummary
    from vmbackup.progress import Progress
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList, Repository


def restore(
    repository: "Repository",
    found: "PointList",
    last: "Point",
    begin: str | None,
    options: "ChainOptions",
    progress: "Progress",
) -> "ChainSummary":
    """The chain up to `last`, from the point that `begin` names on."""
    from vmbackup.engine.restore_chain import chain_points, restore_chain
    from vmbackup.repository.resolve import resolve

    first = resolve(found, begin) if begin is not None else None
    return restore_chain(repository, chain_points(found.points, last, first), options, progress)


def show(done: "ChainSummary", domain: str, *, json: bool) -> int:
    """Prints what was made, returns the exit code."""
    from vmbackup.config.units import format_duration, format_size

    if json:
        files = [{**vars(file), "path": str(file.path)} for file in done.files]
        duration = round(done.duration_seconds, 3)
        say_json({"point": done.point, "files": files, "duration_seconds": duration, "warnings": list(done.warnings)})
        return 3 if done.warnings else 0
    rows = [
        (f.target, f.point, str(f.path), f.backing or "-", format_size(f.virtual_size), format_size(f.written_bytes))
        for f in done.files
    ]
    say(f"{clean(domain)} up to {done.point}, in {format_duration(done.duration_seconds)}:")
    say(table(("DISK", "POINT", "FILE", "BACKING FILE", "SIZE", "WRITTEN"), rows, right=("SIZE", "WRITTEN")))
    for warning in done.warnings:
        warn(warning)
    return 3 if done.warnings else 0
