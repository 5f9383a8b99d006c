"""When schedules come due: by hand where the clock changes, over two years against a watched cron and croniter."""

import math
import random
import statistics
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.daemon.schedules import Cron, epoch, random_schedule
from vmbackup.config.schedule import check_schedule
from vmbackup.config.units import InvalidValue
from vmbackup.daemon import timetable
from vmbackup.daemon.timetable import last_due, next_run, offset

BERLIN = ZoneInfo("Europe/Berlin")


def firings(schedule: str, zone: tzinfo, after: float) -> Iterator[float]:
    """All that follow."""
    while (found := next_run(schedule, zone, after)) is not None:
        yield found
        after = found


def shown(schedule: str, zone: str, after: str, count: int) -> list[str]:
    """The next firings as the zone's clock shows them."""
    times = islice(firings(schedule, ZoneInfo(zone), epoch(after, ZoneInfo(zone))), count)
    return [datetime.fromtimestamp(time, ZoneInfo(zone)).isoformat(" ", "minutes") for time in times]


CHANGES = [
    # Spring, Berlin: 02:00 CET is 03:00 CEST.
    ("30 2 * * *", "Europe/Berlin", "2026-03-28 02:30", ["2026-03-29 03:00+02:00", "2026-03-30 02:30+02:00"]),
    ("0,30 2 * * *", "Europe/Berlin", "2026-03-28 03:00", ["2026-03-29 03:00+02:00", "2026-03-30 02:00+02:00"]),
    ("0 2,3 * * *", "Europe/Berlin", "2026-03-28 04:00", ["2026-03-29 03:00+02:00", "2026-03-30 02:00+02:00"]),
    ("0 */12 * * *", "Europe/Berlin", "2026-03-28 13:00", ["2026-03-29 00:00+01:00", "2026-03-29 12:00+02:00"]),
    ("0 */2 * * *", "Europe/Berlin", "2026-03-29 00:00", ["2026-03-29 03:00+02:00", "2026-03-29 04:00+02:00"]),
    ("30 * * * *", "Europe/Berlin", "2026-03-29 00:30", ["2026-03-29 01:30+01:00", "2026-03-29 03:30+02:00"]),
    # Autumn: 03:00 CEST is 02:00 CET.
    ("30 2 * * *", "Europe/Berlin", "2026-10-24 02:30", ["2026-10-25 02:30+02:00", "2026-10-26 02:30+01:00"]),
    ("0 3 * * *", "Europe/Berlin", "2026-10-24 03:00", ["2026-10-25 03:00+01:00", "2026-10-26 03:00+01:00"]),
    ("30 * * * *", "Europe/Berlin", "2026-10-25 01:30",
     ["2026-10-25 02:30+02:00", "2026-10-25 02:30+01:00", "2026-10-25 03:30+01:00"]),
    ("*/30 */2 * * *", "Europe/Berlin", "2026-10-25 01:30",
     ["2026-10-25 02:00+02:00", "2026-10-25 02:30+02:00", "2026-10-25 02:00+01:00", "2026-10-25 02:30+01:00",
      "2026-10-25 04:00+01:00"]),
    ("30 0-23 * * *", "Europe/Berlin", "2026-10-25 01:30", ["2026-10-25 02:30+02:00", "2026-10-25 02:30+01:00"]),
    ("*/30 1-5 * * *", "Europe/Berlin", "2026-10-25 02:00",
     ["2026-10-25 02:30+02:00", "2026-10-25 03:00+01:00", "2026-10-25 03:30+01:00"]),
    # Half an hour, on Lord Howe.
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 02:15", ["2026-10-04 02:30+11:00", "2026-10-05 02:15+11:00"]),
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 01:45", ["2026-04-05 01:45+11:00", "2026-04-06 01:45+10:30"]),
    ("45 * * * *", "Australia/Lord_Howe", "2026-04-05 00:45",
     ["2026-04-05 01:45+11:00", "2026-04-05 01:45+10:30", "2026-04-05 02:45+10:30"]),
    # At midnight: Sao Paulo had days without a first hour, and days with two last ones.
    ("@daily", "America/Sao_Paulo", "2018-11-03 00:00", ["2018-11-04 01:00-02:00", "2018-11-05 00:00-02:00"]),
    ("0 */12 * * *", "America/Sao_Paulo", "2018-11-03 12:00", ["2018-11-04 01:00-02:00", "2018-11-04 12:00-02:00"]),
    ("30 23 * * sat", "America/Sao_Paulo", "2018-02-16 00:00", ["2018-02-17 23:30-02:00", "2018-02-24 23:30-03:00"]),
    ("30 23 * * *", "America/Sao_Paulo", "2018-02-17 00:00", ["2018-02-17 23:30-02:00", "2018-02-18 23:30-03:00"]),
    # A minute past midnight: the day before ends after the next one has begun.
    ("*/20 * * * *", "America/St_Johns", "2010-11-06 23:40",
     ["2010-11-07 00:00-02:30", "2010-11-06 23:20-03:30", "2010-11-06 23:40-03:30", "2010-11-07 00:00-03:30"]),
    ("0 0 * * *", "America/St_Johns", "2010-11-06 01:00", ["2010-11-07 00:00-02:30", "2010-11-08 00:00-03:30"]),
    # Samoa had no 30 December.
    ("0 9 30 12 *", "Pacific/Apia", "2011-12-01 00:00", ["2011-12-31 00:00+14:00", "2012-12-30 09:00+14:00"]),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "zone", "after", "expected"), CHANGES)
