"""Text for people: tables, colours, times; and the one JSON document."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

import click

# Beside control characters those that turn the direction of writing, hide, or end lines (Unicode Cf, Zl, Zp).
_CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_GAP = "  "


def clean(text: str) -> str:
    """`text` without control characters: names come from guests and stores, and must not steer a terminal."""
    return _CONTROL.sub("?", text)


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """`text` in bold colour where `stream` (standard output) is a terminal and NO_COLOR is unset."""
    if os.environ.get("NO_COLOR") or not (stream or sys.stdout).isatty():
        return text
    return click.style(text, fg=colour or None, bold=True)


def say(text: str = "") -> None:
    """A line on standard output."""
    click.echo(text)


def warn(text: str) -> None:
    """A warning on standard error."""
    click.echo(f"{paint('warning:', 'yellow', sys.stderr)} {clean(text)}", err=True)


def say_json(document: Mapping[str, Any]) -> None:
    """The one document of a command that was asked for JSON."""
    click.echo(json.dumps(document, indent=2))


def counted(number: int, thing: str) -> str:
    """The number and the word for it, as in "1 disk" and "2 disks"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def local_time(time: datetime, *, seconds: bool = True) -> str:
    """`time` in the zone of this machine, with its offset: "2026-11-24 14:36:00+01:00"."""
    return time.astimezone().isoformat(sep=" ", timespec="seconds" if seconds else "minutes")


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()) -> str:
    """Aligned columns under their titles; those named in `right` end flush. Nothing is ever cut off."""
    cells = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(titles), *cells]) for i in range(len(titles))]
    flush = {titles.index(title) for title in right}

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if i in flush else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return _GAP.join(padded).rstrip()

    return "\n".join([paint(line(titles), ""), *(line(row) for row in cells)])


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values of one thing, a line each."""
    listed = [(name, clean(value)) for name, value in pairs]
    width = max((len(name) for name, _ in listed), default=0)
    return "\n".join(f"{name.ljust(width)}{_GAP}{value}".rstrip() for name, value in listed)
