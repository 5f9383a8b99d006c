"""The control socket: `vmbackup status`, `run` and `cancel`, and scripts, talk to the service here.

HTTP/1.1 and JSON over a unix socket, one request a connection. Connections live in one event loop, so that slow and
silent ones cost no thread; what a request asks of the service is done in threads, few at a time.
"""

import asyncio
import contextlib
import logging
import socket
import threading
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from vmbackup.daemon.control_api import Api, Service, failure
from vmbackup.daemon.control_http import HEAD_BYTES, BadRequest, HttpAnswer, HttpRequest, read_request
from vmbackup.daemon.control_socket import ControlSocket
from vmbackup.daemon.peers import Guard
from vmbackup.errors import AccessError, UsageError, VmbackupError

_ACCEPT_AGAIN = 0.1  # seconds
_LOG = "its log tells: journalctl -u vmbackup"
_log = logging.getLogger("vmbackup.daemon.control")


@dataclass(frozen=True)
class Bounds:
    """What clients may take; times in seconds."""

    read: float = 5.0  # for the whole request, from the first byte or none
    call: float = 60.0  # for the service's answer
    write: float = 10.0  # for the client to take it
    close: float = 1.0  # for open requests, when the service stops
    readers: int = 64  # connections that have not said yet what they want: beyond, the oldest is closed
    calls: int = 8  # threads


class ControlServer:
    """Listens at `path` from `start` to `shutdown`. `group`: who may use it beside root and the service's own user."""

    def __init__(self, path: Path, group: str | None, service: Service, bounds: Bounds | None = None) -> None:
        self._path, self._group = path, group
        self._api = Api(service)
        self._bounds = bounds or Bounds()
        self._ready = threading.Event()
        self._socket: ControlSocket | None = None
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def start(self) -> None:
        """Listen. Raises ConfigError, TargetError, VmbackupError (another service answers there)."""
        self._socket = ControlSocket(self._path, self._group)
        self._guard = Guard(self._socket.gid)
        self._socket.socket.setblocking(False)
        self._thread.start()
        self._ready.wait()

    def shutdown(self) -> None:
        """Stop listening, and end what is under way after a moment. May be called twice, and before `start`."""
        if self._socket is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._socket.close()
        self._socket = None

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:
            _log.exception("the control socket is gone: status, run and cancel will not answer")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        assert self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._calls = asyncio.Semaphore(self._bounds.calls)
        self._open: dict[socket.socket, asyncio.Task[None]] = {}
        self._readers: dict[socket.socket, None] = {}  # oldest first
        accepting = self._loop.create_task(self._accept(self._socket.socket))
        self._ready.set()
        await self._stop.wait()
        accepting.cancel()
        if self._open:
            await asyncio.wait(self._open.values(), timeout=self._bounds.close)
        for connection in list(self._open):
            self._end(connection)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as error:  # no descriptors left; a connection that is gone already
                _log.warning("a connection to the control socket: %s", error.strerror)
                await asyncio.sleep(_ACCEPT_AGAIN)
                continue
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
            _log.exception("a connection to the control socket")

    async def _answer(self, connection: socket.socket) -> bytes:
        """Reads the request, gives the answer. Raises OSError, EOFError."""
        allowed = self._guard.lets_in(connection)
        try:
            request = await self._request(connection)
        except TimeoutError:
            message = f"the request took longer than {self._bounds.read:g} s"
            return failure(UsageError(message), HTTPStatus.REQUEST_TIMEOUT).encode()
        except BadRequest as error:
            return failure(UsageError(error.message), error.status).encode()
        return await self._ask(request) if allowed else self._refusal().encode()

    async def _request(self, connection: socket.socket) -> HttpRequest:
        if len(self._readers) >= self._bounds.readers:
            self._end(next(iter(self._readers)))
        self._readers[connection] = None
        try:
            async with asyncio.timeout(self._bounds.read):
                return await read_request(lambda: self._loop.sock_recv(connection, HEAD_BYTES))
        finally:
            self._readers.pop(connection, None)

    def _refusal(self) -> HttpAnswer:
        if self._group is None:
            return failure(AccessError("only root may use the control socket", "socket_group in [daemon] lets others"))
        hint = f"root can add you: 'usermod -aG {self._group} USER'; then log in again"
        return failure(AccessError(f'only root and the group "{self._group}" may use the control socket', hint))

    async def _ask(self, request: HttpRequest) -> bytes:
        """What the service says, made in a thread of its own; one that hangs is waited for no longer than may be."""
        try:
            async with asyncio.timeout(self._bounds.call):
                await self._calls.acquire()
                answered: asyncio.Future[bytes] = self._loop.create_future()
                call = threading.Thread(
                    target=self._call, args=(request, answered), name=f"control {request.path}", daemon=True
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
        answer = self._api.respond(request)
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(self._settle, answered, answer)

    def _settle(self, answered: "asyncio.Future[bytes]", answer: bytes) -> None:
        self._calls.release()
        if not answered.done():
            answered.set_result(answer)


__all__ = ["Bounds", "ControlServer", "Service"]