def test_the_clock_changes(schedule: str, zone: str, after: str, expected: list[str]) -> None:
    assert shown(schedule, zone, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        # Day and weekday: either, unless one of them begins with a star.
        ("0 0 13 * fri", "2026-02-06 00:00", ["2026-02-13", "2026-02-20", "2026-02-27", "2026-03-06", "2026-03-13"]),
        ("0 0 1 * fri", "2026-04-25 00:00", ["2026-05-01", "2026-05-08"]),
        ("0 0 1-31 * fri", "2026-04-25 00:00", ["2026-04-26", "2026-04-27"]),
        ("0 0 */2 * fri", "2026-05-01 00:00", ["2026-05-15", "2026-05-29", "2026-06-05"]),
        ("0 0 13 * */2", "2026-01-01 00:00", ["2026-01-13", "2026-06-13", "2026-08-13"]),
        ("0 0 31 2 mon", "2026-01-31 00:00", ["2026-02-02", "2026-02-09"]),
        # Sunday is 0 and 7, in ranges, steps and lists too.
        ("0 0 * * 0", "2026-05-01 00:00", ["2026-05-03", "2026-05-10"]),
        ("0 0 * * 7", "2026-05-01 00:00", ["2026-05-03", "2026-05-10"]),
        ("0 0 * * SUN", "2026-05-01 00:00", ["2026-05-03", "2026-05-10"]),
        ("0 0 * * 5-7", "2026-05-03 00:00", ["2026-05-08", "2026-05-09", "2026-05-10", "2026-05-15"]),
        ("0 0 * * 1/3", "2026-05-03 00:00", ["2026-05-04", "2026-05-07", "2026-05-10", "2026-05-11"]),
        ("0 0 * * 3-7/2", "2026-05-03 00:00", ["2026-05-06", "2026-05-08", "2026-05-10"]),
        ("0 0 * * mon-wed", "2026-05-03 00:00", ["2026-05-04", "2026-05-05", "2026-05-06", "2026-05-11"]),
        ("0 0 * * */7", "2026-05-01 00:00", ["2026-05-03", "2026-05-10"]),
        # Nicknames, and the week of weekly begins on Sunday.
        ("@daily", "2026-05-01 00:00", ["2026-05-02", "2026-05-03"]),
        ("@midnight", "2026-05-01 00:00", ["2026-05-02", "2026-05-03"]),
        ("@weekly", "2026-05-01 00:00", ["2026-05-03", "2026-05-10"]),
        ("@monthly", "2026-05-01 00:00", ["2026-06-01", "2026-07-01"]),
        ("@yearly", "2026-05-01 00:00", ["2027-01-01", "2028-01-01"]),
        ("@annually", "2026-05-01 00:00", ["2027-01-01", "2028-01-01"]),
        # Rare dates: 2100 is no leap year, and a 29 February that is a Sunday may be 40 years away.
        ("0 0 29 2 *", "2026-05-01 00:00", ["2028-02-29", "2032-02-29"]),
        ("0 0 29 2 *", "2096-02-29 00:00", ["2104-02-29", "2108-02-29"]),
        ("0 0 29 2 */7", "2026-05-01 00:00", ["2032-02-29", "2060-02-29", "2088-02-29", "2128-02-29"]),
        ("0 0 31 */2 *", "2026-08-01 00:00", ["2027-01-31", "2027-03-31", "2027-05-31", "2027-07-31"]),
    ],
)
def test_days_are_those_of_crontab(schedule: str, after: str, expected: list[str]) -> None:
    times = islice(firings(schedule, UTC, epoch(after)), len(expected))
    assert [datetime.fromtimestamp(time, UTC) for time in times] == [
        datetime.fromisoformat(day).replace(tzinfo=UTC) for day in expected
    ]


