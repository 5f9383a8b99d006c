"""Now and then a target is synced, so that what was written outlasts a kill."""

import time
from collections.abc import Callable

from vmbackup.engine.images.targets import Target

# What a kill costs at most. A sync takes tens of milliseconds, beside the workers.
SYNC_SECONDS = 10.0


def _nothing() -> None:
    """Nobody asked."""


class Savepoints:
    """Syncs a target every so many seconds, in the thread that hands out the work; tells `saved` of it."""

    def __init__(
        self,
        seconds: float = SYNC_SECONDS,
        saved: Callable[[], None] = _nothing,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._saved, self._clock = seconds, saved, clock
        self._next = clock() + seconds

    def look(self, target: Target) -> None:
        """Syncs if it is time. Raises TargetError."""
        if self._clock() >= self._next:
            target.sync()
            self._saved()
            self._next = self._clock() + self._seconds
