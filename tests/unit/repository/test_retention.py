"""What forget keeps: drawn point by point, at every border of the calendar, and by its properties."""

import random
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vmbackup.config.models import Keep
from vmbackup.config.units import parse_duration
from vmbackup.errors import UsageError
from vmbackup.repository.retention import Candidate, Rules, select

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata")


class Case(NamedTuple):
    """A drawing: a line a point with its local time, "bad" if it is not good, and after " : " why it is kept.

    The line of "now" is a point only if it is kept; with none, now is the time of the newest point.
    """

    says: str
    rules: str
    zone: str
    drawing: str


TABLE = [
    Case("last counts points", "last=2", "UTC", """
        2026-03-01 10:00
        2026-03-01 11:00 : last 2
        2026-03-02 10:00 : last 1
    """),
    Case("more places than points", "last=9 yearly=9", "UTC", """
        2026-03-01 10:00 : last 2
        2026-03-01 11:00 : last 1, yearly 1
    """),
    Case("the newest of a day stands for it", "daily=2", "UTC", """
        2026-02-28 23:00
        2026-03-01 00:00
        2026-03-01 23:59 : daily 2
        2026-03-02 00:00
        2026-03-02 09:00 : daily 1
    """),
    Case("a day without a point is not counted, nor is today", "daily=3", "UTC", """
        2025-11-07 09:00
        2026-01-01 09:00 : daily 3
        2026-02-01 09:00 : daily 2
        2026-02-02 09:00 : daily 1
        2026-03-30 12:00 now
    """),
    Case("each rule counts for itself", "last=1 hourly=2 daily=2 monthly=2", "UTC", """
        2026-02-27 09:00
        2026-02-28 09:00 : monthly 2
        2026-03-01 08:00 : daily 2
        2026-03-02 08:00
        2026-03-02 08:30 : hourly 2
        2026-03-02 09:00 : last 1, hourly 1, daily 1, monthly 1
    """),
    Case("within is by now, its border belongs to it", "within=7d", "UTC", """
        2026-03-02 11:59
        2026-03-02 12:00 : within 7d
        2026-03-03 00:00 bad : within 7d
        2026-03-09 10:00 : within 7d
        2026-03-09 12:00 now
    """),
    Case("within counts hours, not days of the calendar", "within=24h", "Europe/Berlin", """
        2026-03-28 11:59
        2026-03-28 12:00 : within 1d
        2026-03-29 13:00 now : within 1d
    """),
    Case("no rule forgets nothing", "", "UTC", """
        1999-01-01 00:00 : no rule
        2026-03-01 10:00 bad : no rule
        2026-03-01 11:00 : no rule
    """),
    Case("a rule of 0 is none", "last=0 daily=0", "UTC", """
        1999-01-01 00:00 : no rule
        2026-03-01 11:00 : no rule
    """),
    Case("a rule of 0 beside another keeps nothing", "last=0 daily=1", "UTC", """
        1999-01-01 00:00
        2026-03-01 11:00 : daily 1
    """),
    Case("the last good point stays, however old", "within=1d", "UTC", """
        2026-01-01 10:00
        2026-01-02 10:00 : newest good
        2026-01-03 10:00 bad
        2026-03-01 10:00 now
    """),
    Case("where none is good none is the last good", "within=1d", "UTC", """
        2026-01-01 10:00 bad
        2026-03-01 10:00 now
    """),
    Case("a point of the future stays, and takes no place", "last=1 daily=1", "UTC", """
        2026-03-01 10:00
        2026-03-02 10:00 : last 1, daily 1
        2026-03-02 10:01 now
        2026-03-02 10:02 : in the future
        2031-01-01 00:00 bad : in the future
    """),
    Case("a point of the future is not the last good one", "within=1d", "UTC", """
        2026-01-01 10:00 : newest good
        2026-03-02 10:01 now
        2026-03-02 10:02 : in the future
    """),
    Case("the future stays without rules too", "", "UTC", """
        2026-03-01 10:00 : no rule
        2026-03-02 10:00 now : no rule
        2026-03-03 10:00 : in the future
    """),
    Case("the newest good point stands for a day, however it goes on", "daily=2", "UTC", """
        2026-03-01 10:00 : daily 2
        2026-03-01 11:00 bad
        2026-03-02 10:00 : daily 1
        2026-03-02 11:00 bad
    """),
    Case("a day with no good point takes no place of a good one", "daily=2", "UTC", """
        2026-03-01 10:00
        2026-03-02 10:00 : daily 2
        2026-03-03 10:00 bad
        2026-03-03 11:00 bad : daily
        2026-03-04 10:00 : daily 1
    """),
    Case("nor do such days add up beyond N", "daily=2", "UTC", """
        2026-03-01 10:00 : daily 1
        2026-03-02 10:00 bad
        2026-03-03 10:00 bad : daily
        2026-03-04 10:00 bad : daily
    """),
    Case("last neither", "last=2", "UTC", """
        2026-03-01 10:00
        2026-03-01 11:00 : last 2
        2026-03-01 12:00 bad
        2026-03-01 13:00 bad : last
        2026-03-01 14:00 : last 1
    """),
    Case("Berlin's day is not UTC's", "daily=2", "Europe/Berlin", """
        2026-07-01 23:59
        2026-07-02 00:30
        2026-07-02 01:30 : daily 2
        2026-07-03 00:30 : daily 1
    """),
    Case("the hour that comes twice is two", "hourly=3", "Europe/Berlin", """
        2026-10-25 01:30
        2026-10-25 02:10+02:00
        2026-10-25 02:50+02:00 : hourly 3
        2026-10-25 02:10+01:00
        2026-10-25 02:50+01:00 : hourly 2
        2026-10-25 03:30 : hourly 1
    """),
    Case("last is by absolute time in it", "last=1", "Europe/Berlin", """
        2026-10-25 02:50+02:00
        2026-10-25 02:10+01:00 now : last 1
    """),
    Case("the hour that is skipped is none", "hourly=2", "Europe/Berlin", """
        2026-03-29 00:30
        2026-03-29 01:30 : hourly 2
        2026-03-29 03:30 : hourly 1
    """),
    Case("a day of 25 hours is one", "daily=2", "Europe/Berlin", """
        2026-10-24 23:30 : daily 2
        2026-10-25 00:00
        2026-10-25 23:59 : daily 1
    """),
    Case("a day of 23 hours is one", "daily=2", "Europe/Berlin", """
        2026-03-28 23:30
        2026-03-29 00:00
        2026-03-29 23:59 : daily 2
        2026-03-30 00:00 : daily 1
    """),
    Case("New York's hour twice", "hourly=2 daily=2", "America/New_York", """
        2026-10-31 23:59 : daily 2
        2026-11-01 00:30
        2026-11-01 01:30-04:00 : hourly 2
        2026-11-01 01:30-05:00 : hourly 1, daily 1
    """),
    Case("New York's hour skipped", "hourly=2 daily=2", "America/New_York", """
        2026-03-07 23:59 : daily 2
        2026-03-08 00:59
        2026-03-08 01:59 : hourly 2
        2026-03-08 03:00 : hourly 1, daily 1
    """),
    Case("an hour of Kolkata begins at half past UTC's", "hourly=2 daily=2", "Asia/Kolkata", """
        2026-03-01 23:59 : daily 2
        2026-03-02 00:00
        2026-03-02 00:59 : hourly 2
        2026-03-02 01:00
        2026-03-02 01:59 : hourly 1, daily 1
    """),
    Case("the same hour of two days is two", "hourly=2", "UTC", """
        2026-03-01 10:00 : hourly 2
        2026-03-02 10:00 : hourly 1
    """),
    Case("weeks begin on Monday", "weekly=2", "UTC", """
        2026-03-01 10:00
        2026-03-02 00:00
        2026-03-08 23:59 : weekly 2
        2026-03-09 00:00 : weekly 1
    """),
    Case("week 53 goes on into January", "weekly=2 yearly=2", "UTC", """
        2026-12-27 23:59
        2026-12-28 00:00
        2026-12-31 23:59 : yearly 2
        2027-01-03 23:59 : weekly 2
        2027-01-04 00:00 : weekly 1, yearly 1
    """),
    Case("week 1 begins in December", "weekly=2", "UTC", """
        2024-01-03 10:00
        2024-12-29 23:59 : weekly 2
        2024-12-30 00:00
        2025-01-01 10:00 : weekly 1
    """),
    Case("a year ends at local midnight", "monthly=2 yearly=2", "America/New_York", """
        2026-11-30 23:59
        2026-12-31 23:59 : monthly 2, yearly 2
        2027-01-01 00:00 : monthly 1, yearly 1
    """),
    Case("the same month of two years is two", "monthly=2", "UTC", """
        2025-03-01 10:00 : monthly 2
        2026-03-01 10:00 : monthly 1
    """),
]  # fmt: skip


