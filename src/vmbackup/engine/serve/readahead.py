"""Seeing that somebody reads on and on, so that what comes next is made ready before it is asked for."""

import threading
from collections import OrderedDict

STREAMS = 32  # readers that are told apart: connections, and places that one connection copies from
FIRST, MOST = 2, 8  # steps ahead: at the first sign, and after that twice as many each time


class ReadAhead:
    """Watches the reads of one disk, by steps (windows of the disk). Shared by threads.

    `readers`: those inside of a `with` of it. Where `enough` others were, nothing is read ahead for `patience` reads:
    who reads ahead beside them would only have them wait for each other.
    """

    def __init__(self, enough: int, patience: int = 1) -> None:
        self.readers = 0
        self._enough, self._patience = enough, patience
        self._quiet = 0  # reads until some may be ahead again
        self._ahead: OrderedDict[int, tuple[int, int]] = OrderedDict()  # due step -> (known up to, steps ahead)
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.readers -= 1

    def next(self, first: int, last: int) -> tuple[bool, range]:
        """Told of a read of steps `first` to `last`: whether it goes on from another, and the steps to make ready then.

        None where as many readers as are enough are at work for what was asked for already, or were a moment ago.
        """
        with self._lock:
            self._quiet = self._patience if self.readers >= self._enough else max(0, self._quiet - 1)
            for due in range(first, last + 2):  # the same step again, or any that this read covers
                known = self._ahead.pop(due, None)
                if known is not None:
                    break
            else:
                self._remember(last + 1, (last + 1, 0))
                return False, range(0)
            done, ahead = known
            if due == last + 1:  # still inside of what was read
                self._remember(due, known)
                return ahead > 0, range(0)
            ahead = min(MOST, max(FIRST, 2 * ahead))
            start = max(done, last + 1)
            until = start if self._quiet else max(start, last + 1 + ahead)
            self._remember(last + 1, (until, ahead))
            return True, range(start, until)

    def _remember(self, due: int, known: tuple[int, int]) -> None:
        self._ahead[due] = known
        while len(self._ahead) > STREAMS:
            self._ahead.popitem(last=False)
