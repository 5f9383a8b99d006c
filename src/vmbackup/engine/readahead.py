"""Seeing that somebody reads on and on, so that what comes next is made ready before it is asked for."""

import threading
from collections import OrderedDict

STREAMS = 32  # readers that are told apart: connections, and places that one connection copies from
FIRST, MOST = 2, 8  # steps ahead: at the first sign, and after that twice as many each time


class ReadAhead:
    """Watches the reads of one disk, by steps (windows of the disk). Shared by threads.

    `readers`: those inside of a `with` of it.
    """

    def __init__(self, most: int = MOST) -> None:
        self.readers = 0
        self._most = most
        self._ahead: OrderedDict[int, tuple[int, int]] = OrderedDict()  # due step -> (known up to, steps ahead)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.readers -= 1

    def next(self, first: int, last: int) -> range:
        """The steps to make ready after a read of steps `first` to `last`: none unless it goes on from another."""
        with self._lock:
            for due in range(first, last + 2):  # the same step again, or any that this read covers
                known = self._ahead.pop(due, None)
                if known is not None:
                    break
            else:
                self._remember(last + 1, (last + 1, 0))
                return range(0)
            done, ahead = known
            if due == last + 1:  # still inside of what was read
                self._remember(due, known)
                return range(0)
            ahead = min(self._most, max(FIRST, 2 * ahead))
            until = last + 1 + ahead
            start = max(done, last + 1)
            self._remember(last + 1, (max(until, done), ahead))
            return range(start, until)

    def _remember(self, due: int, known: tuple[int, int]) -> None:
        self._ahead[due] = known
        while len(self._ahead) > STREAMS:
            self._ahead.popitem(last=False)