def test_every_counts_from_the_epoch() -> None:
    """So a restart changes nothing, nor does the zone or its clock."""
    assert list(islice(firings("@every 15m", BERLIN, 10.0), 3)) == [900.0, 1800.0, 2700.0]
    assert next_run("@every 15m", BERLIN, 899.999) == 900.0
    assert next_run("@every 7s", UTC, 7 * 10**9 - 0.5) == 7e9
    spring = list(islice(firings("@every 1h", BERLIN, epoch("2026-03-29 00:30", BERLIN)), 4))
    assert {later - time for time, later in pairwise(spring)} == {3600.0}


def test_hourly_is_every_real_hour() -> None:
    for day in ("2026-03-28 12:00", "2026-10-24 12:00"):
        hours = list(islice(firings("@hourly", BERLIN, epoch(day, BERLIN)), 48))
        assert {later - time for time, later in pairwise(hours)} == {3600.0}


def test_it_is_strictly_after() -> None:
    two = epoch("2026-05-01 02:00", BERLIN)
    assert next_run("0 2 * * *", BERLIN, two) == two + 86400
    assert next_run("0 2 * * *", BERLIN, two - 0.001) == two
    assert next_run("0 2 * * *", timezone(timedelta(hours=2)), two - 1) == two


def test_what_never_comes_is_none() -> None:
    """Such a schedule is refused by check_schedule already; the search ends all the same."""
    calendar = timetable.Calendar((0,), frozenset({30}), frozenset({2}), frozenset(range(7)), False, False, False)
    assert not calendar.possible
    assert list(timetable._days(calendar, date(2026, 1, 1))) == []


TWO_YEARS = {
    "Europe/Berlin": "2023-07-01",  # with a 29 February
    "America/New_York": "2023-07-01",
    "Australia/Lord_Howe": "2023-07-01",
    "UTC": "2023-07-01",
    "Asia/Kolkata": "2023-07-01",
    "America/Sao_Paulo": "2017-01-15",  # before it gave up its summer time, which began and ended at midnight
}
BY_HAND = (
    "0 2 * * *", "30 2 * * *", "@daily", "0 3 * * sun", "15 1,2,3 * * *", "*/20 2 * * *", "0 */6 * * *", "17 * * * *",
    "0 0-23 * * *", "0 22-23,0-4 * * *", "30 0 1,15 * mon", "0 0 13 * fri", "0 0 */2 * 1-5", "59 23 31 12 *",
    "0 12 29 2 *", "5 4 * jan-mar sun", "0,30 1-3 * 3,4,10,11 *", "45 23 * * 0,6", "1 0 * * 5-7", "*/30 */3 */4 * */3",
)  # fmt: skip
MOST = 800  # firings of two years that are all compared; of denser schedules those around changes, and at random
SOME = 25  # from each of those starts


