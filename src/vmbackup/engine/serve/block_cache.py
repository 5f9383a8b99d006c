"""A bounded cache of decoded blocks, shared by threads: each block is made once, however many wait for it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Make = Callable[[Sequence[K]], Mapping[K, V]]


class BlockCache(Generic[K, V]):
    """Values by keys, those used last, as many as `cost` no more than `limit` bytes together.

    What `keeps` does not hold for is given to who waits for it, and made anew for the next.
    """

    def __init__(self, limit: int, cost: Callable[[V], int], keeps: Callable[[V], bool]) -> None:
        self.limit = limit
        self.held = 0  # bytes
        self._cost, self._keeps = cost, keeps
        self._values: OrderedDict[K, V] = OrderedDict()
        self._making: dict[K, Future[Mapping[K, V]]] = {}
        self._lock = threading.Lock()

    def get(self, keys: Sequence[K], make: Make[K, V]) -> dict[K, V]:
        """All of them: what is not there is made by one call, but for what another thread is making already.

        Raises what `make` raises, in each thread that waits for it.
        """
        found: dict[K, V] = {}
        mine: list[K] = []
        theirs: dict[K, Future[Mapping[K, V]]] = {}
        promise: Future[Mapping[K, V]] | None = None
        with self._lock:
            for key in keys:
                value = self._values.get(key)
                if value is not None:
                    self._values.move_to_end(key)
                    found[key] = value
                elif key in self._making:
                    theirs[key] = self._making[key]
                else:
                    promise = promise or Future()
                    self._making[key] = promise
                    mine.append(key)
        if promise is not None:
            found.update(self._make(mine, make, promise))
        for key, future in theirs.items():
            found[key] = future.result()[key]
        return found

    def prepare(self, keys: Sequence[K], make: Make[K, V]) -> None:
        """Makes what is neither there nor being made; waits for nobody. Raises what `make` raises."""
        with self._lock:
            mine = [key for key in keys if key not in self._values and key not in self._making]
            promise: Future[Mapping[K, V]] = Future()
            self._making.update(dict.fromkeys(mine, promise))
        if mine:
            self._make(mine, make, promise)

    def demote(self, key: K) -> None:
        """Nobody is expected to ask for it soon: it goes before all others, and its memory is used again at once."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key, last=False)

    def lacks(self, key: K) -> bool:
        """Whether the value is neither there nor being made."""
        return key not in self._values and key not in self._making

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()
            self.held = 0

    def _make(self, keys: Sequence[K], make: Make[K, V], promise: Future[Mapping[K, V]]) -> Mapping[K, V]:
        try:
            made = make(keys)
        except BaseException as error:
            with self._lock:
                for key in keys:
                    del self._making[key]
            promise.set_exception(error)
            raise
        with self._lock:
            for key in keys:
                del self._making[key]
                if self._keeps(made[key]):
                    self._values[key] = made[key]
                    self.held += self._cost(made[key])
            while self.held > self.limit and self._values:
                self.held -= self._cost(self._values.popitem(last=False)[1])
        promise.set_result(made)
        return made
