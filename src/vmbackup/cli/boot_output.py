"""Booted guests, as JSON and for people."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vmbackup.cli.output import clean, local_time, table
from vmbackup.config.units import format_duration, format_size

if TYPE_CHECKING:
    from vmbackup.engine.boot.boot import BootSummary, ListedBoot
    from vmbackup.engine.boot.finish import FinishSummary

_STATES = {
    "running": "runs",
    "paused": "is paused",
    "error": "is paused: a disk cannot be read or written",
    "off": "is off",
    "gone": "is gone",
}


def booted_document(done: "BootSummary") -> dict[str, Any]:
    """The JSON document of `boot POINT`."""
    booted = done.booted
    return {
        "name": booted.name,
        "uuid": booted.uuid,
        "point": booted.point,
        "domain": booted.origin,
        "disks": [
            {"target": disk.target, "virtual_size": disk.size, "overlay": booted.overlay(disk.target)}
            for disk in booted.disks
        ],
        "duration_seconds": round(done.seconds, 3),
        "notes": list(done.notes),
        "warnings": list(done.warnings),
    }


def booted_text(done: "BootSummary") -> str:
    """What runs, and how it goes on."""
    booted = done.booted
    head = f"{booted.name} runs, from restore point {booted.point} of {booted.origin}"
    lines = [f"{head} ({format_duration(done.seconds)})"]
    lines += [f"  {note}" for note in done.notes]
    lines += [
        f"  'vmbackup boot --finish {booted.name}' moves it to local disks while it runs",
        f"  'vmbackup boot --discard {booted.name}' ends it and removes all of it",
    ]
    return "\n".join(clean(line) for line in lines)


def finished_document(done: "FinishSummary") -> dict[str, Any]:
    """The JSON document of `boot --finish`."""
    files = [
        {
            "target": disk.target,
            "path": str(disk.path),
            "format": "qcow2",
            "virtual_size": disk.virtual_size,
            "written_bytes": disk.written_bytes,
        }
        for disk in done.disks
    ]
    booted = done.booted
    return {
        "name": booted.name,
        "uuid": booted.uuid,
        "point": booted.point,
        "running": done.state == "running",
        "state": done.state,
        "files": files,
        "duration_seconds": round(done.seconds, 3),
        "warnings": [],
    }


def finished_text(done: "FinishSummary") -> str:
    """Where its disks are."""
    rows = [(d.target, str(d.path), format_size(d.virtual_size), format_size(d.written_bytes)) for d in done.disks]
    how = "runs" if done.state == "running" else f"is {done.state},"
    head = f"{done.booted.name} {how} and needs the repository no more, in {format_duration(done.seconds)}:"
    return f"{clean(head)}\n{table(('DISK', 'FILE', 'SIZE', 'WRITTEN'), rows, right=('SIZE', 'WRITTEN'))}"


def listed_document(found: Sequence["ListedBoot"]) -> dict[str, Any]:
    """The JSON document of `boot --list`."""
    return {
        "booted": [
            {
                "name": one.booted.name,
                "uuid": one.booted.uuid,
                "point": one.booted.point,
                "domain": one.booted.origin,
                "created": one.booted.created,
                "state": one.state,
                "served": one.served,
                "error": one.error,
                "phase": one.booted.phase,
                "output": one.booted.output,
                "overlay_bytes": one.overlay_bytes,
            }
            for one in found
        ]
    }


def listed_text(found: Sequence["ListedBoot"]) -> str:
    """A line a guest, and below it what is wrong and what mends it."""
    if not found:
        return "no guest hangs on a repository here"
    titles = ("GUEST", "RESTORE POINT", "OF", "BOOTED", "GUEST STATE", "SERVED", "WRITTEN")
    rows = [_row(one) for one in found]
    lines = [table(titles, rows, right=("WRITTEN",))]
    for one in found:
        name = one.booted.name
        if not one.served:
            why = f": {one.error}" if one.error else ""
            lines.append(f"{name} is not served{why}; 'vmbackup boot --start {name}' serves and starts it again")
        if one.booted.phase in ("finishing", "whole"):
            lines.append(f"{name} is on its way to {one.booted.output}: 'vmbackup boot --finish {name}' goes on")
        if one.booted.phase == "making":
            lines.append(f"the boot of {name} goes on, or was cut off: 'vmbackup boot --discard {name}' tidies up")
    return "\n".join([lines[0], *(clean(line) for line in lines[1:])])


def _row(one: "ListedBoot") -> tuple[str, ...]:
    booted = one.booted
    created = local_time(datetime.fromisoformat(booted.created), seconds=False)
    served = "yes" if one.served else "no"
    return (
        *(booted.name, booted.point, booted.origin, created),
        *(_STATES[one.state].removeprefix("is "), served, format_size(one.overlay_bytes)),
    )
