"""Changes of bytes and of JSON, by a seeded chance."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 255, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, 10**40, 0.5, -0.0,
    1e308, "", "0", "x", "é\U0001f600", "\x00", "\x1b[2J", "../../etc", "a" * 3000, "00" * 8, "00" * 16, "00" * 32,
    "zz", "2026-01-01T00:00:00", "2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999+00:00",
    "0001-01-01T00:00:00-14:00", [], [[]], {}, {"": {}}, [None], ["x"] * 50, {"number": 1}, [{"number": 1}],
]  # fmt: skip
NUMBERS = [0, 1, 2, 15, 16, 17, 255, 256, 4095, 4096, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def mutated(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The bytes with one to four changes; `others` are spliced in."""
    out = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(9):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out += chance.randbytes(chance.choice([1, 4, 16, 100]))
            case 3:
                other = chance.choice(others)
                start = chance.randrange(len(other) + 1)
                out[at:] = other[start:]
            case 4:  # a length, or a number
                width = chance.choice([1, 2, 4, 4, 8])
                at = at // width * width if chance.random() < 0.5 else at
                out[at : at + width] = (chance.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "big")
            case 5:
                del out[at : at + chance.choice([1, 4, 16, 72])]
            case 6:
                size = chance.choice([1, 4, 16, 52, 72, 76])
                out[at:at] = out[at : at + size] * chance.choice([1, 2, 100])
            case 7:  # two fields change places
                width = chance.choice([1, 2, 4, 8, 16])
                other_at = chance.randrange(len(out) + 1)
                first, second = out[at : at + width], out[other_at : other_at + width]
                if len(first) == len(second):
                    out[at : at + width], out[other_at : other_at + width] = second, first
            case _:
                size = chance.choice([1, 4, 8])
                out[at : at + size] = chance.randbytes(len(out[at : at + size]))
    return bytes(out)


def lied(chance: random.Random, document: Any) -> Any:
    """The document with one to three values that are another, or none."""
    made = copy.deepcopy(document)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        places = list(_places(made))
        if not places:
            return made
        holder, key = chance.choice(places)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1:
                holder[key] = [holder[key]]
            case 2:
                other_holder, other_key = chance.choice(places)
                holder[key] = copy.deepcopy(other_holder.get(other_key)) if isinstance(other_holder, dict) else None
            case 3 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
                holder[key] += chance.choice([-1, 1, 1 << 16, 1 << 32])
            case 4 if isinstance(holder, dict):
                holder[chance.choice(["x", "features", "disks", "name"])] = copy.deepcopy(chance.choice(ODD))
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return made


def _places(value: Any) -> Any:
    """(holder, key) of each value inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
