"""A small HTTP/1.1 server: one request a connection, everything bounded.

Connections live in one event loop, so that slow and silent ones cost no thread; what a request asks for is made in
threads, few at a time.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus

from vmbackup.daemon.control_http import HEAD_BYTES, BadRequest, HttpRequest, failure, read_request
from vmbackup.errors import UsageError, VmbackupError

_ACCEPT_AGAIN = 0.1  # seconds
_LOG = "its log tells: journalctl -u vmbackup"


@dataclass(frozen=True)
class Bounds:
    """What clients may take; times in seconds."""

    read: float = 5.0  # for the whole request, from the first byte or none
    call: float = 60.0  # for the service's answer
    write: float = 10.0  # for the client to take it
    close: float = 1.0  # for open requests, when the service stops
    readers: int = 200  # connections that have not said yet what they want: beyond, the oldest is closed
    calls: int = 8  # threads
    open: int = 256  # connections in all, those that take their answer slowly too: beyond, the oldest is closed


class Listener:
    """Answers at a listening socket, which stays its owner's to close. `name` is for logs and threads.

    `respond` makes the bytes of an answer, in a thread; `refuse` those for a client that may ask nothing, None for one
    that may.
    """

    def __init__(
        self,
        name: str,
        respond: Callable[[HttpRequest], bytes],
        refuse: Callable[[socket.socket], bytes | None] = lambda _connection: None,
        bounds: Bounds | None = None,
    ) -> None:
        self._name, self._respond, self._refuse = name, respond, refuse
        self._bounds = bounds or Bounds()
        self._log = logging.getLogger(f"vmbackup.daemon.{name}")
        self._ready = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self, listening: socket.socket) -> None:
        """Answer from now on."""
        self._socket = listening
        listening.setblocking(False)
        self._thread.start()
        self._ready.wait()

    def shutdown(self) -> None:
        """Answer no more, and end what is under way after a moment. May be called twice, and before `start`."""
        if self._socket is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._socket = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            self._log.exception("%s is gone, and will not answer", self._name)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._calls = asyncio.Semaphore(self._bounds.calls)
        self._open: dict[socket.socket, asyncio.Task[None]] = {}
        self._readers: dict[socket.socket, None] = {}  # oldest first
        self._listen(self._socket)
        self._ready.set()
        await self._stop.wait()
        self._loop.remove_reader(self._socket)
        if self._open:
            await asyncio.wait(self._open.values(), timeout=self._bounds.close)
        for connection in list(self._open):
            self._end(connection)

    def _listen(self, listening: socket.socket) -> None:
        """A callback, for a task that is cancelled as it accepts would lose the connection."""
        if not self._stop.is_set():
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:  # no descriptors left; a connection that is gone already
            self._log.warning("a connection to %s: %s", self._name, error.strerror)
            self._loop.remove_reader(listening)
            self._loop.call_later(_ACCEPT_AGAIN, self._listen, listening)
            return
        connection.setblocking(False)
        if len(self._open) >= self._bounds.open:
            self._end(next(iter(self._open)))
        task = self._loop.create_task(self._attend(connection))
        self._open[connection] = task
        task.add_done_callback(partial(self._end, connection))

    def _end(self, connection: socket.socket, _done: "asyncio.Task[None] | None" = None) -> None:
        """Closes a connection, whatever goes on there."""
        task = self._open.pop(connection, None)
        self._readers.pop(connection, None)
        if task is not None:
            task.cancel()
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
            connection.close()

    async def _attend(self, connection: socket.socket) -> None:
        try:
            answer = await self._answer(connection)
            async with asyncio.timeout(self._bounds.write):
                await self._loop.sock_sendall(connection, answer)
        except (OSError, EOFError):  # TimeoutError, too: the other end is gone, or too slow
            pass
        except Exception:
            self._log.exception("a connection to %s", self._name)

    async def _answer(self, connection: socket.socket) -> bytes:
        """Reads the request, gives the answer. Raises OSError, EOFError."""
        refusal = self._refuse(connection)
        try:
            request = await self._request(connection)
        except TimeoutError:
            message = f"the request took longer than {self._bounds.read:g} s"
            return failure(UsageError(message), HTTPStatus.REQUEST_TIMEOUT).encode()
        except BadRequest as error:
            return failure(UsageError(error.message), error.status).encode()
        return await self._ask(request) if refusal is None else refusal

    async def _request(self, connection: socket.socket) -> HttpRequest:
        if len(self._readers) >= self._bounds.readers:
            self._end(next(iter(self._readers)))
        self._readers[connection] = None
        try:
            async with asyncio.timeout(self._bounds.read):
                request = await read_request(lambda: self._loop.sock_recv(connection, HEAD_BYTES))
            return replace(request, peer=_peer(connection))
        finally:
            self._readers.pop(connection, None)

    async def _ask(self, request: HttpRequest) -> bytes:
        """What the service says, made in a thread of its own; one that hangs is waited for no longer than may be."""
        try:
            async with asyncio.timeout(self._bounds.call):
                await self._calls.acquire()
                answered: asyncio.Future[bytes] = self._loop.create_future()
                call = threading.Thread(
                    target=self._call, args=(request, answered), name=f"{self._name} {request.path}", daemon=True
                )
                try:
                    call.start()
                except RuntimeError:  # no more threads on this machine
                    self._calls.release()
                    return failure(VmbackupError("the service cannot start a thread", _LOG)).encode()
                return await answered
        except TimeoutError:
            error = VmbackupError("the service did not answer in time", _LOG)
            return failure(error, HTTPStatus.GATEWAY_TIMEOUT).encode()

    def _call(self, request: HttpRequest, answered: "asyncio.Future[bytes]") -> None:
        answer = self._respond(request)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._settle, answered, answer)

    def _settle(self, answered: "asyncio.Future[bytes]", answer: bytes) -> None:
        self._calls.release()
        if not answered.done():
            answered.set_result(answer)


def _peer(connection: socket.socket) -> str:
    """The address at the other end, "" for that of a unix socket."""
    name = connection.getpeername()
    return str(name[0]) if isinstance(name, tuple) else ""
