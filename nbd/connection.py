"""One connection past its handshake: requests out, replies in, in whatever order they come."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from vmbackup.nbd import protocol as p
from vmbackup.nbd.channel import Buffer, Channel
from vmbackup.nbd.errors import ConnectionLost, Fault, RequestFailed, broken, clean_text, errno_text
from vmbackup.nbd.handshake import ExportDetails
from vmbackup.nbd.request import Request

ZEROS = memoryview(bytes(1 << 20))  # what holes are filled from


class Connection:
    """Sends requests and receives their replies, each call within the channel's timeout.

    Not shared between threads; only `abort` may be called from another.
    """

    def __init__(self, channel: Channel, export: str, where: str, details: ExportDetails) -> None:
        """Takes over a channel that is past its handshake."""
        self.export = export
        self._where = where
        self._contexts = details.contexts
        self._least = details.block_size[0]
        self._channel = channel
        self._lock = threading.Lock()  # held while the socket is in use, so that abort knows
        self._closed: str | None = None  # why, once it is
        self._pending: dict[int, Request] = {}
        self._completed: deque[Request] = deque()
        self._last_cookie = 0
        self._current: Request | None = None  # whose reply is being received, for error messages
        self._header = bytearray(p.CHUNK.size)
        self._detail = bytearray(p.HOLE.size)

    @property
    def outstanding(self) -> int:
        """Requests that were submitted and not yet returned by `wait`."""
        return len(self._pending) + len(self._completed)

    def wait(self) -> int:
        """Waits for a request to complete, whichever is first, and returns its cookie.

        Raises RequestFailed for a failed one (its `cookie` tells which), ConnectionLost and its kinds.
        """
        if not self._completed:
            if not self._pending and self._closed is None:
                raise ValueError("no request is outstanding")
            self._receive_until(None)
        request = self._completed.popleft()
        if request.failure:
            self._raise_failed(request)
        return request.cookie

    def close(self) -> None:
        """Says good-bye and closes. Never raises; may be repeated."""
        if self._closed is None:
            self._channel.send_last(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 0, 0, 0))
        self._close("it was closed")

    def abort(self) -> None:
        """Closes without a good-bye. Any thread may call it: a call under way fails with ConnectionLost.

        Never raises; may be repeated.
        """
        if self._closed is None:
            self._closed = "it was aborted"
        self._channel.shutdown()
        if self._lock.acquire(blocking=False):
            try:
                self._close("it was aborted")
            finally:
                self._lock.release()

    def _send(self, request: Request, flags: int = 0, data: Sequence[Buffer] = ()) -> Request:
        """Sends a request, with the data of a write, and keeps it until its reply is complete."""
        self._last_cookie += 1
        request.cookie = self._last_cookie
        header = p.REQUEST.pack(
            p.REQUEST_MAGIC, flags, request.command, request.cookie, request.offset, request.length
        )
        with self._lock:
            try:
                self._start(request)
                self._pending[request.cookie] = request
                size = len(header) + (request.length if data else 0)
                self._channel.send((header, *data), size, self._receive)
            except Fault as fault:
                self._die(fault)
            except BaseException:
                self._close("a call was interrupted in the middle of a message")
                raise
        return request

    def _finish(self, request: Request) -> Request:
        """Waits for one request; what else completes meanwhile is kept for `wait`."""
        if request.cookie in self._pending or self._closed is not None:
            self._receive_until(request)
        if request.failure:
            self._raise_failed(request)
        return request

    def _receive_until(self, wanted: Request | None) -> None:
        """Receives until the wanted request, or any for `wait`, has completed."""
        with self._lock:
            try:
                self._start(wanted)
                while wanted.cookie in self._pending if wanted else not self._completed:
                    self._channel.check()
                    self._receive()
            except Fault as fault:
                self._die(fault)
            except BaseException:
                self._close("a call was interrupted in the middle of a message")
                raise

    def _start(self, request: Request | None) -> None:
        self._current = request
        if self._closed is not None:
            raise Fault(ConnectionLost, f"the connection is closed: {self._closed}")
        self._channel.start()

    def _receive(self) -> None:
        """Receives one chunk, or one simple reply."""
        fill = self._channel.fill
        header = self._header
        fill(header, 16)
        magic, flags, kind, cookie = p.CHUNK.unpack(header)
        request = self._pending.get(cookie)
        if request is None:
            raise broken("a reply to no request of ours, or of a wrong magic")
        self._current = request
        if magic != p.CHUNK_MAGIC:
            self._take_simple_reply(request)
            return
        if kind == p.CHUNK_OFFSET_DATA:
            fill(self._detail, 12)
            length, offset = p.DATA.unpack_from(self._detail)
            view = request.claim(offset, length - 8)
            fill(view, length - 8)
        elif kind == p.CHUNK_OFFSET_HOLE:
            fill(self._detail, 16)
            length, offset, hole = p.HOLE.unpack(self._detail)
            if length != 12:
                raise broken(f"a hole chunk of {length} bytes")
            _fill_with_zeros(request.claim(offset, hole))
        else:
            self._take_other(request, kind, flags)
        if flags & p.CHUNK_FLAG_DONE:
            self._complete(request)
        else:
            request.count_chunk()

    def _take_simple_reply(self, request: Request) -> None:
        magic, errno, _ = p.SIMPLE_REPLY.unpack(self._header)
        if magic != p.SIMPLE_REPLY_MAGIC:
            raise broken("a reply of a wrong magic")
        if request.command == p.CMD_READ:
            raise broken("a simple reply to a read, although structured replies were agreed on")
        if errno:
            self._take_failure(request, errno, b"")
        self._complete(request)

    def _take_other(self, request: Request, kind: int, flags: int) -> None:
        """Takes a chunk that brings no data: an end mark, a block status or an error."""
        self._channel.fill(self._detail, 4)
        length = int.from_bytes(self._detail[:4], "big")
        if kind == p.CHUNK_NONE:
            if length or not flags & p.CHUNK_FLAG_DONE:
                raise broken("an end mark with data, or that does not end the reply")
        elif kind == p.CHUNK_BLOCK_STATUS and request.command == p.CMD_BLOCK_STATUS:
            if length > p.MAX_STATUS_REPLY or length < 12 or length % 8 != 4:
                raise broken(f"a block status chunk of {length} bytes")
            payload = memoryview(self._payload(length))
            context = self._contexts.get(int.from_bytes(payload[:4], "big"))
            if context is None:
                raise broken("a block status of a context that was not agreed on")
            request.take_status(context, payload[4:], self._least)
        elif kind & p.CHUNK_ERROR_BIT:
            if not p.ERROR.size <= length <= p.MAX_ERROR_PAYLOAD:
                raise broken(f"an error chunk of {length} bytes")
            payload = memoryview(self._payload(length))
            errno, text = p.ERROR.unpack_from(payload)
            if p.ERROR.size + text > length or not errno:
                raise broken("an error chunk without an error, or shorter than its message")
            self._take_failure(request, errno, bytes(payload[p.ERROR.size :][:text]))
        else:
            raise broken(f"a chunk of type {kind} in the reply to a {p.COMMAND_NAMES[request.command]}")

    def _payload(self, length: int) -> bytearray:
        """Receives a payload whose length was checked."""
        payload = bytearray(length)
        self._channel.fill(payload, length)
        return payload

    def _take_failure(self, request: Request, errno: int, text: bytes) -> None:
        if errno == p.ESHUTDOWN:
            raise Fault(ConnectionLost, "the server is shutting down")
        if not request.failure:  # the first one is the cause
            request.failure = (errno, clean_text(text))

    def _complete(self, request: Request) -> None:
        """The reply's last chunk has come: all that was asked for must be there."""
        del self._pending[request.cookie]
        if not request.failure:
            if request.command == p.CMD_READ and request.covered != request.length:
                raise broken(f"only {request.covered} bytes came of the {request}")
            if request.command == p.CMD_BLOCK_STATUS:
                missing = [name for name in self._contexts.values() if name not in request.status]
                if missing:
                    raise broken(f"the reply to the {request} lacks the context {', '.join(missing)}")
        if not request.internal:
            self._completed.append(request)

    def _raise_failed(self, request: Request) -> NoReturn:
        errno, text = request.failure or (0, "")
        raise RequestFailed(
            f"{request} {self._place}: {errno_text(errno)}" + (f": {text}" if text else ""),
            cookie=request.cookie,
            errno=errno,
            offset=request.offset,
            length=request.length,
        )

    @property
    def _place(self) -> str:
        return f"on export {self.export!r} at {self._where}"

    def _die(self, fault: Fault) -> NoReturn:
        """The connection is of no use any more: closes it, and tells by which call and why."""
        if self._closed is not None and fault.error is ConnectionLost:  # aborted under our hands, or closed
            fault.reason = f"the connection is closed: {self._closed}"
        call = str(self._current or f"waiting for {self.outstanding} requests")
        self._close(fault.reason)
        raise fault.told(f"{call} {self._place}") from None

    def _close(self, why: str) -> None:
        if self._closed is None:
            self._closed = why
        self._channel.close()
        self._pending.clear()


def _fill_with_zeros(view: memoryview) -> None:
    at, size = 0, len(view)
    while at < size:
        step = min(len(ZEROS), size - at)
        view[at : at + step] = ZEROS[:step]
        at += step
