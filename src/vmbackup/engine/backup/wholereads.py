"""When a disk was last read whole, and whether it is time to do so again (`reread_every`): change trackers lie too."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord

REASON = "scheduled"
# A reading this far ahead of the clock is another clock's; one further ahead is of a time that never was.
_SKEW = timedelta(hours=1)


def last_whole_read(points: Iterable[Point], newest: Point | None, disk: str) -> datetime | None:
    """The time of the last point that read the disk of that name whole; None where nothing tells, or there is none.

    A point says it itself; before that was recorded, what its listed parents did tells.
    """
    parents = {point.session: point for point in points}
    point = newest
    while point is not None:
        record = next((each for each in point.disks if each.name == disk), None)
        if record is None:
            return None
        if record.mode != "incremental":
            return point.time
        if (told := _told(record)) is not None:
            return told
        point = parents.pop(point.parent, None) if point.parent else None  # once each: what it says may be a ring
    return None


def scheduled(points: Iterable[Point], newest: Point | None, every: timedelta | None) -> dict[str, str]:
    """The disks of the newest restore point that are to be read whole now (unless told otherwise), with the reason."""
    if newest is None or every is None:
        return {}
    now = _now()
    return {
        disk.target: REASON
        for disk in newest.disks
        if is_due(last_whole_read(points, newest, disk.name), newest.time, now, every)
    }


def is_due(last: datetime | None, newest: datetime, now: datetime, every: timedelta) -> bool:
    """Whether a disk last read whole at `last` is to be read whole now; `newest`: the time of the newest point.

    At the run that is nearest to the end of the interval, taking the next to come as much later as this one is. In
    doubt it is read: also where the clock has jumped, so that the last reading lies in the future.
    """
    if last is None or last > now + _SKEW:
        return True
    since_newest = min(max(now - newest, timedelta()), every)
    return now + since_newest / 2 >= last + every


def _now() -> datetime:
    return datetime.now(UTC)


def _told(record: DiskRecord) -> datetime | None:
    try:
        time = datetime.fromisoformat(record.read_whole or "")
    except ValueError:
        return None
    return time if time.tzinfo else None
