"""What drills saw, as JSON and for people."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbackup.repository.drills import Drill


def drill_document(drill: "Drill") -> dict[str, Any]:
    """A record in JSON; `session` is that of the restore point."""
    seen = drill.seen
    return {
        "session": drill.session.hex(),
        "time": seen.time.isoformat(),
        "success": seen.success,
        "boot_seconds": seen.boot_seconds,
        "duration_seconds": seen.duration_seconds,
        "host": seen.host,
        "checks": [{"name": name, "success": good} for name, good in seen.checks],
        "problem": seen.problem,
    }


def drill_text(drill: "Drill") -> str:
    """A record in words: what came of it, how fast, when and where."""
    from vmbackup.cli.output import clean, local_time
    from vmbackup.config.units import format_duration

    seen = drill.seen
    where = f"{local_time(seen.time)} on {seen.host}"
    if not seen.success:
        return clean(f"FAILED {where}: {seen.problem}")
    booted = f"booted in {format_duration(seen.boot_seconds)}" if seen.boot_seconds is not None else "booted"
    held = f", {len(seen.checks)} checks held" if seen.checks else ""
    return clean(f"{booted}{held}, {where}")
