"""The log, on standard error: plain lines, or with a priority where the journal reads them."""

import logging
import os
import sys

from vmbackup.cli.options import State
from vmbackup.cli.output import clean

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def start_log(state: State) -> None:
    """Send the log of vmbackup to standard error: warnings, more with -v, everything with -vv or --debug."""
    level = logging.WARNING
    if state.verbose == 1:
        level = logging.INFO
    if state.verbose > 1 or state.debug:
        level = logging.DEBUG
    if state.quiet:
        level = logging.ERROR
    logger = logging.getLogger("vmbackup")
    logger.handlers = [_Handler()]
    logger.setLevel(level)
    logger.propagate = False


class _Handler(logging.Handler):
    """Writes to whatever sys.stderr is now: a progress bar puts itself in between while it is shown."""

    def __init__(self) -> None:
        super().__init__()
        journal = bool(os.environ.get("JOURNAL_STREAM"))
        self._journal = journal
        plain = "%(message)s" if journal else "%(asctime)s %(levelname)s %(name)s: %(message)s"
        self.setFormatter(logging.Formatter(plain))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).split("\n")
            mark = f"<{_PRIORITIES.get(record.levelno, 5)}>" if self._journal else ""
            sys.stderr.write("".join(f"{mark}{clean(line)}\n" for line in lines))
        except Exception:
            self.handleError(record)
