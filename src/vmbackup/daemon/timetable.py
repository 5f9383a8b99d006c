"""When schedules come due: pure functions of a schedule, a time zone and a time. Times are seconds since the epoch.

What a schedule means is crontab(5), after Vixie's cron (config/schedule.py). What is ours is how the clock's changes
are met:
- A time that the clock skips in spring comes due right after the gap, once however many were skipped. Not where the
  schedule means every hour: the next hour is soon enough.
- A time that comes twice in autumn comes due the first time only; both times where the hour field begins with `*` or
  names all hours, for such a schedule follows real hours.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from datetime import MAXYEAR, date, datetime, timedelta, tzinfo
from itertools import islice
from math import inf

from vmbackup.config.schedule import Calendar, Every, parse_schedule

# Years to look ahead. A 29 February that must be a Sunday is up to 40 years away (2088 to 2128): no date is rarer.
_HORIZON = 41
_DAY = timedelta(days=1)
_DAY_SECONDS = 86400
_FRACTION_BITS = 48  # of the hash: exact as a float, and finer than a millisecond in a window of years


def next_run(schedule: str, zone: tzinfo, after: float) -> float | None:
    """The first time strictly after `after` that the schedule comes due; None where it never does.

    `schedule` is one that `check_schedule` accepts; `zone` that of its calendar, of no matter to "@every".
    """
    parsed = parse_schedule(schedule)
    if isinstance(parsed, Every):
        return float((after // parsed.seconds + 1) * parsed.seconds)
    best, best_day = inf, date.max
    for day in _days(parsed, datetime.fromtimestamp(after, zone).date() - _DAY):
        if day > best_day:  # the day after was looked at too: around midnight the clock can go back into a day before
            break
        found = _first(parsed, day, zone, after)
        if found < best:
            best, best_day = found, min(best_day, day + _DAY)
    return best if best < inf else None


def offset(job: str, domain: str, window: float) -> float:
    """Seconds into the window (0 <= offset < window) at which the domain starts: by a hash, so always the same.

    Ages of restore points stay regular that way; a delay drawn at each firing would make them vary by the window.
    """
    digest = hashlib.sha256(f"{job}\0{domain}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[: _FRACTION_BITS // 8], "big") / (1 << _FRACTION_BITS) * window


def last_due(schedule: str, zone: tzinfo, offset: float, since: float, now: float) -> float | None:
    """The newest time the schedule came due whose start (that time + `offset`) is in (since, now]; None without one.

    So after a downtime one run makes up for all that were missed.
    """
    newest = next_run(schedule, zone, since - offset - 1)  # a second early: the sum below decides, not its rounding
    while newest is not None and newest + offset <= since:
        newest = next_run(schedule, zone, newest)
    if newest is None or newest + offset > now:
        return None
    high = now - offset
    while True:  # halves what is left: `newest` has come due, nothing does after `high`
        following = next_run(schedule, zone, newest)
        if following is None or following + offset > now:
            return newest
        middle = (newest + high) / 2
        later = next_run(schedule, zone, middle)
        if later is None or later + offset > now:
            newest, high = following, middle
        else:
            newest = later


def _days(calendar: Calendar, start: date) -> Iterator[date]:
    """The days that the calendar means from `start` on, as far as the horizon."""
    first = start.year * 12 + start.month - 1
    for number in range(first, min(first + 12 * _HORIZON, 12 * MAXYEAR)):
        year, month = divmod(number, 12)
        if month + 1 not in calendar.months:
            continue
        day = max(start, date(year, month + 1, 1))
        while day.month == month + 1:
            if calendar.means(day):
                yield day
            day += _DAY


def _first(calendar: Calendar, day: date, zone: tzinfo, after: float) -> float:
    """The first time after `after` that belongs to the day; infinite without one."""
    begin, end = _instants(day, 0, zone), _instants(day + _DAY, 0, zone)
    if len(begin) == len(end) == 1 and end[0] - begin[0] == _DAY_SECONDS:  # the clock is not changed on that day
        later = bisect_right(calendar.minutes, (after - begin[0]) / 60)
        return next((begin[0] + 60 * minute for minute in islice(calendar.minutes, later, None)), inf)
    return min((time for time in _changed(calendar, day, zone) if time > after), default=inf)


def _changed(calendar: Calendar, day: date, zone: tzinfo) -> Iterator[float]:
    """All times that belong to a day on which the clock is changed, in no order."""
    for minute in calendar.minutes:
        found = _instants(day, minute, zone)
        if not found:
            if not calendar.every_hour:
                yield _end_of_gap(day, minute, zone)
        elif calendar.real_time:
            yield from found
        else:
            yield found[0]


def _instants(day: date, minute: int, zone: tzinfo) -> tuple[float, ...]:
    """When the clock shows that minute of the day: once as a rule; never, or twice in order, where it is changed."""
    first, second = _readings(day, minute, zone)
    if first == second:
        return (first,)
    return (first, second) if first < second else ()


def _readings(day: date, minute: int, zone: tzinfo) -> tuple[float, float]:
    """The minute by the clock as it is before a change on that day, and as it is after (PEP 495)."""
    shown = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=zone)
    return shown.timestamp(), shown.replace(fold=1).timestamp()


def _end_of_gap(day: date, minute: int, zone: tzinfo) -> float:
    """The first second after the gap that skips this minute."""
    late, early = (int(reading) for reading in _readings(day, minute, zone))
    before = datetime.fromtimestamp(early, zone).utcoffset()
    while late - early > 1:  # `early` is before the change, `late` after it
        middle = (early + late) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            early = middle
        else:
            late = middle
    return float(late)
