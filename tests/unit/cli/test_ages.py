"""Times and ages as an operator reads them."""

from datetime import UTC, datetime, timedelta

import pytest

from vmbackup.cli.ages import Age, Standing, ago, long_time, short_time, span

pytestmark = pytest.mark.usefixtures("utc")
NOW = datetime(2026, 11, 28, 17, 0, tzinfo=UTC)
HOUR = 3600.0


@pytest.mark.parametrize(
    ("seconds", "promise", "standing", "told"),
    [
        (31.2 * HOUR, 26 * HOUR, Standing.BROKEN, "31.2 of 26 h"),
        (26 * HOUR + 1, 26 * HOUR, Standing.BROKEN, "26.1 of 26 h"),
        (26 * HOUR, 26 * HOUR, Standing.CLOSE, "26 of 26 h"),
        (25.99 * HOUR, 26 * HOUR, Standing.CLOSE, "25.9 of 26 h"),
        (24 * HOUR, 26 * HOUR, Standing.KEPT, "24 of 26 h"),
        (None, 26 * HOUR, Standing.NEVER, "none of 26 h"),
        (31.2 * HOUR, None, Standing.NONE, "31 h"),
        (None, None, Standing.NONE, "-"),
        (0.0, 15 * 24 * HOUR, Standing.KEPT, "0 of 15 d"),
        (3000 * HOUR, 26 * HOUR, Standing.BROKEN, "3000 of 26 h"),
        (50.0, 90.0, Standing.KEPT, "50 of 90 s"),
        (61.0, 900.0, Standing.KEPT, "1 of 15 min"),
    ],
)
def test_an_age_against_its_promise(seconds: float, promise: float, standing: Standing, told: str) -> None:
    age = Age(seconds, promise)
    assert (age.standing, age.text()) == (standing, told)


def test_a_promise_that_breaks_before_the_next_run_is_close() -> None:
    done = (NOW - timedelta(hours=10)).isoformat()
    for hours, standing in ((9, Standing.KEPT), (16, Standing.KEPT), (17, Standing.CLOSE)):
        following = (NOW + timedelta(hours=hours)).isoformat()
        assert Age.of(done, 26 * HOUR, NOW, following).standing is standing


def test_a_clock_that_went_back_makes_no_negative_age() -> None:
    assert Age.of((NOW + timedelta(hours=1)).isoformat(), 26 * HOUR, NOW).text() == "0 of 26 h"


def test_times_are_as_short_as_they_are_clear() -> None:
    told = [short_time((NOW - timedelta(days=days)).isoformat(), NOW) for days in (0, 1, 6, 7, 200, 400)]
    assert told == ["17:00", "Fri 17:00", "Sun 17:00", "21 Nov", "12 May", "2025-10-24"]
    assert short_time((NOW + timedelta(hours=9)).isoformat(), NOW) == "Sun 02:00"
    assert short_time(None, NOW) == "-"
    assert long_time(NOW.isoformat()) == "Sat 2026-11-28 17:00"
    assert ago((NOW - timedelta(minutes=14)).isoformat(), NOW) == "14 min ago"
    assert [span(seconds) for seconds in (45, 700, 31 * HOUR, 80 * HOUR)] == ["45 s", "11 min", "31 h", "3 d"]
