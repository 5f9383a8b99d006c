"""Sizes, rates, durations and schedules: what is taken, what is refused, how they are shown."""

from datetime import timedelta

import pytest

from vmbackup.config.schedule import check_schedule
from vmbackup.config.units import (
    InvalidValue,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65536),
        ("64 k", 65536),
        ("200 MB", 200_000_000),
        ("1.5GiB", 3 << 29),
        ("4096", 4096),
        ("2T", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1K", "1 XB", "1e3", "64KiB/s", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a size"):
        parse_size(text)


def test_rates() -> None:
    assert parse_rate("200MiB/s") == 200 << 20
    for text in ("200MiB", "0/s", "/s", "fast/s"):
        with pytest.raises(InvalidValue, match="is not a rate"):
            parse_rate(text)


def test_durations() -> None:
    assert parse_duration("26h") == timedelta(hours=26)
    assert parse_duration("2w") == timedelta(weeks=2)
    for text in ("", "26", "h", "1.5h", "0d", "1y", "26 hours", "-1d"):
        with pytest.raises(InvalidValue, match="is not a duration"):
            parse_duration(text)
    with pytest.raises(InvalidValue, match="more than a century"):
        parse_duration("99999999999w")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (65536, "64.0 KiB"),
        (312 << 20, "312 MiB"),
        (1020 << 20, "1.00 GiB"),
        (10 << 30, "10.0 GiB"),
        (16 << 40, "16.0 TiB"),
    ],
)
def test_sizes_are_shown_with_three_digits(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.044, "0.04 s"),
        (3.26, "3.3 s"),
        (42, "42 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (273600, "3 d 04 h"),
    ],
)
def test_durations_are_shown_with_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    "text",
    ["0 2 * * *", "*/15 * * * *", "0 0 1,15 * mon-fri", "0 0 29 2 *", "0 6 * * 7", "0 0 31 2 fri", "5 4 * jan-mar sun",
     "@hourly", "@daily", "@every 15m", "30/10 * * * *"],
)  # fmt: skip
def test_schedules(text: str) -> None:
    assert check_schedule(text) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("0 2 * *", "has 4 fields"),
        ("60 2 * * *", "outside 0-59"),
        ("0 24 * * *", "outside 0-23"),
        ("0 0 0 * *", "outside 1-31"),
        ("0 0 * * 8", "outside 0-7"),
        ("0 0 * * mo", "not a day of week"),
        ("0 0 * 10-3 *", "runs backwards"),
        ("*/0 * * * *", "not a minute"),
        ("0 2 30 2 *", "never comes due"),
        ("0 2 31 4,6,9,11 *", "never comes due"),
        ("@nightly", "not a schedule"),
        ("@every", "not a schedule"),
        ("@every 15", "not a duration"),
    ],
)
def test_what_is_no_schedule(text: str, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        check_schedule(text)
