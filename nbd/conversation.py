"""A connection past its handshake: requests in, answers out in whatever order they are ready."""

import logging
import threading
from time import monotonic

from vmbackup.nbd import protocol as p
from vmbackup.nbd.answers import Answers, Asked
from vmbackup.nbd.greeting import Agreed
from vmbackup.nbd.stream import MESSAGE_SECONDS, Gone

_log = logging.getLogger("vmbackup.nbd.server")
# Threads of one connection at most: as many of its requests are worked on at a time, and more wait in the socket.
WORKERS = 8
_DISCARD = 64 << 10  # bytes of a write that are held while they are thrown away


class Conversation:
    """Serves one client. Each thread receives a request, lets the next one receive, and answers its own.

    So nothing is queued: what a client asks for without taking the answers costs WORKERS pieces of memory.
    """

    def __init__(self, agreed: Agreed) -> None:
        self._stream, self._answers = agreed.stream, Answers(agreed)
        self._most = min(WORKERS, getattr(agreed.export, "parallel", WORKERS))
        self._receiving, self._sending, self._counting = threading.Lock(), threading.Lock(), threading.Lock()
        self._busy = 0  # threads that answer
        self._others: list[threading.Thread] = []  # beside the one that runs this
        self._over = False

    def run(self) -> None:
        """Until the client leaves, or does what no client may. All threads have ended then."""
        self._work()
        for thread in self._others:  # none is added once it is over
            thread.join()

    def _work(self) -> None:
        try:
            while (asked := self._next()) is not None:
                try:
                    for message in self._answers.of(asked):
                        with self._sending:
                            self._stream.send(message)
                finally:
                    with self._counting:
                        self._busy -= 1
        except Gone as error:
            self._end(str(error))
        except Exception:
            _log.exception("a connection is given up")
            self._end("failed")

    def _next(self) -> Asked | None:
        """The next request; None where there is none any more. Sees to it that somebody takes the one after it."""
        with self._receiving:
            if self._over:
                return None
            asked = self._receive()
            if asked is None:
                self._over = True
                return None
            with self._counting:
                self._busy += 1
                if self._busy > len(self._others) and len(self._others) + 1 < self._most:
                    self._others.append(threading.Thread(target=self._work, name="nbd-worker", daemon=True))
                    self._others[-1].start()
            return asked

    def _receive(self) -> Asked | None:
        header = bytearray(p.REQUEST.size)
        if not self._stream.receive(memoryview(header), None):
            return None
        magic, flags, command, cookie, offset, length = p.REQUEST.unpack(header)
        if magic != p.REQUEST_MAGIC:
            raise Gone("it does not speak NBD")
        if command == p.CMD_DISC:
            return None
        if command == p.CMD_WRITE:
            self._discard(length)
        return Asked(flags, command, cookie, offset, length)

    def _discard(self, length: int) -> None:
        """The data of a write that is refused."""
        if length > p.MAX_REQUEST:
            raise Gone(f"a write of {length} bytes")
        deadline = monotonic() + MESSAGE_SECONDS
        view = memoryview(bytearray(min(length, _DISCARD)))
        while length:
            size = min(length, _DISCARD)
            if not self._stream.receive(view[:size], deadline):
                raise Gone("it ended in the middle of a write")
            length -= size

    def _end(self, why: str) -> None:
        _log.debug("a connection ends: %s", why)
        self._over = True
        self._stream.shutdown()
