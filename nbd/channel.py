"""A socket whose every call ends: whole messages in and out, under one deadline a call."""

import select
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from mmap import mmap
from time import monotonic

from vmbackup.nbd.errors import ConnectFailed, ConnectionLost, Fault, TimedOut

Address = str | tuple[str, int]
Buffer = bytes | bytearray | memoryview | mmap

SEND_FLAGS = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
MAX_PIECES = 1024  # of one sendmsg: Linux' IOV_MAX
SLICE = 1.0  # seconds: the longest single wait for a message, after which the deadline is looked at
SOCKET_BUFFER = 2 << 20  # bytes; a request's worth, where the kernel allows it


class Channel:
    """A connected stream socket. Not shared between threads, but for `shutdown`.

    The kernel's own receive timeout is used instead of Python's: a read is then one system call that
    fills the buffer (MSG_WAITALL), without a poll before it and without the interpreter's lock.
    """

    def __init__(self, address: Address, timeout: float, first: bytes = b"") -> None:
        """Connects, and sends `first` in the same breath. Raises ConnectFailed as a Fault."""
        self.timeout = timeout
        self.deadline = monotonic() + timeout
        self._sock = _connect(address, timeout, first)
        self._recv_into = self._sock.recv_into
        self._poll: select.poll | None = None

    def start(self) -> None:
        """Begins a call: it has `timeout` seconds from now on, however many messages it takes."""
        self.deadline = monotonic() + self.timeout

    def fill(self, view: memoryview | bytearray, size: int) -> None:
        """Receives exactly `size` bytes (at least 1) into the beginning of the view."""
        try:
            got = self._recv_into(view, size, socket.MSG_WAITALL)
        except BlockingIOError:
            got = 0
            self.check()
        except OSError as error:
            raise lost(error) from None
        else:
            if got == size:
                return
            if got == 0:
                raise Fault(ConnectionLost, "the server closed the connection")
        self._fill_rest(memoryview(view)[:size], got)

    def _fill_rest(self, view: memoryview, got: int) -> None:
        while got < len(view):
            self.check()
            try:
                more = self._recv_into(view[got:], 0, socket.MSG_WAITALL)
            except BlockingIOError:
                continue
            except OSError as error:
                raise lost(error) from None
            if more == 0:
                raise Fault(ConnectionLost, "the server closed the connection in the middle of a message")
            got += more

    def check(self) -> None:
        """Raises when the call's time is over."""
        if monotonic() > self.deadline:
            raise Fault(TimedOut, f"no whole answer within {self.timeout:g} s")

    def send(self, pieces: Sequence[Buffer], size: int, drain: Callable[[], None]) -> None:
        """Sends all pieces, `size` bytes together, without copying them.

        Where the socket is full, `drain` is called for each message that waits to be received, so that
        two full sockets never wait for each other.
        """
        try:
            sent = self._sock.sendmsg(pieces[:MAX_PIECES], (), SEND_FLAGS)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise lost(error) from None
        if sent < size:
            self._send_rest(pieces, sent, drain)

    def _send_rest(self, pieces: Sequence[Buffer], sent: int, drain: Callable[[], None]) -> None:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN | select.POLLOUT)
        views = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
        while advance(views, sent):
            sent = 0
            self.check()
            ready = self._poll.poll(max(1, (self.deadline - monotonic()) * 1000))
            if not ready:
                continue
            if ready[0][1] & select.POLLIN:
                drain()
            if ready[0][1] & ~select.POLLIN:  # room to send, or an error that sending will tell
                try:
                    sent = self._sock.sendmsg(views[:MAX_PIECES], (), SEND_FLAGS)
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise lost(error) from None

    def send_last(self, message: bytes) -> None:
        """Sends a message that has no answer, if it can go at once; never raises."""
        with suppress(OSError):
            self._sock.send(message, SEND_FLAGS)

    def shutdown(self) -> None:
        """Ends all sending and receiving; a call in another thread then fails. Never raises."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def take(self) -> socket.socket:
        """The socket, for a channel that takes over from this one."""
        return self._sock

    def close(self) -> None:
        """Closes the socket; never raises, may be repeated."""
        with suppress(OSError):
            self._sock.close()


def _connect(address: Address, timeout: float, first: bytes) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    try:
        if isinstance(address, str):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.settimeout(timeout)
                sock.connect(address)
                _send_first(sock, first)
            except BaseException:
                sock.close()
                raise
        else:
            sock = socket.create_connection(address, timeout)
            _send_first(sock, first)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError:
        raise Fault(ConnectFailed, f"no connection within {timeout:g} s") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise Fault(ConnectFailed, reason, "is the NBD server running, and may this user open it?") from None
    sock.settimeout(None)
    wait = min(SLICE, timeout / 4)
    timeval = struct.pack("ll", int(wait), int(wait % 1 * 1e6) or 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    if family == socket.AF_UNIX:  # TCP sizes its buffers by itself, and stops to when told a size
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    return sock


def _send_first(sock: socket.socket, message: bytes) -> None:
    """A failure shows when the answer is waited for."""
    with suppress(OSError):
        sock.sendall(message, socket.MSG_NOSIGNAL)


def advance(views: list[memoryview], sent: int) -> bool:
    """Drops the first `sent` bytes of the views; whether anything is left."""
    done = 0
    while done < len(views) and sent >= len(views[done]):
        sent -= len(views[done])
        done += 1
    del views[:done]
    if sent:
        views[0] = views[0][sent:]
    return bool(views)


def lost(error: OSError) -> Fault:
    """A broken connection, told by an error of the socket."""
    return Fault(ConnectionLost, f"the connection broke: {error.strerror or error}")
