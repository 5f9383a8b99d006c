"""When a job is due: five fields as in crontab(5), a nickname, or "@every DURATION"."""

from typing import NamedTuple

from vmbackup.config.units import InvalidValue, parse_duration

_NICKNAMES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


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


def check_schedule(text: str) -> str:
    """The schedule as given, if it is one that comes due at some time; else InvalidValue."""
    words = text.split()
    if not words:
        raise InvalidValue("the schedule is empty", _HINT)
    if words[0] == "@every":
        if len(words) != 2:
            raise InvalidValue(f"{text!r} is not a schedule", 'write "@every 15m"')
        parse_duration(words[1])
        return text
    if words[0].startswith("@"):
        if text.strip() not in _NICKNAMES:
            hint = f"use one of {', '.join(_NICKNAMES)}, @every 15m"
            raise InvalidValue(f"{text!r} is not a schedule", hint)
        return text
    if len(words) != len(_FIELDS):
        raise InvalidValue(f"{text!r} has {len(words)} fields, a schedule has 5", _HINT)
    sets = [_values(word, field) for word, field in zip(words, _FIELDS, strict=True)]
    if words[4].startswith("*") and not any(min(sets[2]) <= _LONGEST_MONTH[month - 1] for month in sets[3]):
        raise InvalidValue(f"{text!r} never comes due: no such day in that month", _HINT)
    return text


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