@pytest.mark.parametrize("name", TWO_YEARS)
def test_two_years_are_as_a_watched_cron_has_them(name: str) -> None:
    """Each firing of two years, of schedules by hand and at random."""
    zone, start = ZoneInfo(name), epoch(TWO_YEARS[name])
    end = start + 730 * 86400
    chance = random.Random(name)
    starts = [day - chance.uniform(0, 7200) for day in changes(zone, start, end)]
    starts += [chance.uniform(start, end) for _ in range(4)]
    for schedule in (*BY_HAND, *accepted(chance, 8)):
        expected = Cron(in_fields(schedule)).watched(zone, start, end, 30 if "Lord" in name else 60)
        if len(expected) <= MOST:
            assert list(takewhile(lambda time: time <= end, firings(schedule, zone, start))) == expected, schedule
            continue
        for after in starts:
            first = bisect_right(expected, after)
            wanted = expected[first : first + SOME]
            assert list(islice(firings(schedule, zone, after), len(wanted))) == wanted, (schedule, after)


def changes(zone: ZoneInfo, start: float, end: float) -> list[float]:
    """The changes of the clock in that time."""
    hours = range(int(start), int(end) + 3600, 1800)
    clocks = ((hour, datetime.fromtimestamp(hour, zone).utcoffset()) for hour in hours)
    return [hour for (_, before), (hour, after) in pairwise(clocks) if before != after]


def accepted(chance: random.Random, count: int) -> Iterator[str]:
    """Random schedules that come due at some time."""
    while count:
        schedule = random_schedule(chance)
        try:
            yield check_schedule(schedule)
        except InvalidValue:
            continue
        count -= 1


def in_fields(schedule: str) -> str:
    return "0 0 * * *" if schedule == "@daily" else schedule


@pytest.mark.parametrize("name", TWO_YEARS)
def test_two_years_are_as_croniter_has_them(name: str) -> None:
    """But for the days on which the clock changes, which croniter has otherwise."""
    zone, start = ZoneInfo(name), epoch(TWO_YEARS[name])
    chance = random.Random(f"croniter {name}")
    changed = changes(zone, start, start + 760 * 86400)
    for schedule in (*map(in_fields, BY_HAND), *accepted(chance, 15)):
        if ",*" in schedule:  # a star in the middle is none to cron; croniter takes the field for unrestricted
            continue
        for _ in range(4):
            after = chance.uniform(start, start + 730 * 86400)
            theirs = croniter(schedule, datetime.fromtimestamp(after, zone), implement_cron_bug=True)
            for time in islice(firings(schedule, zone, after), 40):
                other = theirs.get_next(datetime).timestamp()
                if any(min(time, other) - 86400 < change < max(time, other) + 86400 for change in changed):
                    break
                assert time == other, (schedule, after)


SCHEDULES = st.one_of(
    st.randoms(use_true_random=False).map(lambda chance: next(accepted(chance, 1))),
    st.integers(1, 5000).map(lambda number: f"@every {number}m"),
    st.sampled_from(BY_HAND),
)
ZONES = st.sampled_from([*TWO_YEARS, "America/St_Johns", "Africa/Casablanca", "Antarctica/Troll"]).map(ZoneInfo)
TIMES = st.floats(epoch("1975-01-01"), epoch("2150-01-01"))


@settings(max_examples=300, deadline=None)
@given(SCHEDULES, ZONES, TIMES, st.floats(0, 40 * 86400))
def test_times_only_go_forward(schedule: str, zone: ZoneInfo, time: float, more: float) -> None:
    """Strictly after, whole seconds, and no time between two firings knows another next one."""
    first = next_run(schedule, zone, time)
    assert first is not None
    assert first > time
    assert first % 1 == 0
    second, later = next_run(schedule, zone, first), next_run(schedule, zone, time + more)
    assert second is not None
    assert later is not None
    assert first < second
    assert later == first if time + more < first else later > time + more
    assert later >= first
    assert next_run(schedule, zone, (first + second) / 2) == second


@settings(max_examples=150, deadline=None)
@given(SCHEDULES, ZONES, TIMES, st.floats(0, 2 * 86400), st.floats(0, 7200))
def test_what_was_missed_last(schedule: str, zone: ZoneInfo, since: float, down: float, delay: float) -> None:
    """The newest of all firings whose start is in the downtime."""
    now = since + down
    early = since - delay - 120
    starts = takewhile(lambda time: time + delay <= now, firings(schedule, zone, early))
    missed = [time for time in starts if time + delay > since]
    assert last_due(schedule, zone, delay, since, now) == (missed[-1] if missed else None)


