"""What a restore made, told."""

from typing import TYPE_CHECKING, Any

from vmbackup.cli.options import State
from vmbackup.cli.output import clean, say, say_json, table, warn

if TYPE_CHECKING:
    from vmbackup.cli.define_options import DefinedGuest
    from vmbackup.engine.restore.boot_files import RestoredBootFile
    from vmbackup.engine.restore.flat import RestoreSummary
    from vmbackup.repository.points import Point


def tell(state: State, point: "Point", done: "RestoreSummary", guest: "DefinedGuest | None") -> int:
    """Prints it; gives the exit code."""
    warnings = [*done.warnings, *(guest.warnings if guest else ())]
    if state.json:
        _say_json(point, done, guest, warnings)
        return 3 if warnings else 0
    from vmbackup.config.units import format_duration, format_size

    rows = [
        (f.target, str(f.path), f.format, format_size(f.virtual_size), format_size(f.written_bytes)) for f in done.files
    ]
    rows += [(f.kind, str(f.restored), "-", format_size(f.size), format_size(f.size)) for f in done.boot_files]
    say(f"{clean(point.domain)} as of {done.point}, in {format_duration(done.duration_seconds)}:")
    say(table(("DISK", "FILE", "FORMAT", "SIZE", "WRITTEN"), rows, right=("SIZE", "WRITTEN")))
    for line in guest.lines() if guest else ():
        say(clean(line))
    for warning in (*point.warnings, *warnings):
        warn(warning)
    return 3 if warnings else 0


def boot_file_document(file: "RestoredBootFile") -> dict[str, Any]:
    """In JSON. `path`: where it was."""
    return {"path": file.path, "kind": file.kind, "restored": str(file.restored), "size": file.size}


def _say_json(
    point: "Point", done: "RestoreSummary", guest: "DefinedGuest | None", warnings: list[str]
) -> None:
    files = [
        {
            "target": file.target,
            "path": str(file.path),
            "format": file.format,
            "virtual_size": file.virtual_size,
            "written_bytes": file.written_bytes,
            "fetched_bytes": file.fetched_bytes,
        }
        for file in done.files
    ]
    duration = round(done.duration_seconds, 3)
    said = {"point": done.point, "files": files, "duration_seconds": duration, "warnings": warnings}
    said["point_warnings"] = list(point.warnings)
    said["boot_files"] = [boot_file_document(file) for file in done.boot_files]
    say_json(said | ({"domain": guest.document()} if guest else {}))
