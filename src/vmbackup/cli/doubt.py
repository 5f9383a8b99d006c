"""Restore points that are doubtful, as JSON and for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmbackup.engine.care.estate import Garbage
    from vmbackup.repository.doubt import Doubtful

_MOST_NAMES = 8  # of garbage: more are counted, not listed
GARBAGE_ADVICE = "delete it with an access key that may; it counts for nothing meanwhile"


def doubtful_document(found: Sequence["Doubtful"]) -> list[dict[str, str]]:
    """For JSON documents."""
    return [
        {"id": d.id, "domain": d.domain, "time": d.time.isoformat(), "writer": d.writer, "problem": d.problem}
        for d in found
    ]


def warn_of_doubtful(found: Sequence["Doubtful"]) -> None:
    """A line each, on standard error, and what to do."""
    from vmbackup.cli.output import warn

    for one in found:
        warn(f"doubtful: {one.id} of '{one.domain}', {one.problem}; {one.hint}")


def warn_of_garbage(found: Sequence["Garbage"]) -> None:
    """A line each of the first, on standard error, and what to do."""
    from vmbackup.cli.output import clean, counted, warn

    for one in found[:_MOST_NAMES]:
        warn(f"garbage: {clean(one.object)} {clean(one.problem)}; {GARBAGE_ADVICE}")
    if len(found) > _MOST_NAMES:
        warn(f"{counted(len(found) - _MOST_NAMES, 'more object')} of garbage: --json names them all")
