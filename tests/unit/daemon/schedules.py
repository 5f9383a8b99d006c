"""Schedules made at random, and a cron that is watched for years: what the timetable is compared with."""

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache

_NAMES = {
    name: number
    for names, low in (("jan feb mar apr may jun jul aug sep oct nov dec", 1), ("sun mon tue wed thu fri sat", 0))
    for number, name in enumerate(names.split(), low)
}
_HOUR = timedelta(hours=1)
_BOUNDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_LETTERS = {3: "jan feb mar apr may jun jul aug sep oct nov dec".split(), 4: "sun mon tue wed thu fri sat".split()}


def epoch(text: str, zone: tzinfo = UTC) -> float:
    """Of an ISO time, by the clock of the zone unless it has an offset."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


def random_schedule(chance: random.Random) -> str:
    """Five fields of all forms, mostly sparse."""
    wild = (0.05, 0.25, 0.6, 0.7, 0.6)
    return " ".join("*" if chance.random() < wild[place] else _field(chance, place) for place in range(5))


def _field(chance: random.Random, place: int) -> str:
    return ",".join(_part(chance, place) for _ in range(chance.choice((1, 1, 1, 2, 3))))


def _part(chance: random.Random, place: int) -> str:
    low, high = _BOUNDS[place]
    first, last = sorted((chance.randint(low, high), chance.randint(low, high)))
    step = chance.randint(1, max(2, (high - low) // 2))
    if place in _LETTERS and chance.random() < 0.3:
        return chance.choice(_LETTERS[place])
    span = f"{first}-{last}" if first < last else f"{first}"  # croniter takes 3-3 for all
    return chance.choice((f"{first}", f"{first}", span, f"{span}/{step}" if first < last else span, f"*/{step}"))


class Cron:
    """A schedule, read in another way than the program does: a number fits a field if one of its parts allows it."""

    def __init__(self, schedule: str) -> None:
        words = schedule.lower().split()
        minutes, self.hours, self.days, self.months, weekdays = (
            [_fits(word, number, *bounds) for number in range(60)]
            for word, bounds in zip(words, _BOUNDS, strict=True)
        )
        self.minutes_of_hour = [timedelta(minutes=number) for number in range(60) if minutes[number]]
        self.weekdays = [weekdays[0] or weekdays[7], *weekdays[1:7]]
        self.star = [word[0] == "*" for word in words]
        self.every_hour = all(self.hours[:24])

    def day(self, day: date) -> bool:
        """Vixie: where neither day nor weekday begins with a star, one is enough."""
        one, other = self.days[day.day], self.weekdays[(day.weekday() + 1) % 7]
        return self.months[day.month] and (one and other if self.star[2] or self.star[4] else one or other)

    def watched(self, zone: tzinfo, start: float, end: float, step: int = 60) -> list[float]:
        """All its firings in (start, end], by watching the zone's clock, which changes every `step` minutes at most."""
        seen: set[datetime] = set()
        fired: set[float] = set()
        before: datetime | None = None
        for block, shown in clock(zone, int(start) - 86400, int(end) + 1, step):
            if before is not None and shown > before and not self.every_hour and any(self.fits(before, shown)):
                fired.add(block)
            for wall in self.fits(shown, shown + timedelta(minutes=step)):
                if wall not in seen or self.star[1] or self.every_hour:
                    fired.add(block + (wall - shown).total_seconds())
                seen.add(wall)
            before = shown + timedelta(minutes=step)
        return sorted(time for time in fired if start < time <= end)

    def fits(self, first: datetime, end: datetime) -> Iterator[datetime]:
        """The minutes from first to end that it means."""
        hour = first.replace(minute=0)
        while hour < end:
            if self.hours[hour.hour] and self.day(hour.date()):
                yield from (wall for wall in map(hour.__add__, self.minutes_of_hour) if first <= wall < end)
            hour += _HOUR


@lru_cache(maxsize=8)
def clock(zone: tzinfo, start: int, end: int, step: int) -> list[tuple[float, datetime]]:
    """What the zone's clock shows every `step` minutes."""
    return [
        (time, datetime.fromtimestamp(time, zone).replace(tzinfo=None)) for time in range(start, end, 60 * step)
    ]


def _fits(word: str, number: int, low: int, high: int) -> bool:
    return any(_part_fits(part, number, low, high) for part in word.split(","))


def _part_fits(part: str, number: int, low: int, high: int) -> bool:
    span, _, step = part.partition("/")
    first, _, last = span.partition("-")
    if span == "*":
        first, last = str(low), str(high)
    begin = _NAMES.get(first) if first in _NAMES else int(first)
    end = _NAMES.get(last) if last in _NAMES else int(last) if last else high if step else begin
    return begin <= number <= end and (number - begin) % int(step or 1) == 0
