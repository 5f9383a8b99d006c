"""Times and ages as they are read at a glance, and how an age stands to its promise."""

import math
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_CLOSE = 0.95  # of the promise
_WEEK = 6.5 * _DAY  # within it a weekday names one day only
_YEAR = 300 * _DAY  # within it a day and month do


class Standing(Enum):
    """How something stands to its promise, worst first: the word, and its colour."""

    BROKEN = ("BROKEN", "bold red")
    NEVER = ("NEVER", "bold red")
    CLOSE = ("close", "bold yellow")
    NEW = ("not yet", "")
    KEPT = ("kept", "green")
    NONE = ("-", "")

    @property
    def word(self) -> str:
        """The word, so that nothing hangs on colour alone."""
        return self.value[0]

    @property
    def style(self) -> str:
        """For rich."""
        return self.value[1]

    @property
    def bad(self) -> bool:
        """Whether the promise does not hold."""
        return self in (Standing.BROKEN, Standing.NEVER)


@dataclass(frozen=True)
class Age:
    """How old something is, and how old it was promised to be at most; seconds, None: never, and nothing promised.

    `soon`: it breaks before anything is done about it. `new`: it was never done, and was not promised until now.
    """

    seconds: float | None
    promise: float | None
    soon: bool = False
    new: bool = False

    @classmethod
    def first(cls, time: str | None, promise: float | None, now: datetime, since: str | None) -> "Age":
        """The age of what is asked for since a time: it may be missing for as long as it may be old. ISO 8601."""
        found = cls.of(time, promise, now)
        if time is not None or since is None or promise is None:
            return found
        return replace(found, new=(now - datetime.fromisoformat(since)).total_seconds() <= promise)

    @classmethod
    def of(cls, time: str | None, promise: float | None, now: datetime, following: str | None = None) -> "Age":
        """The age of what was done at `time`, and is done again at `following`; ISO 8601."""
        if time is None:
            return cls(None, promise)
        done = datetime.fromisoformat(time)
        age = max(0.0, (now - done).total_seconds())
        wait = (datetime.fromisoformat(following) - done).total_seconds() if following else 0.0
        return cls(age, promise, soon=promise is not None and wait > promise)

    @property
    def standing(self) -> Standing:
        """How it stands."""
        if self.promise is None:
            return Standing.NONE
        if self.seconds is None:
            return Standing.NEW if self.new else Standing.NEVER
        if self.seconds > self.promise:
            return Standing.BROKEN
        return Standing.CLOSE if self.soon or self.seconds > _CLOSE * self.promise else Standing.KEPT

    @property
    def share(self) -> float:
        """The age as a part of the promise, to sort by."""
        return (self.seconds or 0.0) / self.promise if self.promise else 0.0

    def text(self) -> str:
        """Both in one unit, as in "31.2 of 26 h": rounded so that a broken promise never looks kept."""
        if self.promise is None:
            return "-" if self.seconds is None else span(self.seconds)
        unit, name = _unit(self.promise)
        promise = f"{self.promise / unit:.3g} {name}"
        if self.seconds is None:
            return f"none of {promise}"
        tenths = self.seconds / unit * 10
        rounded = math.ceil(tenths) if self.standing is Standing.BROKEN else math.floor(tenths)
        return f"{rounded / 10:g} of {promise}" if rounded < 1000 else f"{rounded // 10} of {promise}"


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 2 * _MINUTE:
        return 1.0, "s"
    if seconds < 2 * _HOUR:
        return _MINUTE, "min"
    return (_HOUR, "h") if seconds < 3 * _DAY else (_DAY, "d")


def span(seconds: float) -> str:
    """A duration in one unit: "45 s", "12 min", "31 h", "9 d"."""
    unit, name = _unit(seconds)
    return f"{int(seconds / unit)} {name}"


def ago(time: str, now: datetime) -> str:
    """How long ago that was."""
    return f"{span(max(0.0, (now - datetime.fromisoformat(time)).total_seconds()))} ago"


def short_time(time: str | None, now: datetime) -> str:
    """As short as it is still clear, in this machine's zone: "02:04", "Tue 02:04", "24 Nov", "2024-11-24"."""
    if time is None:
        return "-"
    here, today = datetime.fromisoformat(time).astimezone(), now.astimezone()
    far = abs((today - here).total_seconds())
    if here.date() == today.date():
        return f"{here:%H:%M}"
    if far < _WEEK:
        return f"{here:%a %H:%M}"
    return f"{here.day} {here:%b}" if far < _YEAR else f"{here:%Y-%m-%d}"


def long_time(time: str | None) -> str:
    """With weekday and date: "Tue 2026-11-24 02:04"."""
    return f"{datetime.fromisoformat(time).astimezone():%a %Y-%m-%d %H:%M}" if time else "-"
