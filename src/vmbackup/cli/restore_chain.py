"""`vmbackup restore --chain`: restore points as a backing chain."""

from typing import TYPE_CHECKING

from vmbackup.cli.output import clean, say, say_json, table, warn
from vmbackup.cli.restore_result import boot_file_document

if TYPE_CHECKING:
    from vmbackup.cli.define_options import DefinedGuest
    from vmbackup.engine.restore.chained import ChainSummary
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import PointList


def points_of(found: "PointList", last: "Point", begin: str | None) -> "list[Point]":
    """The levels of the chain up to `last`, from the point that `begin` names on, oldest first."""
    from vmbackup.engine.restore.chained import chain_points
    from vmbackup.repository.resolve import resolve

    first = resolve(found, begin) if begin is not None else None
    return chain_points(found.points, last, first)


def show(done: "ChainSummary", last: "Point", guest: "DefinedGuest | None", *, json: bool) -> int:
    """Prints what was made, returns the exit code."""
    from vmbackup.config.units import format_duration, format_size

    warnings = [*done.warnings, *(guest.warnings if guest else ())]
    if json:
        files = [{**vars(file), "path": str(file.path)} for file in done.files]
        duration = round(done.duration_seconds, 3)
        said = {"point": done.point, "files": files, "duration_seconds": duration, "warnings": warnings}
        said["point_warnings"] = list(last.warnings)
        said["boot_files"] = [boot_file_document(file) for file in done.boot_files]
        say_json(said | ({"domain": guest.document()} if guest else {}))
        return 3 if warnings else 0
    rows = [
        (f.target, f.point, f.path.name, f.backing or "-", format_size(f.virtual_size), format_size(f.written_bytes))
        for f in done.files
    ]
    beside = [(f.kind, done.point, f"{f.restored.parent.name}/{f.restored.name}", f.size) for f in done.boot_files]
    rows += [(kind, point, name, "-", format_size(size), format_size(size)) for kind, point, name, size in beside]
    folder, took = clean(str(done.files[0].path.parent)), format_duration(done.duration_seconds)
    say(f"{clean(last.domain)} up to {done.point} in {folder}, in {took}:")
    say(table(("DISK", "POINT", "FILE", "BACKING FILE", "SIZE", "WRITTEN"), rows, right=("SIZE", "WRITTEN")))
    for line in guest.lines() if guest else ():
        say(clean(line))
    for warning in (*last.warnings, *warnings):
        warn(warning)
    return 3 if warnings else 0
