"""Forgetting restore points: which ones, and the trash that says so for good."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from vmbackup.errors import UsageError
from vmbackup.repository import tombstones
from vmbackup.repository.layout import Lineage
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList, Repository, newest
from vmbackup.repository.retention import Candidate, Rules, select


@dataclass(frozen=True)
class Verdict:
    """A restore point, and why it stays; with no reason it is forgotten."""

    point: Point
    reasons: tuple[str, ...]


def by_policy(points: Iterable[Point], rules: Rules, now: datetime, *, allow_last: bool = False) -> list[Verdict]:
    """What becomes of each point, the history of each guest for itself; newest first.

    `now` is the store's time. The head of a history stays as the newest good point does: the next backup builds on it,
    and by a clock that ran behind it may look old.
    """
    histories: dict[Lineage, list[Point]] = {}
    for point in points:
        histories.setdefault(point.lineage, []).append(point)
    verdicts = []
    for history in histories.values():
        head = newest(history)
        known = {point.session: point for point in history}
        candidates = [Candidate(point.session, point.time, good=True) for point in history]
        for decision in select(candidates, rules, now, allow_last=allow_last):
            point, reasons = known[decision.candidate.id], decision.reasons
            if point is head and not reasons and not allow_last:
                reasons = ("newest",)
            verdicts.append(Verdict(point, reasons))
    return verdicts


def by_name(found: PointList, named: Sequence[Point], *, allow_last: bool = False) -> list[Verdict]:
    """These points, and no others. Raises UsageError where a guest would lose its last one."""
    gone = {point.session for point in named}
    for point in named:
        left = [p for p in found.points if p.lineage == point.lineage and p.session not in gone]
        if not left and not allow_last:
            raise UsageError(
                f"'{point.domain}' would have no restore point left",
                "leave one out, or add --allow-last to erase all that is stored of it",
            )
    return [Verdict(point, ()) for point in {point.session: point for point in named}.values()]


def forget(repository: Repository, verdicts: Iterable[Verdict], twins: Iterable[Point] = ()) -> int:
    """Forgets what has no reason to stay, oldest first, and its twins; gives the number. A prune frees the space."""
    doomed = sorted((v.point for v in verdicts if not v.reasons), key=lambda point: (point.time, point.session))
    names = {(point.lineage, point.origin) for point in doomed}
    for twin in twins:
        if (twin.lineage, twin.origin) in names:
            tombstones.forget(repository, twin.lineage, twin.session)
    for point in doomed:
        tombstones.forget(repository, point.lineage, point.session)
    return len(doomed)
