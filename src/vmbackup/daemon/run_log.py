"""What a run writes to standard error, line by line in the service's log."""

import logging
import re
import time
from collections import deque
from collections.abc import Callable

from vmbackup.daemon.lines import Lines, plain

_log = logging.getLogger("vmbackup.daemon.run")

# Bytes of a line, and lines in a while (seconds): a run gone mad must not fill the journal, nor take a core.
_LINE = 4096
_LINES = 200
_WHILE = 10.0
_KEPT = 5  # lines, for the error of a run that gave none

_PRIORITY = re.compile(r"<([0-7])>")  # sd-daemon(3)
_LEVELS = (logging.CRITICAL, logging.CRITICAL, logging.CRITICAL, logging.ERROR, logging.WARNING)
_DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) (?=\S)")  # cli/log.py
_TOLD = re.compile(r"(warning|error): ")  # what commands tell people


class RunLog:
    """Writes the lines of one run, each with the run's id and its subject; `last` are the newest of them."""

    def __init__(self, run_id: str, subject: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._run_id, self._subject, self._monotonic = run_id, subject, monotonic
        self._lines = Lines(_LINE)
        self._since = monotonic()
        self._told = self._left_out = 0
        self.last: deque[str] = deque(maxlen=_KEPT)

    def feed(self, data: bytes) -> None:
        """A piece of standard error."""
        lines = self._lines.feed(data)
        room = self._room()
        if len(lines) > room + _KEPT:  # the middle is not looked at
            self._left_out += len(lines) - room - _KEPT
            lines = lines[:room] + lines[-_KEPT:]
        for line in lines:
            self._line(line)

    def close(self) -> None:
        """The output has ended."""
        if rest := self._lines.rest():
            self._line(rest)
        self._tell_left_out()

    def say(self, text: str, level: int = logging.INFO) -> None:
        """A sentence about the run."""
        _log.log(level, "%s %s: %s", self._run_id, self._subject, text)

    def _line(self, data: bytes) -> None:
        level, text = _levelled(plain(data))
        if not text.strip():
            return
        self.last.append(text)
        if self._room() <= 0:
            self._left_out += 1
            return
        self._told += 1
        self.say(text, level)

    def _room(self) -> int:
        """How many more lines may be told in this while."""
        if self._monotonic() - self._since >= _WHILE:
            self._tell_left_out()
            self._since, self._told = self._monotonic(), 0
        return _LINES - self._told

    def _tell_left_out(self) -> None:
        if self._left_out:
            self.say(f"{self._left_out} more lines were left out", logging.WARNING)
            self._left_out = 0


def _levelled(line: str) -> tuple[int, str]:
    """The level that a line gives itself, and the line without that."""
    if found := _PRIORITY.match(line):
        number = int(found[1])
        level = _LEVELS[number] if number < len(_LEVELS) else logging.DEBUG if number == 7 else logging.INFO
        return level, line[found.end() :]
    if found := _DATED.match(line):
        return logging.getLevelNamesMapping()[found[1]], line[found.end() :]
    if found := _TOLD.match(line):
        return logging.getLevelNamesMapping()[found[1].upper()], line
    return logging.INFO, line
