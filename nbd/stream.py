"""The server's end of a connection: whole messages in and out, within limits of time; with TLS or without."""

import socket
import ssl
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Protocol, cast

from vmbackup.nbd.channel import MAX_PIECES, SOCKET_BUFFER, Buffer, advance

SLICE = 1.0  # seconds: the longest single wait in the kernel, after which the deadline is looked at
# Seconds that a client may take for one message in either direction, once it has begun: 32 MiB at 110 KiB/s.
MESSAGE_SECONDS = 300.0
TLS_READ = 64 << 10  # bytes received at once: a TLS record has up to 16 KiB


class Gone(Exception):
    """The client is gone, too slow, or not to be talked to any more: the connection is closed."""


class Stream(Protocol):
    """One thread may receive while another sends; not two of either."""

    def receive(self, view: memoryview, deadline: float | None) -> bool:
        """Fills the view; False where the client ended before the first byte. Raises Gone.

        Without a deadline (of `monotonic`) it waits for the first byte as long as it takes.
        """

    def send(self, pieces: Sequence[Buffer]) -> None:
        """Sends all pieces. Raises Gone."""

    def shutdown(self) -> None:
        """Ends all sending and receiving, from any thread. Never raises."""

    def close(self) -> None:
        """Closes the socket, when no thread uses it. Never raises."""


class PlainStream:
    """A connected socket as it is. The kernel's own time limits are used: a message is mostly one system call."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(None)
        timeval = struct.pack("ll", int(SLICE), int(SLICE % 1 * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a client that vanished gives its place free

    def receive(self, view: memoryview, deadline: float | None) -> bool:
        """See Stream."""
        got = 0
        while got < len(view):
            try:
                more = self.sock.recv_into(view[got:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                more = -1
            except OSError as error:
                raise Gone(error.strerror or "connection lost") from None
            if more == 0:
                if got:
                    raise Gone("it ended in the middle of a message")
                return False
            got += max(more, 0)
            if got and deadline is None:
                deadline = monotonic() + MESSAGE_SECONDS
            if got < len(view) and deadline is not None and monotonic() > deadline:
                raise Gone("it took too long to say something")
        return True

    def send(self, pieces: Sequence[Buffer]) -> None:
        """See Stream."""
        deadline = monotonic() + MESSAGE_SECONDS
        views: list[memoryview] | None = None
        waiting: Sequence[Buffer] = pieces
        while True:
            try:
                sent = self.sock.sendmsg(waiting[:MAX_PIECES], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise Gone(error.strerror or "connection lost") from None
            if views is None:
                if len(pieces) <= MAX_PIECES and sent == sum(map(len, pieces)):
                    return
                views = [memoryview(piece) for piece in pieces if len(piece)]
            if not advance(views, sent):
                return
            waiting = views
            if monotonic() > deadline:
                raise Gone("it took too long to receive an answer")

    def shutdown(self) -> None:
        """See Stream."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """See Stream."""
        with suppress(OSError):
            self.sock.close()


class TlsStream:
    """TLS over a plain stream, in memory: OpenSSL takes no two threads at once, sockets do."""

    def __init__(self, plain: PlainStream, context: ssl.SSLContext, deadline: float) -> None:
        """Waits for the client's handshake. Raises Gone."""
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._lock = threading.Lock()
        self._buffer = memoryview(bytearray(TLS_READ))
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
                if not self._take(deadline):
                    raise Gone("it ended in the middle of the TLS handshake") from None
            except ssl.SSLError as error:
                with suppress(Gone):
                    self._flush()  # the alert that tells why
                raise Gone(f"no TLS: {error.reason or error}") from None
        self._flush()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self._plain.send((data,))

    def _take(self, deadline: float | None) -> bool:
        """Hands what has come to OpenSSL; False at the end."""
        while True:
            try:
                got = self._plain.sock.recv_into(self._buffer)
            except BlockingIOError:
                if deadline is not None and monotonic() > deadline:
                    raise Gone("it took too long to say something") from None
                continue
            except OSError as error:
                raise Gone(error.strerror or "connection lost") from None
            with self._lock:
                self._incoming.write(self._buffer[:got])
            return got > 0

    def receive(self, view: memoryview, deadline: float | None) -> bool:
        """See Stream."""
        got = 0
        while got < len(view):
            try:
                with self._lock:
                    more = cast("int", self._tls.read(len(view) - got, view[got:]))  # into a buffer: how many
            except ssl.SSLWantReadError:
                if deadline is not None and monotonic() > deadline:
                    raise Gone("it took too long to say something") from None
                if self._take(deadline):
                    continue
                more = 0
            except ssl.SSLZeroReturnError:
                more = 0
            except ssl.SSLError as error:
                raise Gone(f"TLS: {error.reason or error}") from None
            if more == 0:
                if got:
                    raise Gone("it ended in the middle of a message")
                return False
            got += more
            if deadline is None:
                deadline = monotonic() + MESSAGE_SECONDS
        return True

    def send(self, pieces: Sequence[Buffer]) -> None:
        """See Stream."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                try:
                    with self._lock:
                        sent = self._tls.write(view)
                        data = self._outgoing.read()
                except ssl.SSLError as error:
                    raise Gone(f"TLS: {error.reason or error}") from None
                self._plain.send((data,))
                view = view[sent:]

    def shutdown(self) -> None:
        """See Stream."""
        self._plain.shutdown()

    def close(self) -> None:
        """See Stream."""
        self._plain.close()
