"""What is in quarantine, as JSON and for people."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmbackup.repository.quarantine import Quarantined


def quarantined_document(found: Sequence["Quarantined"]) -> list[dict[str, str | None]]:
    """For JSON documents."""
    return [
        {"id": q.id, "domain": q.domain or None, "time": q.time.isoformat(), "writer": q.writer, "problem": q.problem}
        for q in found
    ]


def warn_of_quarantined(found: Sequence["Quarantined"]) -> None:
    """A line each, on standard error, and what to do."""
    from vmbackup.cli.output import warn

    for one in found:
        warn(f"in quarantine: {one.id}, {one.problem}; {one.hint}")
