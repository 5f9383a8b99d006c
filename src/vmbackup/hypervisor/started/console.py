"""What a guest prints on its console, as text that may be shown: the guest decides on every byte of it."""

import codecs
import re
from collections import deque

_LINES = 200  # kept
_LINE = 500  # characters of a line; a longer one goes on in the next
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]{0,32}[ -/]{0,4}[@-~]|\][^\x07\x1b]{0,200}(?:\x07|\x1b\\)|[()][0-9A-B]|[@-_=>78])"
)


class Console:
    """The last lines of what was fed; a bounded number of them, whatever the guest sends."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._open = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> list[str]:
        """Takes what came; gives the lines that are new or have grown by it, cleaned."""
        text = self._open + self._decoder.decode(data)
        lines = [part for line in re.split(r"\r*\n|\r", text) for part in _folded(line)]
        self._open = lines.pop()
        ended = [line for line in map(clean, lines) if line]
        self._lines.extend(ended)
        return [*ended, *self._going_on()]

    def last(self, count: int) -> list[str]:
        """The last lines, the one that goes on too."""
        return [*self._lines, *self._going_on()][-count:]

    def _going_on(self) -> list[str]:
        return [line] if (line := clean(self._open)) else []


def _folded(line: str) -> list[str]:
    return [line[at : at + _LINE] for at in range(0, len(line), _LINE)] or [""]


def clean(line: str) -> str:
    """Without colours, movements of the cursor and whatever else a terminal would obey."""
    plain = _SEQUENCE.sub("", line).replace("\t", " ")
    return "".join(filter(str.isprintable, plain)).rstrip()
