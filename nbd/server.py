"""A read-only NBD server: fixed newstyle, structured replies, base:allocation; unix sockets, TCP, TLS."""

import logging
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Self

from vmbackup.nbd.address import ServerAddress
from vmbackup.nbd.conversation import Conversation
from vmbackup.nbd.export import Export
from vmbackup.nbd.greeting import Greeting
from vmbackup.nbd.listener import Listener
from vmbackup.nbd.stream import Gone, PlainStream, Stream

_log = logging.getLogger("vmbackup.nbd.server")
CONNECTIONS = 64  # at a time; a QEMU takes one a disk, nbdcopy four
_STOP_SECONDS = 10.0  # that threads get to end, once their sockets are shut down
_ACCEPT_PAUSE = 0.2  # seconds without accepting after the system refused a further descriptor


class NbdServer:
    """Serves exports by their names from `start` to `shutdown`; a context manager does both.

    `address` is the true one: the port that was free, for port 0. An export named "" is what a client gets that names
    none. With `tls` (PROTOCOL_TLS_SERVER) no client is told anything without.
    """

    def __init__(
        self,
        exports: Mapping[str, Export],
        address: ServerAddress,
        *,
        tls: ssl.SSLContext | None = None,
        connections: int = CONNECTIONS,
    ) -> None:
        self.address = address
        self._exports, self._tls, self._most = dict(exports), tls, connections
        self._listener: Listener | None = None
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._lock = threading.Lock()
        self._open: dict[threading.Thread, Stream] = {}
        self._stopping = threading.Event()
        self._told_full = False

    def start(self) -> None:
        """Listens; returns once clients can connect. Raises CannotListen."""
        self._listener = Listener.open(self.address)
        self.address = self._listener.address
        self._acceptor.start()

    def shutdown(self) -> None:
        """Stops listening, ends all connections, removes the socket's file. May be repeated. Never raises."""
        self._stopping.set()
        if self._listener is None:
            return
        self._listener.close()
        deadline = monotonic() + _STOP_SECONDS
        self._acceptor.join(_STOP_SECONDS)
        with self._lock:
            left = dict(self._open)
        for stream in left.values():
            stream.shutdown()
        for thread in left:
            thread.join(max(0.0, deadline - monotonic()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def _accept(self) -> None:
        listener = self._listener
        while listener is not None and not self._stopping.is_set():
            try:
                sock, _ = listener.sock.accept()
            except OSError as error:
                if not self._stopping.is_set():  # descriptors run out, or a client left before it was accepted
                    _log.warning("a connection was not accepted: %s", error.strerror)
                    self._stopping.wait(_ACCEPT_PAUSE)
                continue
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        try:
            stream = PlainStream(sock)
        except OSError:
            sock.close()
            return
        thread = threading.Thread(target=self._serve, args=(stream,), name="nbd-connection", daemon=True)
        with self._lock:
            full = len(self._open) >= self._most
            if not full:
                self._open[thread] = stream
        if full:
            self._refuse(stream)
        else:
            self._told_full = False
            thread.start()

    def _refuse(self, stream: Stream) -> None:
        if not self._told_full:  # once, not as often as somebody tries
            _log.warning("%d connections are open at %s: further ones are refused", self._most, self.address)
        self._told_full = True
        stream.close()

    def _serve(self, stream: PlainStream) -> None:
        try:
            agreed = Greeting(stream, self._exports, self._tls).run()
            if agreed is not None and not self._stopping.is_set():
                _log.info("a client reads export %s", agreed.name or '""')
                Conversation(agreed).run()
        except Gone as error:
            _log.info("a client was let go in the handshake: %s", error)
        except Exception:
            _log.exception("a connection is given up")
        finally:
            with suppress(KeyError), self._lock:
                del self._open[threading.current_thread()]
            stream.close()
