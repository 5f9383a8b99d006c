"""When a job is due: five fields as in crontab(5), a nickname, or "@every DURATION"."""

from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from itertools import pairwise
from math import inf
from typing import NamedTuple

from vmbackup.config.units import InvalidValue, parse_duration

_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_HOURS = 24
_DAY = 1440  # minutes
# Days that are looked through for pauses: every 29 February and each weekday that it may be.
_FIRST_DAY, _LAST_DAY = date(2000, 1, 1).toordinal(), date(2041, 1, 1).toordinal()


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()  # of the numbers from `low` on


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _WEEKDAYS),  # 0 and 7 are Sunday
)
_HINT = 'write "minute hour day month weekday" as in crontab(5), @hourly, @daily ..., or "@every 15m"'


@dataclass(frozen=True)
class Every:
    """Due at the multiples of so many seconds since the epoch, so that a restart changes nothing."""

    seconds: int


@dataclass(frozen=True)
class Calendar:
    """Due at each of `minutes` (of the day, ascending) of the days that it means. Weekdays: 0 is Sunday, 6 Saturday.

    `either`: day and weekday are both restricted, and one of them is enough. As Vixie's cron has it, a field that
    begins with `*` is unrestricted, `*/2` too: then a day must fit both. `real_time`: the hour field begins with `*`
    or names all hours, so that every real hour counts, also one that the clock shows twice. `every_hour`: of the day.
    """

    minutes: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    either: bool
    real_time: bool
    every_hour: bool

    def means(self, day: date) -> bool:
        """Whether it comes due on that day."""
        if day.month not in self.months:
            return False
        fits = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return any(fits) if self.either else all(fits)

    @property
    def possible(self) -> bool:
        """Whether there is such a day at all."""
        return self.either or any(min(self.days) <= _LONGEST_MONTH[month - 1] for month in self.months)


def check_schedule(text: str) -> str:
    """The schedule as given, if it is one that comes due at some time; else InvalidValue."""
    parse_schedule(text)
    return text


@lru_cache(maxsize=1024)  # a schedule is asked for its next time again and again
def parse_schedule(text: str) -> Calendar | Every:
    """What the schedule means; InvalidValue if it is none, or one that never comes due."""
    words = text.split()
    if not words:
        raise InvalidValue("the schedule is empty", _HINT)
    if words[0] == "@every":
        if len(words) != 2:
            raise InvalidValue(f"{text!r} is not a schedule", 'write "@every 15m"')
        return Every(int(parse_duration(words[1]).total_seconds()))
    if words[0].startswith("@"):
        if text.strip() not in _NICKNAMES:
            hint = f"use one of {', '.join(_NICKNAMES)}, @every 15m"
            raise InvalidValue(f"{text!r} is not a schedule", hint)
        words = _NICKNAMES[text.strip()].split()
    if len(words) != len(_FIELDS):
        raise InvalidValue(f"{text!r} has {len(words)} fields, a schedule has 5", _HINT)
    calendar = _calendar(words)
    if not calendar.possible:
        raise InvalidValue(f"{text!r} never comes due: no such day in that month", _HINT)
    return calendar


@lru_cache(maxsize=1024)
def pauses(text: str) -> tuple[float, float]:
    """The shortest and the longest time between two that the schedule comes due, in seconds; infinite for a single one.

    By the calendar: where the clock is changed they vary by that.
    """
    schedule = parse_schedule(text)
    if isinstance(schedule, Every):
        return schedule.seconds, schedule.seconds
    days = [day for day in range(_FIRST_DAY, _LAST_DAY) if schedule.means(date.fromordinal(day))]
    minutes = schedule.minutes
    found = {later - earlier for earlier, later in pairwise(minutes)} if days else set()
    found |= {minutes[0] + _DAY * (later - earlier) - minutes[-1] for earlier, later in pairwise(days)}
    return (60.0 * min(found), 60.0 * max(found)) if found else (inf, inf)


def _calendar(words: list[str]) -> Calendar:
    minutes, hours, days, months, weekdays = (
        _values(word, field) for word, field in zip(words, _FIELDS, strict=True)
    )
    return Calendar(
        minutes=tuple(60 * hour + minute for hour in sorted(hours) for minute in sorted(minutes)),
        days=frozenset(days),
        months=frozenset(months),
        weekdays=frozenset(weekday % 7 for weekday in weekdays),
        either=not words[2].startswith("*") and not words[4].startswith("*"),
        real_time=words[1].startswith("*") or len(hours) == _HOURS,
        every_hour=len(hours) == _HOURS,
    )


def _values(text: str, field: _Field) -> set[int]:
    """The numbers that one crontab field stands for: lists of "*", N, N-M, each with an optional /STEP."""
    values: set[int] = set()
    for part in text.lower().split(","):
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if slash and not (step.isdecimal() and int(step) > 0):
            raise InvalidValue(f"{part!r} is not a {field.name} of a schedule", _HINT)
        if span == "*":
            start, end = field.low, field.high
        else:
            start = _number(first, part, field)
            end = _number(last, part, field) if dash else field.high if slash else start
        if start > end:
            raise InvalidValue(f"{part!r} runs backwards in the {field.name} of a schedule", _HINT)
        values.update(range(start, end + 1, int(step) if slash else 1))
    return values


def _number(word: str, part: str, field: _Field) -> int:
    if word in field.names:
        return field.low + field.names.index(word)
    if not word.isdecimal():
        raise InvalidValue(f"{part!r} is not a {field.name} of a schedule", _HINT)
    if not field.low <= int(word) <= field.high:
        told = f"outside {field.low}-{field.high}, the {field.name} of a schedule"
        raise InvalidValue(f"{part!r} is {told}", _HINT)
    return int(word)
