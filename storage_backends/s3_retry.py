"""Repeating what failed for a reason that may pass, within a limit of time."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

FIRST_PATIENCE = 10.0  # seconds until a server that never answered is given up: its address is probably wrong
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 20.0  # seconds between tries: doubled each time, then cut at random
_LIVELY = 1 << 20  # bytes: a read that brought less before it was cut is a failure like any other


class Patience:
    """For how long a store's requests are repeated; shared by its threads. `seconds`: once it has answered."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._seconds, self._clock, self._sleep, self._chance = seconds, clock, sleep, chance
        self.answered = False

    def trial(self) -> "Trial":
        """The tries of one request."""
        return Trial(self._clock, self._sleep, self._chance, self._limit)

    def _limit(self) -> float:
        return self._seconds if self.answered else min(self._seconds, FIRST_PATIENCE)


class Trial:
    """Counts the time since the first failure of a row."""

    def __init__(
        self,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        chance: Callable[[], float],
        limit: Callable[[], float],
    ) -> None:
        self._clock, self._sleep, self._chance, self._limit = clock, sleep, chance, limit
        self._failing_since: float | None = None
        self._delay = _FIRST_DELAY

    def wait(self) -> bool:
        """Call after a failure: waits and gives True, or False at once where the limit is reached."""
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        left = self._failing_since + self._limit() - now
        if left <= 0:
            return False
        self._sleep(min(left, self._delay * (0.5 + self._chance() / 2)))
        self._delay = min(self._delay * 2, _LONGEST_DELAY)
        return True

    def progress(self, n_bytes: int) -> None:
        """Tell that bytes arrived before a failure: many of them end the row of failures."""
        if n_bytes >= _LIVELY:
            self._failing_since, self._delay = None, _FIRST_DELAY