def rules_of(text: str, zone: str) -> Rules:
    words = dict(word.split("=") for word in text.split())
    within = words.pop("within", None)
    counts = {word: int(count) for word, count in words.items()}
    return Rules(**counts, within=parse_duration(within) if within else None, timezone=ZoneInfo(zone))


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.says)
def test_table(case: Case) -> None:
    """Each drawing, in any order; times are of the zone that counts, as a caller may give them."""
    expected, points, now = {}, [], None
    for line in case.drawing.strip().splitlines():
        left, _, reasons = line.partition(" : ")
        day, hour, *marks = left.split()
        time = f"{day} {hour}"
        moment = datetime.fromisoformat(time)
        moment = moment.astimezone(ZoneInfo(case.zone)) if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(case.zone))
        if "now" in marks:
            now = moment
        if "now" not in marks or reasons:
            points.append(Candidate(time, moment, "bad" not in marks))
            expected[time] = reasons
    random.Random(0).shuffle(points)
    decisions = select(points, rules_of(case.rules, case.zone), now or max(p.time.astimezone(UTC) for p in points))
    assert {d.candidate.id: ", ".join(d.reasons) for d in decisions} == expected
    assert [d.candidate.id for d in decisions] == list(reversed(expected))


def test_the_last_good_one_goes_only_if_told() -> None:
    points = [Candidate("only", datetime(2026, 1, 1, tzinfo=UTC), good=True)]
    rules, now = rules_of("within=1d", "UTC"), datetime(2026, 3, 1, tzinfo=UTC)
    assert [d.reasons for d in select(points, rules, now)] == [("newest good",)]
    assert [d.reasons for d in select(points, rules, now, allow_last=True)] == [()]
    assert [d.reasons for d in select(points, rules_of("", "UTC"), now, allow_last=True)] == [("no rule",)]


