"""When schedules come due: by hand where the clock changes, over two years against a watched cron and croniter."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from tests.unit.daemon.schedules import epoch
from vmbackup.daemon.timetable import next_run

BERLIN = ZoneInfo("Europe/Berlin")


def firings(schedule: str, zone: ZoneInfo, after: float) -> Iterator[float]:
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
