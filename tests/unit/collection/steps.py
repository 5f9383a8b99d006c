"""Actors on one store, one request at a time: any interleaving of the real code's requests, crashes included.

Each actor runs the real code in a thread of its own, and stops before each request to the store until it is its
turn. So exactly one thread runs at any time, and the order is the scheduler's alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from vmbackup.storage_backends import (
    Buffer,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    ProbeResult,
)

DAY = 86400.0


class Killed(BaseException):
    """Stands for kill -9: no request of the actor reaches the store any more."""


class MemoryStore:
    """Objects in memory, put if absent. `now` is the store's clock, in seconds."""

    url = place = "memory://"

    def __init__(self, objects: dict[str, tuple[bytes, float]] | None = None) -> None:
        self.objects = dict(objects or {})
        self.late: list[str] | None = None  # deletes that a store was asked for and has not done
        self.now = 0.0

    def put(self, key: str, data: Buffer) -> None:
        made = bytes(data)
        if self.objects.setdefault(key, (made, self.now))[0] != made:
            raise ObjectExists(key)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        data = self.objects[key][0]
        end = len(data) if length is None else offset + length
        if end > len(data):
            raise ObjectTruncated(key, len(data), end)
        return data[offset:end]

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.get(key, offset, len(buffer))

    def stat(self, key: str) -> Entry:
        return Entry(key, len(self.get(key)), self.objects[key][1])

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        found = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return iter([Entry(key, len(self.objects[key][0]), self.objects[key][1]) for key in found])

    def delete(self, key: str) -> None:
        if self.late is not None and key.startswith(("data/", "meta/", "index/")):
            self.late.append(key)
        else:
            self.objects.pop(key, None)

    def catch_up(self) -> None:
        """Deletes that were late take place."""
        late, self.late = self.late or [], None
        for key in late:
            self.delete(key)

    def probe(self, *, powers: bool = False) -> ProbeResult:
        import time

        return ProbeResult(True, True, True, True, self.now - time.time(), None)

    def close(self) -> None:
        pass


class Actor:
    """A thread that asks for its turn before each request."""

    def __init__(self, name: str, store: MemoryStore, work: Callable[[Actor], None]) -> None:
        self.name, self._store, self._work = name, store, work
        self.killed = self.done = False
        self.error: BaseException | None = None
        self.pending = ("", "")
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Runs up to the first request."""
        self._thread.start()
        self._back.acquire()

    def step(self) -> None:
        """One request, and on to the next."""
        self._turn.release()
        self._back.acquire()

    def until(self, verb: str, prefix: str) -> None:
        """Up to just before its next request of that kind; it must come to one."""
        if not self._thread.ident:
            self.start()
        while not self.done and not (self.pending[0] == verb and self.pending[1].startswith(prefix)):
            self.step()
        assert not self.done, f"{self.name} never came to {verb} {prefix}: {self.error}"

    def finish(self) -> None:
        """To its end."""
        if not self._thread.ident:
            self.start()
        while not self.done:
            self.step()

    def pause(self) -> None:
        """Called by the actor: the others may go on."""
        self._back.release()
        self._turn.acquire()
        if self.killed:
            raise Killed

    def _run(self) -> None:
        try:
            self._work(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.done = True
            self._back.release()

    def __getattr__(self, verb: str) -> object:
        """The verbs of a store, each a step."""
        found = getattr(self._store, verb)
        if verb in ("url", "place", "probe", "close"):
            return found

        def request(*args: object, **options: object) -> object:
            self.pending = verb, str(args[0])
            self.pause()
            return found(*args, **options)

        return request