def test_points_of_one_time_are_ordered_by_id() -> None:
    time = datetime(2026, 3, 1, 10, tzinfo=UTC)
    points = [
        Candidate(id_, time.astimezone(ZoneInfo(zone)), good=True) for id_, zone in zip("bcad", ZONES, strict=True)
    ]
    decisions = select(points, rules_of("last=1 daily=1", "UTC"), time)
    assert [d.candidate.id for d in decisions] == ["d", "c", "b", "a"]
    assert [d.candidate.id for d in decisions if d.kept] == ["d"]


def test_no_points() -> None:
    assert select([], rules_of("last=1", "UTC"), datetime(2026, 3, 1, tzinfo=UTC)) == []


@pytest.mark.parametrize("zone", ZONES)
def test_sixty_days_of_hours_thinned(zone: str) -> None:
    """24 hourly and 30 daily of 1,440, over the spring change; by one call, or by one after each backup."""
    rules = rules_of("hourly=24 daily=30", zone)
    first = datetime(2026, 2, 20, 0, 17, tzinfo=UTC)
    points = [Candidate(n, first + n * HOUR, good=True) for n in range(1440)]

    last_of_day: dict[date, int] = {p.time.astimezone(ZoneInfo(zone)).date(): p.id for p in points}
    expected = set(range(1416, 1440)) | set(list(last_of_day.values())[-30:])
    assert len(expected) == (53 if zone == "UTC" else 52)  # the newest, and elsewhere yesterday's last, are hours too

    at_once = {d.candidate.id for d in select(points, rules, points[-1].time) if d.kept}
    by_and_by: list[Candidate] = []
    for point in points:
        by_and_by = [d.candidate for d in select([*by_and_by, point], rules, point.time) if d.kept]
    assert at_once == {p.id for p in by_and_by} == expected


