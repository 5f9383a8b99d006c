"""What JSON must look like: a signature tells who wrote it, not that it makes sense.

A shape is a type (`str`, `bool`; `int` from 0 to 2^63 - 1; `float` takes both), `Up(most)`, `Hex(bytes)`,
`Maybe(shape)` for null too, `[shape]` for a list, `{str: shape}` for an object of any fields, or
`{"field": shape, "may lack?": shape}`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from vmbackup.errors import DamageError

Shape = Any
_MOST = (1 << 63) - 1


class Hex(NamedTuple):
    """So many bytes in lower-case hex; None for any number of them."""

    size: int | None = None


class Up(NamedTuple):
    """A number from 0 to `most`."""

    most: int


class Maybe(NamedTuple):
    """Null, or the shape."""

    shape: Shape


def check(value: object, shape: Shape, name: str) -> None:
    """Raises DamageError, naming the object `name` and the field, where a value has another shape."""
    if _fits(shape)(value):
        return
    where = _wrong(value, shape, "")
    raise DamageError(f"{name} does not hold what it must: {where}", object_key=name)


_TESTS: dict[int, tuple[Shape, Callable[[object], bool]]] = {}  # by the shape's id, which lives as long as it is here


def _fits(shape: Shape) -> Callable[[object], bool]:
    """Whether a value has the shape, and no word of where: thousands of restore points are checked at a time."""
    if id(shape) not in _TESTS:
        _TESTS[id(shape)] = shape, _test(shape)
    return _TESTS[id(shape)][1]


def _test(shape: Shape) -> Callable[[object], bool]:
    if isinstance(shape, Maybe):
        inner = _fits(shape.shape)
        return lambda value: value is None or inner(value)
    if isinstance(shape, list):
        item = _fits(shape[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if isinstance(shape, dict) and str in shape:
        field = _fits(shape[str])
        return lambda value: isinstance(value, dict) and all(map(field, value.values()))
    if isinstance(shape, dict):
        return _test_object({field: _fits(inner) for field, inner in shape.items()})
    if isinstance(shape, type) and shape in (str, bool):
        return lambda value: isinstance(value, shape)
    if shape is int:
        return lambda value: type(value) is int and 0 <= value <= _MOST
    return lambda value: _is(value, shape)


def _test_object(fields: dict[str, Callable[[object], bool]]) -> Callable[[object], bool]:
    must = [(name, test) for name, test in fields.items() if not name.endswith("?")]
    may = [(name.removesuffix("?"), test) for name, test in fields.items() if name.endswith("?")]

    def test(value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return all(name in value and test(value[name]) for name, test in must) and all(
            name not in value or test(value[name]) for name, test in may
        )

    return test


def _wrong(value: object, shape: Shape, at: str) -> str:
    """The field that is wrong, "" where none is."""
    if isinstance(shape, Maybe):
        return "" if value is None else _wrong(value, shape.shape, at)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return at or "a list"
        return next(filter(None, (_wrong(item, shape[0], f"{at}[{n}]") for n, item in enumerate(value))), "")
    if isinstance(shape, dict):
        return _wrong_object(value, shape, at) if isinstance(value, dict) else at or "an object"
    return "" if _is(value, shape) else at or "a value"


def _wrong_object(value: dict[str, Any], shape: dict[Any, Shape], at: str) -> str:
    if str in shape:
        return next(filter(None, (_wrong(item, shape[str], f"{at}.*") for item in value.values())), "")
    for field, inner in shape.items():
        known = field.removesuffix("?")
        below = f"{at}.{known}" if at else known
        if known not in value:
            if known == field:
                return below
        elif where := _wrong(value[known], inner, below):
            return where
    return ""


def _is(value: object, shape: Shape) -> bool:
    if isinstance(shape, Hex):
        return isinstance(value, str) and _is_hex(value, shape.size)
    if isinstance(shape, Up):
        return _is(value, int) and value <= shape.most  # type: ignore[operator]
    if shape is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
    if shape is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= _MOST and math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, shape)


def _is_hex(text: str, size: int | None) -> bool:
    try:
        data = bytes.fromhex(text)
    except ValueError:
        return False
    return data.hex() == text and size in (None, len(data))
