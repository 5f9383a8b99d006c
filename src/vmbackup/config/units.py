"""Sizes and durations as operators write and read them."""

import re
from datetime import timedelta

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_SIZES = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 10**3,
    "m": MIB, "mib": MIB, "mb": 10**6,
    "g": GIB, "gib": GIB, "gb": 10**9,
    "t": TIB, "tib": TIB, "tb": 10**12,
}  # fmt: skip
_DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_DURATION = re.compile(r"(\d+)\s*([smhdw])")
_PRICE = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)\s*([A-Z]{3})")
_LONGEST_DAYS = 36500  # a century: longer is a slip of the finger, and years later would overflow dates


class InvalidValue(ValueError):
    """A text that does not mean what it should; `hint` says how it is written."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def parse_size(text: str) -> int:
    """Bytes of "64KiB", "200 MB", "4G" (1024s, as in dd) or a plain number; InvalidValue."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found[2].lower() not in _SIZES:
        raise InvalidValue(f"{text!r} is not a size", "write a number and KiB, MiB, GiB or TiB, like 64KiB")
    return int(float(found[1]) * _SIZES[found[2].lower()])


def parse_rate(text: str) -> int:
    """Bytes a second of "200MiB/s"; InvalidValue, also for zero."""
    number = text.strip().removesuffix("/s")
    try:
        rate = parse_size(number)
    except InvalidValue:
        rate = 0
    if number == text.strip() or rate <= 0:
        raise InvalidValue(f"{text!r} is not a rate", "write a size a second, like 200MiB/s")
    return rate


def parse_duration(text: str) -> timedelta:
    """The duration of a number and s, m, h, d or w, like "26h"; InvalidValue, also for zero."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or int(found[1]) == 0:
        raise InvalidValue(f"{text!r} is not a duration", "write a number and s, m, h, d or w, like 26h")
    seconds = int(found[1]) * _DURATIONS[found[2]]
    if seconds > _LONGEST_DAYS * 86400:
        raise InvalidValue(f"{text!r} is more than a century", "write a number and s, m, h, d or w, like 26h")
    return timedelta(seconds=seconds)


def parse_price(text: str) -> tuple[float, str]:
    """Amount and currency of "0.01 EUR", for 10^9 bytes; InvalidValue."""
    found = _PRICE.fullmatch(text.strip())
    if found is None:
        raise InvalidValue(f"{text!r} is not a price", 'write the price of a GB and its currency, like "0.01 EUR"')
    return float(found[1]), found[2]


def format_size(n_bytes: int) -> str:
    """Three digits and a binary unit: "0 B", "312 MiB", "4.50 GiB"."""
    value, unit = float(n_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1000:  # not 1024: "1023 KiB" is wider than "0.99 MiB" and no clearer
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{n_bytes} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0  # three digits in all
    return f"{value:.{digits}f} {unit}"


def format_duration(seconds: float) -> str:
    """Two units at most: "0.34 s", "42 s", "3 min 05 s", "2 h 10 min", "3 d 04 h"."""
    if seconds < 10:  # below, tenths matter
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