@pytest.mark.parametrize(
    ("within", "shown"),
    [("7d", "7d"), ("2w", "14d"), ("26h", "26h"), ("90m", "90m"), ("3600s", "1h"), ("61s", "61s")],
)
def test_within_is_shown_as_it_is_written(within: str, shown: str) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    [decision] = select([Candidate(1, now, good=True)], rules_of(f"within={within}", "UTC"), now)
    assert decision.reasons == (f"within {shown}",)


@pytest.mark.parametrize("zone", ZONES)
def test_points_that_claim_to_be_of_no_calendar_harm_nobody(zone: str) -> None:
    """A host that was taken over can sign any time."""
    ends = [
        Candidate("first", datetime.min.replace(tzinfo=timezone(14 * HOUR)), good=True),
        Candidate("last", datetime.max.replace(tzinfo=timezone(-14 * HOUR)), good=True),
    ]
    rules = rules_of("last=1 hourly=1 daily=1 weekly=1 monthly=1 yearly=1 within=36500d", zone)
    now = datetime(2026, 3, 1, tzinfo=UTC)
    kept = [d.candidate.id for d in select([*ends, Candidate("real", now, good=True)], rules, now) if d.kept]
    assert kept == ["last", "real"]


def test_what_cannot_be_meant_is_refused() -> None:
    for word in COUNTS:
        with pytest.raises(UsageError, match=f"{word} cannot keep -1"):
            Rules(**{word: -1}, timezone=ZoneInfo("UTC"))
    with pytest.raises(UsageError, match="within"):
        Rules(within=-DAY, timezone=ZoneInfo("UTC"))
    with pytest.raises(ValueError, match="offset"):
        Candidate(1, datetime(2026, 3, 1), good=True)  # noqa: DTZ001
    with pytest.raises(ValueError, match="offset"):
        select([], Rules(timezone=ZoneInfo("UTC")), datetime(2026, 3, 1))  # noqa: DTZ001


def test_the_configuration_names_the_same_rules() -> None:
    keep = Keep(last=3, within="7d")
    assert Rules(**keep.model_dump(), timezone=ZoneInfo("UTC")) == rules_of("last=3 within=7d", "UTC")


# Properties. Points lie around changes of the clocks and of the year, dense enough to share hours.

unhurried = settings(deadline=None)  # another's work on the machine is no failure
_EVES = ((3, 7), (3, 28), (10, 24), (10, 31), (12, 30))
_starts = st.sampled_from([datetime(2026, month, day, tzinfo=UTC) for month, day in _EVES])
_ages = st.one_of(st.integers(-90, 600), st.integers(-3000, 60_000), st.integers(0, 1_500_000))  # minutes before now
_points = st.lists(st.tuples(_ages, st.booleans()), max_size=30)
_counts = st.one_of(st.none(), st.integers(0, 6))
_withins = st.one_of(st.none(), st.integers(0, 72).map(lambda hours: hours * HOUR))


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Candidate], Rules, datetime]:
    now = draw(_starts) + draw(st.integers(0, 2 * 1440)) * timedelta(minutes=1)
    zone = ZoneInfo(draw(st.sampled_from(ZONES)))
    points = [
        Candidate(n, (now - timedelta(minutes=age)).astimezone(zone if n % 2 else UTC), good)
        for n, (age, good) in enumerate(draw(_points))
    ]
    return points, Rules(**{w: draw(_counts) for w in COUNTS}, within=draw(_withins), timezone=zone), now


