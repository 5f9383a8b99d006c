"""Copies of one restore point that lie beside each other, and restore points that only claim to be one another.

A copy that is proved may stand behind another: one with the signed original in it (kind COPY), or one that a reader
made of another realm's point. Anything else that shares a name with a point is a point of its own, whoever signed it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import Point
from vmbackup.repository.writers import Enrolment

READER = "reader"
_SKEW = timedelta(days=1)  # between the clocks of a host and of the machine that enrolled it


def is_copy(point: Point, writers: Mapping[bytes, Enrolment]) -> bool:
    """Whether it is proved to be a copy."""
    if point.original is not None:
        return True
    return point.copied_from is not None and by_reader(point, writers)


def by_reader(point: Point, writers: Mapping[bytes, Enrolment]) -> bool:
    """Whether a reader signed it."""
    writer = writers.get(point.writer)
    return writer is not None and writer.role == READER


def find(points: Iterable[Point], stored: Mapping[str, float], writers: Mapping[bytes, Enrolment]) -> dict[str, Point]:
    """The points that stand behind another, by their keys, and that other one. `stored`: the store's times, by key.

    A plain point stands behind nothing, and before all copies of it. Of copies a reader's comes first, then the one
    that was stored first: who steals a writer's key later can make none that comes before it. A copy stands behind
    one of a reader's, or of its own writer; what two other writers made may differ in what it holds.
    """
    of_one: dict[tuple[Lineage, object], list[Point]] = defaultdict(list)
    for point in points:
        of_one[point.lineage, _what(point, writers)].append(point)
    behind: dict[str, Point] = {}
    for members in of_one.values():
        best: dict[bytes, Point] = {}
        ordered = sorted(
            members, key=lambda p: (is_copy(p, writers), not by_reader(p, writers), stored.get(p.key, 0.0), p.session)
        )
        first = ordered[0]
        hides_all = not is_copy(first, writers) or by_reader(first, writers)
        for point in ordered:
            shown = first if hides_all else best.setdefault(point.writer, point)
            if shown is not point:
                behind[point.key] = shown
    return behind


def _what(point: Point, writers: Mapping[bytes, Enrolment]) -> object:
    """What a point and its proved copies have in common."""
    if point.original is not None:
        return point.original.digest
    told = point.copied_from
    if told is not None and by_reader(point, writers):
        return told["realm"], told["session"]
    return point.digest


def is_backdated(point: Point, writers: Mapping[bytes, Enrolment]) -> bool:
    """Whether it claims to be older than the key that signed it: a copy may be, a restore point cannot.

    The store's time of its commit would tell more, but a store that was moved has new times.
    """
    writer = writers.get(point.writer)
    if writer is None or writer.created is None or point.original is not None or point.copied_from is not None:
        return False
    begun = datetime.fromtimestamp(int.from_bytes(point.session[:6], "big") / 1000, UTC)
    return min(begun, point.time) < writer.created - _SKEW


def doubtful(points: Iterable[Point]) -> list[list[Point]]:
    """Restore points of one history that claim one origin, which no two runs ever have: at most one is genuine."""
    by_origin: dict[tuple[Lineage, bytes], list[Point]] = defaultdict(list)
    for point in points:
        by_origin[point.lineage, point.origin].append(point)
    return [members for members in by_origin.values() if len(members) > 1]
