"""Retention: which of a guest's restore points stay. Pure: no clock, no store, no order of input matters."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from vmbackup.errors import UsageError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = timedelta(days=1)  # since the epoch: a calendar ends at year 1, and a point may claim to be of then

_PERIODS: dict[str, Callable[[datetime], object]] = {
    "hourly": lambda local: (local.date(), local.hour, local.utcoffset()),  # the offset parts autumn's doubled hour
    "daily": lambda local: local.date(),
    "weekly": lambda local: local.isocalendar()[:2],
    "monthly": lambda local: (local.year, local.month),
    "yearly": lambda local: local.year,
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How many points of each kind stay (None and 0: no such rule), for how long all do, and by whose calendar.

    Raises UsageError for less than none.
    """

    last: int | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    within: timedelta | None = None
    timezone: ZoneInfo

    def __post_init__(self) -> None:
        for word in ("last", *_PERIODS):
            if (getattr(self, word) or 0) < 0:
                raise UsageError(f"{word} cannot keep {getattr(self, word)} restore points", "use 0 or more")
        if (self.within or timedelta()) < timedelta():
            raise UsageError("within cannot be less than no time", "use a duration like 7d")

    @property
    def none(self) -> bool:
        """Whether there is no rule at all."""
        return not any(getattr(self, word) for word in ("last", *_PERIODS, "within"))


@dataclass(frozen=True)
class Candidate:
    """A restore point: its id (hashable, unique, comparable with the others'), its aware time, whether it is good.

    `good`: it can be restored, as far as is known. Raises ValueError for a time without an offset.
    """

    id: Any
    time: datetime
    good: bool

    def __post_init__(self) -> None:
        _since_epoch(self.time)


@dataclass(frozen=True)
class Decision:
    """What becomes of a candidate: it is kept for `reasons`, and forgotten if there are none."""

    candidate: Candidate
    reasons: tuple[str, ...]

    @property
    def kept(self) -> bool:
        """Whether it stays."""
        return bool(self.reasons)


def select(candidates: Iterable[Candidate], rules: Rules, now: datetime, *, allow_last: bool = False) -> list[Decision]:
    """Decide about the points of one domain, newest first (of the same time: the higher id first).

    `now` is the store's time: a host's clock that runs ahead must not age every point of the repository.

    - `last` keeps the newest N points; `hourly` to `yearly` keep the newest point of each of the newest N periods
      that have one. A period without a point is not counted, as in restic, borg and Proxmox Backup Server: a guest
      that was off for a month still has its N days afterwards, where counting by the calendar would have left one.
    - Each rule counts for itself, as in restic: a point may be kept by several. (borg and PBS let a rule pass over
      what an earlier one kept, so that what `daily = 7` means depends on `hourly`.)
    - `within` keeps every point that is not older than that, counted back from `now`.
    - Periods are those of the calendar in `rules.timezone`; weeks are ISO's, from Monday. Hours are absolute ones,
      labelled by local time: the hour that comes twice in autumn is two, the one that is skipped in spring none.
      Days of 23 and 25 hours are days.
    - A point that is not good takes no place of a good one: N counts periods with a good point, and the newest good
      one stands for them. A period with none keeps its newest, if it is among the newest N of all periods.
    - A point of the future (a clock ran ahead) is kept, and counts for nothing.
    - With no rule at all everything stays.
    - The newest good point that is not of the future stays whatever the rules say, unless `allow_last`.

    A reason is a rule and the place that the point takes in it, counted from the newest ("last 1", "daily 3"; no
    number for a point that is not good, as it takes none), "within 7d", "in the future", "no rule" or "newest good".
    """
    time_now = _since_epoch(now)
    ordered = sorted(candidates, key=lambda c: (_since_epoch(c.time), c.id), reverse=True)
    reasons: dict[Any, list[str]] = {candidate.id: [] for candidate in ordered}
    past = [c for c in ordered if _since_epoch(c.time) <= time_now]
    for candidate in ordered[: len(ordered) - len(past)]:
        reasons[candidate.id].append("in the future")
    if rules.none:
        for candidate in past:
            reasons[candidate.id].append("no rule")
    _take_places("last", rules.last, past, [candidate.id for candidate in past], reasons)
    local = [_local(candidate.time, rules.timezone) for candidate in past]
    for word, period in _PERIODS.items():
        _take_places(word, getattr(rules, word), past, [period(time) for time in local], reasons)
    if rules.within:
        for candidate in past:
            if time_now - _since_epoch(candidate.time) <= rules.within:
                reasons[candidate.id].append(f"within {_shown(rules.within)}")
    newest_good = next((c for c in past if c.good), None)
    if newest_good and not reasons[newest_good.id] and not allow_last:
        reasons[newest_good.id].append("newest good")
    return [Decision(candidate, tuple(reasons[candidate.id])) for candidate in ordered]


def _take_places(
    word: str, places: int | None, points: list[Candidate], periods: list[Any], reasons: dict[Any, list[str]]
) -> None:
    """Give the reason `word` to the points, newest first, that stand for the newest of their periods."""
    newest: dict[Any, Candidate] = {}
    newest_good: dict[Any, Candidate] = {}
    for period, point in zip(periods, points, strict=True):
        newest.setdefault(period, point)
        if point.good:
            newest_good.setdefault(period, point)
    for place, point in enumerate(islice(newest_good.values(), places or 0), 1):
        reasons[point.id].append(f"{word} {place}")
    for period, point in islice(newest.items(), places or 0):
        if period not in newest_good:
            reasons[point.id].append(word)


def _since_epoch(time: datetime) -> timedelta:
    """A time to compare by: datetimes of one zone compare by their wall clocks, wrong in autumn's doubled hour."""
    if time.utcoffset() is None:
        raise ValueError(f"the time {time} has no offset")
    return time - _EPOCH


def _local(time: datetime, zone: ZoneInfo) -> datetime:
    return (_EPOCH + max(_since_epoch(time), _EARLIEST)).astimezone(zone)


def _shown(duration: timedelta) -> str:
    """As the configuration writes it: "7d", "26h"."""
    seconds = duration // timedelta(seconds=1)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