def kept(points: list[Candidate], rules: Rules, now: datetime) -> set[Candidate]:
    return {d.candidate for d in select(points, rules, now) if d.kept}


@unhurried
@given(situations())
def test_selecting_again_keeps_all(situation: tuple[list[Candidate], Rules, datetime]) -> None:
    points, rules, now = situation
    stay = kept(points, rules, now)
    assert kept(list(stay), rules, now) == stay


@unhurried
@given(situations(), st.sampled_from([*COUNTS, "within"]), st.integers(1, 5))
def test_a_larger_rule_never_forgets_what_a_smaller_one_keeps(
    situation: tuple[list[Candidate], Rules, datetime], word: str, more: int
) -> None:
    points, rules, now = situation
    assume(not rules.none)
    added = more * HOUR if word == "within" else more
    larger = replace(rules, **{word: (getattr(rules, word) or type(added)()) + added})
    assert kept(points, rules, now) <= kept(points, larger, now)


@unhurried
@given(situations())
def test_the_newest_good_point_stays(situation: tuple[list[Candidate], Rules, datetime]) -> None:
    points, rules, now = situation
    good = [p for p in points if p.good and p.time.astimezone(UTC) <= now]
    if good:
        assert max(good, key=lambda p: (p.time.astimezone(UTC), p.id)) in kept(points, rules, now)


@unhurried
@given(situations(), st.booleans())
def test_each_point_is_decided_once_and_kept_for_reasons(
    situation: tuple[list[Candidate], Rules, datetime], allow_last: bool
) -> None:
    points, rules, now = situation
    decisions = select(points, rules, now, allow_last=allow_last)
    assert sorted(d.candidate.id for d in decisions) == sorted(p.id for p in points)
    assert all(d.kept == bool(d.reasons) and len(set(d.reasons)) == len(d.reasons) for d in decisions)
    times = [d.candidate.time.astimezone(UTC) for d in decisions]
    assert times == sorted(times, reverse=True)


@unhurried
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_input_is_irrelevant(
    situation: tuple[list[Candidate], Rules, datetime], rng: random.Random
) -> None:
    points, rules, now = situation
    assert select(rng.sample(points, len(points)), rules, now) == select(points, rules, now)


@unhurried
@given(situations())
def test_the_future_changes_nothing_for_the_past(situation: tuple[list[Candidate], Rules, datetime]) -> None:
    points, rules, now = situation
    past = [p for p in points if p.time.astimezone(UTC) <= now]
    decisions = select(points, rules, now)
    assert [d for d in decisions if d.candidate in past] == select(past, rules, now)
    assert all(d.kept for d in decisions if d.candidate not in past)


@unhurried
@given(situations())
def test_points_that_are_not_good_change_nothing_for_those_that_are(
    situation: tuple[list[Candidate], Rules, datetime],
) -> None:
    points, rules, now = situation
    decisions = select(points, rules, now)
    assert [d for d in decisions if d.candidate.good] == select([p for p in points if p.good], rules, now)


@unhurried
@given(situations())
def test_a_rule_keeps_as_much_as_it_says(situation: tuple[list[Candidate], Rules, datetime]) -> None:
    """The places of a rule are numbered without a gap, N of them if there are so many periods with a good point."""
    points, rules, now = situation
    reasons = [r for d in select(points, rules, now) for r in d.reasons]
    for word in COUNTS:
        places = [int(r.split()[1]) for r in reasons if r.startswith(f"{word} ")]
        assert places == list(range(1, len(places) + 1))
        assert len(places) <= (getattr(rules, word) or 0)
        assert reasons.count(word) <= (getattr(rules, word) or 0)
    n_good = sum(p.good and p.time.astimezone(UTC) <= now for p in points)
    assert sum(r.startswith("last ") for r in reasons) == min(rules.last or 0, n_good)
