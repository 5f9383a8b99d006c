"""Which line a key of a TOML file stands on: tomllib keeps none. The file is known to be valid TOML."""

import re

Path = tuple[str, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY = re.compile(rf"\s*({_PART}(?:\s*\.\s*{_PART})*)\s*=")
_HEADER = re.compile(rf"\s*\[\[?\s*({_PART}(?:\s*\.\s*{_PART})*)\s*\]\]?")
_PARTS = re.compile(_PART)
_TOKEN = re.compile(r"""\"\"\"|'''|"(?:[^"\\]|\\.)*"|'[^']*'|[\[\]{}#]""")


def key_lines(text: str) -> dict[Path, int]:
    """Path of each table and key -> its line, from 1. Keys within inline tables are not told apart."""
    lines: dict[Path, int] = {}
    table: Path = ()
    depth, quote = 0, ""  # open brackets, and the quotes of an open multi-line string
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        if not depth and not quote:
            if header := _HEADER.match(line):
                table = _split(header[1])
                _mark(lines, table, number)
                continue
            if key := _KEY.match(line):
                _mark(lines, table + _split(key[1]), number)
                rest = line[key.end() :]
        depth, quote = _follow(rest, depth, quote)
    return lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of `path`, or of the nearest table or key around it."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def _mark(lines: dict[Path, int], path: Path, number: int) -> None:
    for end in range(1, len(path) + 1):
        lines.setdefault(path[:end], number)


def _split(dotted: str) -> Path:
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in _PARTS.findall(dotted))


def _follow(text: str, depth: int, quote: str) -> tuple[int, str]:
    """Brackets and multi-line strings that are still open after `text`."""
    at = 0
    while at < len(text):
        if quote:
            end = text.find(quote, at)
            if end < 0:
                return depth, quote
            at, quote = end + len(quote), ""
            continue
        token = _TOKEN.search(text, at)
        if token is None or token[0] == "#":
            break
        if token[0] in ('"""', "'''"):
            quote = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        at = token.end()
    return depth, quote
