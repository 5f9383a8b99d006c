"""A look at the wall clock: whether it was set, or the machine slept, since the last look."""

import time
from collections.abc import Callable

# Seconds between two looks that are no jump: time servers slew by up to half a millisecond a second, and a busy
# machine may be kept from reading the second clock right after the first.
_TOLERANCE = 2.0


class WallClock:
    """Compares the clock of calendars with one that is never set, and stands still while the machine sleeps."""

    def __init__(
        self, clock: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._difference = clock() - monotonic()

    def jump(self) -> float:
        """Seconds that it has jumped since the last look (below 0: it was set back); 0 for what is no jump."""
        difference = self._clock() - self._monotonic()
        jumped, self._difference = difference - self._difference, difference
        return jumped if abs(jumped) > _TOLERANCE else 0.0
