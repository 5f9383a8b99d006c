"""How far a run is: its lines on the progress pipe, and bytes a second that do not jump about."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vmbackup.daemon.lines import Lines, plain
from vmbackup.daemon.work import Progress

_LINE = 16384  # bytes; a longer one is none of ours
_TEXT = 500  # characters of a task's name or a note
_SMOOTH = 10.0  # seconds over which the rate is smoothed
_STILL = 5.0  # seconds without a line after which the rate begins to fall: a run that hangs moves nothing


class Gauge:
    """Calls `tell` with what is known after each piece of the pipe, and `note` with each sentence for the operator."""

    def __init__(
        self,
        tell: Callable[[Progress], None],
        note: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell, self._note, self._monotonic = tell, note, monotonic
        self._lines = Lines(_LINE)
        self._known = Progress()
        self._at: float | None = None  # of the last look at the rate

    def feed(self, data: bytes) -> None:
        """A piece of the pipe. What is no progress is passed over."""
        before = self._known
        for line in self._lines.feed(data):
            document = _document(line)
            if isinstance(text := document.get("note"), str):
                self._known = replace(self._known, note=plain(text)[:_TEXT])
                self._note(self._known.note)
            elif document:
                self._measure(document)
        if self._known != before:
            self._tell(self._known)

    def idle(self) -> None:
        """To be called every few seconds, whether lines come or not."""
        if self._at is None or self._known.bytes_per_second == 0 or self._monotonic() - self._at < _STILL:
            return
        rate = self._rate(0)
        self._known = replace(self._known, bytes_per_second=rate if rate >= 1 else 0.0)
        self._tell(self._known)

    def _measure(self, document: dict[str, Any]) -> None:
        task, done, total = document.get("task"), _size(document.get("done_bytes")), document.get("total_bytes")
        if not isinstance(task, str) or done is None:
            return
        task = plain(task)[:_TEXT]
        known = self._known
        new = task != known.task or done < known.done_bytes
        rate = self._rate(done if new else done - known.done_bytes)
        self._known = Progress(task, done, _size(total), rate, known.note)

    def _rate(self, moved: int) -> float:
        """The rate, now that so many bytes have moved since the last look."""
        now, rate = self._monotonic(), self._known.bytes_per_second
        if self._at is None:
            self._at = now
            return 0.0
        span = now - self._at
        if span <= 0:
            return rate
        self._at = now
        current = moved / span
        return current if rate == 0 else rate + (current - rate) * (1 - math.exp(-span / _SMOOTH))


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _size(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
