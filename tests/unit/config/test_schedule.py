"""What a schedule comes to, before any clock is asked."""

from math import inf

import pytest

from vmbackup.config.schedule import pauses

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("schedule", "shortest", "longest"),
    [
        ("@every 15m", 900, 900),
        ("@hourly", HOUR, HOUR),
        ("30 2 * * *", DAY, DAY),
        ("0 2 * * 1-5", DAY, 3 * DAY),
        ("0 8,20 * * *", 12 * HOUR, 12 * HOUR),
        ("0 9-17 * * *", HOUR, 16 * HOUR),
        ("@weekly", 7 * DAY, 7 * DAY),
        ("@monthly", 28 * DAY, 31 * DAY),
        ("0 0 29 2 *", 1461 * DAY, 1461 * DAY),
        ("0 0 1,31 * *", DAY, 30 * DAY),
        ("0,10 * 1 1 *", 600, 366 * DAY - 23 * HOUR - 600),  # from 23:10 of one to 00:00 of the next, a leap year
    ],
)
def test_pauses(schedule: str, shortest: float, longest: float) -> None:
    """Between two that follow each other, over nights, weekends and the ends of months and years."""
    assert pauses(schedule) == (shortest, longest)


def test_a_day_that_is_rarer_than_what_is_looked_through() -> None:
    shortest, longest = pauses("0 0 29 2 */7")  # a 29 February that is a Sunday
    assert shortest == longest == inf or shortest >= 28 * 365 * DAY