def test_catching_up_after_a_downtime() -> None:
    """Once, for the newest that was missed, and not again once that is made up for."""
    nine, two = epoch("2026-05-04 09:00", BERLIN), epoch("2026-05-04 02:00", BERLIN)
    long_ago = epoch("2026-04-20 12:00", BERLIN)
    assert last_due("0 2 * * *", BERLIN, 600.0, long_ago, nine) == two
    assert last_due("0 2 * * *", BERLIN, 600.0, two + 600.0, nine) is None
    assert last_due("0 2 * * *", BERLIN, 600.0, two + 599.0, two + 600.0) == two
    assert last_due("0 2 * * *", BERLIN, 600.0, long_ago, two + 599.0) == two - 86400
    assert last_due("0 2 * * *", BERLIN, 600.0, nine, nine) is None
    assert last_due("0 2 * * *", BERLIN, 600.0, nine, long_ago) is None
    assert last_due("0 0 29 2 *", BERLIN, 0.0, epoch("2024-03-01"), nine) is None
    assert last_due("30 2 * * *", BERLIN, 0.0, epoch("2026-10-25 02:45+02:00"), epoch("2026-10-25 04:00+01:00")) is None


@settings(max_examples=300)
@given(st.floats(0.001, 90000), st.floats(0, 2e9))
def test_a_start_that_was_made_is_not_missed(delay: float, due: float) -> None:
    """Whatever the rounding: the sum of due time and offset is what the caller remembers."""
    due = next_run("*/7 * * * *", UTC, due) or 0.0
    assert last_due("*/7 * * * *", UTC, delay, due + delay, due + delay + 60) is None
    assert last_due("*/7 * * * *", UTC, delay, due + delay - 60, due + delay) == due
    assert last_due("*/7 * * * *", UTC, delay, math.nextafter(due + delay, 0), due + delay) == due


def test_a_start_that_was_not_made_is_missed() -> None:
    """Even where `since` less the offset is rounded up to the time it was due."""
    due = next_run("*/7 * * * *", UTC, 1.75e9) or 0.0
    step, delay = math.ulp(due), 1.5 * math.ulp(due)
    assert due + delay == due + 2 * step > due + step
    assert (due + step) - delay == due
    assert last_due("*/7 * * * *", UTC, delay, due + step, due + 60) == due


def test_offsets_never_change() -> None:
    """Not with the version, the host, the hash seed: or all ages would jump at an upgrade."""
    assert offset("nightly", "web01", 1800.0) == pytest.approx(1679.106805, abs=1e-6)
    assert offset("nightly", "web02", 1800.0) == pytest.approx(200.714025, abs=1e-6)
    assert offset("hourly", "web01", 86400.0) == pytest.approx(79339.614848, abs=1e-6)
    assert offset("hourly", "b\u00fccher", 60.0) == pytest.approx(15.849613, abs=1e-6)


@given(st.text(), st.text(), st.floats(1e-3, 1e9))
def test_an_offset_is_inside_of_the_window(job: str, domain: str, window: float) -> None:
    assert 0 <= offset(job, domain, window) < window
    assert offset(job, domain, 0.0) == 0.0


def test_offsets_are_spread_over_the_window() -> None:
    """A thousand guests: each tenth of the window has its share, and job and domain are not simply joined."""
    starts = sorted(offset("nightly", f"guest{number}", 1.0) for number in range(1000))
    tenths = statistics.quantiles(starts, n=10)
    assert all(abs(share - number / 10) < 0.05 for number, share in enumerate(tenths, 1))
    assert offset("a", "bc", 1.0) != offset("ab", "c", 1.0)


@pytest.mark.parametrize("schedule", ["0 2 * * *", "* * * * *", "0 0 29 2 *", "0 0 29 2 */7", "@every 1s"])
def test_it_is_quick(schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a rare date costs a look at its months, a downtime of decades some dozen questions."""
    asked = 0

    def counted(*arguments: object) -> float | None:
        nonlocal asked
        asked += 1
        return next_run(*arguments)

    monkeypatch.setattr(timetable, "next_run", counted)
    assert last_due(schedule, BERLIN, 5.0, 0.0, epoch("2026-05-01")) is not None
    assert asked < 100
