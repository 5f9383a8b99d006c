"""Forgetting restore points: which ones, and the trash that says so for good."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from vmbackup.errors import DamageError, UsageError
from vmbackup.repository import damage, tombstones
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.layout import Lineage, SessionRef, short_id
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList, Repository, newest
from vmbackup.repository.retention import Candidate, Rules, select
from vmbackup.repository.stock import Stock
from vmbackup.repository.stray import is_table
from vmbackup.repository.twins import doubtful
from vmbackup.repository.usage import PackName, Reached, Usage


@dataclass(frozen=True)
class Verdict:
    """A restore point, and why it stays; with no reason it is forgotten."""

    point: Point
    reasons: tuple[str, ...]


def by_policy(
    points: Iterable[Point],
    rules: Rules,
    now: datetime,
    *,
    damaged: Container[bytes] = (),
    allow_last: bool = False,
    backdated: Iterable[Point] = (),
) -> list[Verdict]:
    """What becomes of each point, the history of each guest for itself; newest first.

    `now` is the store's time. The head of a history stays as the newest good point does: the next backup builds on it,
    and by a clock that ran behind it may look old. `damaged`: sessions of points that cannot be restored as they are;
    they take no place of a good one, and stay where they would if they were good: they may be healed, and whoever
    wrongly says that a point is damaged makes nobody forget it. Points that claim one origin stay until somebody has
    looked at them, and take no place: a forged one pushes no genuine one out. Nor does one of the `backdated`, which
    go as others do.
    """
    histories: dict[Lineage, list[Point]] = {}
    late = {point.key for point in backdated}
    for point in points:
        histories.setdefault(point.lineage, []).append(point)
    verdicts = []
    for history in histories.values():
        head = newest(history)
        unclear = {point.session for members in doubtful(history) for point in members}
        known = {point.session: point for point in history}
        bad = unclear | {point.session for point in history if point.key in late}
        sound = {p.session for p in history if p.session not in damaged}
        candidates = [Candidate(p.session, p.time, good=p.session in sound - bad) for p in history]
        as_good = _kept([replace(c, good=c.id not in bad) for c in candidates], rules, now)
        for decision in select(candidates, rules, now, allow_last=allow_last):
            point, reasons = known[decision.candidate.id], decision.reasons
            if point.session not in sound and not reasons and point.session in as_good:
                reasons = ("damaged",)
            if point is head and not reasons and not allow_last:
                reasons = ("newest",)
            if point.session in unclear:
                reasons = (*reasons, "doubtful")
            verdicts.append(Verdict(point, reasons))
    return verdicts


def _kept(candidates: Sequence[Candidate], rules: Rules, now: datetime) -> set[bytes]:
    return {d.candidate.id for d in select(candidates, rules, now, allow_last=True) if d.reasons}


def known_damaged(repository: Repository, points: Sequence[Point], suspects: Container[str] = ()) -> set[bytes]:
    """Sessions of the points that need something of which is known that it is damaged.

    By the repository's records of damage, pack by pack; and by their ids in `suspects`, which this host's last
    verification named. Maps are walked only where there is a record.
    """
    found = {point.session for point in points if point.id in suspects}
    for group in {point.lineage.group for point in points}:
        records = damage.read(repository.store, group).values()
        packs = {PackName(name.session, name.kind, name.number) for name in records}
        if packs:
            found |= _reaching(repository.catalog(group), [p for p in points if p.lineage.group == group], packs)
    return found


def _reaching(catalog: Catalog, points: Sequence[Point], packs: set[PackName]) -> set[bytes]:
    usage, reached = Usage(catalog), Reached(packs)
    needs = {point.session: [usage.of(point, record) for record in point.maps] for point in points}
    return {
        session
        for session, disks in needs.items()
        if any(reached.packs(need) or reached.errors(need) for need in disks)
    }


def by_name(found: PointList, named: Sequence[Point], *, allow_last: bool = False) -> list[Verdict]:
    """These points, and no others. Raises UsageError where a guest would lose its last one."""
    gone = {point.key for point in named}
    for point in named:
        left = [p for p in found.points if p.lineage == point.lineage and p.key not in gone]
        if not left and not allow_last:
            raise UsageError(
                f"'{point.domain}' would have no restore point left",
                "leave one out, or add --allow-last to erase all that is stored of it",
            )
    return [Verdict(point, ()) for point in {point.key: point for point in named}.values()]


def forget(repository: Repository, verdicts: Iterable[Verdict], found: PointList | None = None) -> int:
    """Forgets what has no reason to stay, oldest first, and the copies that stand behind it in `found`; their number.

    A prune frees the space.
    """
    doomed = sorted((v.point for v in verdicts if not v.reasons), key=lambda point: (point.time, point.session))
    keys = {point.key for point in doomed}
    for twin in found.twins if found else ():
        if found and found.twin_of[twin.key].key in keys:
            tombstones.forget(repository, twin.lineage, twin.session)
    for point in doomed:
        tombstones.forget(repository, point.lineage, point.session)
    return len(doomed)


def check_lost(
    repository: Repository, found: PointList, lineage: Lineage, session: bytes, gone: Container[bytes]
) -> None:
    """Whether a commit that cannot be read may be forgotten, beside the points of `gone` sessions.

    Raises UsageError for a table of moves that other points still need: its packs would be collected.
    """
    catalog = repository.new_catalog(lineage.group)
    if not is_table(catalog, lineage, session):
        return
    catalog.hold(table.move_table() for table in found.moves if table.lineage.group == lineage.group)
    left = [p for p in (*found.points, *found.twins) if p.lineage.group == lineage.group and p.session not in gone]
    suffering = [point.id for point in left if _lacks(catalog, point, lineage)]
    if suffering:
        raise UsageError(
            f"{short_id(session)} is no restore point but a lost table of moves, and {len(suffering)} restore points "
            "are read through it",
            "run 'vmbackup repair': it makes the table again, and ends this one",
        )


def _lacks(catalog: Catalog, point: Point, lineage: Lineage) -> bool:
    """Whether anything of a history that the point needs is not where it should be."""
    usage, stock = Usage(catalog), Stock(catalog)
    for record in point.maps:
        usage.of(point, record)
    if any(f"/{lineage.id.hex()}/" in (error.object_key or "") for error in usage.errors):
        return True
    refs = ((name, usage.sessions[name.session]) for name in usage.packs)
    return any(ref.lineage == lineage.id and _is_gone(catalog, stock, ref, name) for name, ref in refs)


def _is_gone(catalog: Catalog, stock: Stock, ref: SessionRef, name: PackName) -> bool:
    try:
        return bool(stock.problem(ref, catalog.entry(ref, name.kind, name.number)))
    except DamageError:
        return True
