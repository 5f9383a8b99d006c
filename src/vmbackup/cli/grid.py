"""Tables that fit a terminal: columns shrink to shorter forms, and names are never cut."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, chop_cells
from rich.text import Text

from vmbackup.cli.output import clean

Forms = Sequence[Text]  # of one cell, from the widest to the shortest; the last one serves for further levels too
_LEVELS = 3
_GAP = 2
_INDENT = 2  # of notes
_NAME_SHARE = 4  # a long name takes no more than a quarter of the width from longer forms of the other columns,
_NAME_MOST = 3  # and no more than a third in all: beyond it stands on a line of its own
_NAME_LEAST = 16


@dataclass(frozen=True)
class Row:
    """A name, a cell for each further column, and sentences that stand beneath."""

    name: Text
    cells: Sequence[Forms]
    notes: Sequence[Text] = field(default_factory=tuple)


def text(value: str, style: str = "") -> Text:
    """A piece of one line, whatever is in it."""
    return Text(" ".join(clean(value).split()), style)


def forms(*values: str, style: str = "") -> list[Text]:
    """The forms of a cell in one style."""
    return [text(value, style) for value in values]


def grid(titles: Sequence[str | Sequence[str]], rows: Sequence[Row], width: int | None) -> list[list[Text]]:
    """The title's line, then the lines of each row. `width` in cells of the terminal; None: as wide as it gets."""
    named, *others = ([title] if isinstance(title, str) else title for title in titles)
    head = Row(text(named[0], "bold"), [forms(*title, style="bold") for title in others])
    for level in range(_LEVELS):
        widths = [max(_cell(row, i, level).cell_len for row in (head, *rows)) for i in range(len(others))]
        rest = sum(width + _GAP for width in widths if width)
        longest = max(row.name.cell_len for row in (head, *rows))
        most = longest if width is None else min(longest, max(_NAME_LEAST, width // _NAME_SHARE))
        if width is None or most + rest <= width:
            break
    if width is not None:  # what is left over goes to the names
        most = min(longest, max(_NAME_LEAST, min(width - rest, width // _NAME_MOST)))
    return [_lines(row, level, most, widths, width) for row in (head, *rows)]


def _cell(row: Row, column: int, level: int) -> Text:
    shapes = row.cells[column]
    return shapes[min(level, len(shapes) - 1)]


def _lines(row: Row, level: int, name: int, widths: Sequence[int], width: int | None) -> list[Text]:
    lines = []
    line = row.name.copy()
    if line.cell_len > name:
        lines.append(line)
        line = Text()
    for column, wide in enumerate(widths):
        if wide:
            before = name if column == 0 else sum(w + _GAP for w in widths[:column] if w) + name
            line.append(" " * (before + _GAP - line.cell_len))
            line.append_text(_cell(row, column, level))
    line.rstrip()
    lines.append(line)
    for note in row.notes:
        lines += folded(note, width, _INDENT)
    return lines


def folded(sentence: Text, width: int | None, indent: int = 0, mark: str = "") -> list[Text]:
    """The sentence on lines of at most `width` cells, each indented; `mark` stands before the first."""
    room = sentence.cell_len if width is None else max(width - indent - len(mark), 1)
    lines: list[str] = [""]
    for word in _pieces(sentence.plain.split(" "), room):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if cell_len(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    marks = [mark, *[" " * len(mark)] * (len(lines) - 1)]
    return [Text(" " * indent).append(f"{mark}{line}", sentence.style) for mark, line in zip(marks, lines, strict=True)]


def _pieces(words: Iterable[str], room: int) -> Iterable[str]:
    for word in words:
        yield from chop_cells(word, room) if cell_len(word) > room else [word]
