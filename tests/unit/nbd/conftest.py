"""An NBD server in a thread that says exactly what a test tells it to, however wrong."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from vmbackup.nbd import protocol as p

MIB = 1 << 20
FLAGS = 0b1101101 | 1 << 8  # all commands, multi-conn


class Asked(NamedTuple):
    """A request as the server received it."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class Wire:
    """The server's end of a connection: the protocol's messages, nothing checked."""

    def __init__(self, conn: socket.socket) -> None:
        self.conn = conn

    def send(self, data: bytes) -> None:
        self.conn.sendall(data)

    def receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.conn.recv(length - len(data))
            if not more:
                raise ConnectionError("the client is gone")
            data += more
        return data

    def greet(self, flags: int = 3) -> None:
        self.send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", flags))
        self.receive(4)

    def option(self) -> tuple[int, bytes]:
        _, option, length = p.OPTION.unpack(self.receive(16))
        return option, self.receive(length)

    def answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self.send(p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    def structured(self) -> None:
        self.greet()
        assert self.option()[0] == p.OPT_STRUCTURED_REPLY
        self.answer(p.OPT_STRUCTURED_REPLY, p.REP_ACK)

    def negotiate(
        self,
        size: int = 16 * MIB,
        *,
        flags: int = FLAGS,
        contexts: tuple[str, ...] = (),
        block_size: tuple[int, int, int] | None = None,
    ) -> None:
        """The whole handshake; contexts get the ids 1, 2, ..."""
        self.structured()
        option, _ = self.option()
        if option == p.OPT_SET_META_CONTEXT:
            for number, name in enumerate(contexts, 1):
                self.answer(option, p.REP_META_CONTEXT, struct.pack(">I", number) + name.encode())
            self.answer(option, p.REP_ACK)
            option, _ = self.option()
        assert option == p.OPT_GO
        self.answer(option, p.REP_INFO, p.EXPORT_INFO.pack(p.INFO_EXPORT, size, flags))
        if block_size:
            self.answer(option, p.REP_INFO, p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, *block_size))
        self.answer(option, p.REP_ACK)

    def request(self) -> Asked:
        magic, flags, command, cookie, offset, length = p.REQUEST.unpack(self.receive(28))
        assert magic == p.REQUEST_MAGIC
        return Asked(flags, command, cookie, offset, length)

    def chunk(
        self, cookie: int, kind: int, payload: bytes = b"", *, done: bool = True, length: int | None = None
    ) -> None:
        length = len(payload) if length is None else length
        self.send(struct.pack(">IHHQI", p.CHUNK_MAGIC, done, kind, cookie, length) + payload)

    def data(self, cookie: int, offset: int, data: bytes, *, done: bool = True) -> None:
        self.chunk(cookie, p.CHUNK_OFFSET_DATA, struct.pack(">Q", offset) + data, done=done)

    def hole(self, cookie: int, offset: int, length: int, *, done: bool = True) -> None:
        self.chunk(cookie, p.CHUNK_OFFSET_HOLE, struct.pack(">QI", offset, length), done=done)

    def status(self, cookie: int, context: int, extents: list[tuple[int, int]], *, done: bool = True) -> None:
        payload = struct.pack(">I", context) + b"".join(struct.pack(">II", *e) for e in extents)
        self.chunk(cookie, p.CHUNK_BLOCK_STATUS, payload, done=done)

    def error(self, cookie: int, errno: int, text: bytes = b"", *, done: bool = True) -> None:
        self.chunk(cookie, p.CHUNK_ERROR_BIT | 1, p.ERROR.pack(errno, len(text)) + text, done=done)

    def simple(self, cookie: int, errno: int = 0) -> None:
        self.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, errno, cookie))

    def hang_up_later(self) -> None:
        """Says nothing more, until the client leaves."""
        with contextlib.suppress(OSError):
            while self.conn.recv(65536):
                pass


Script = Callable[[Wire], None]
Serve = Callable[..., "str | tuple[str, int]"]


@pytest.fixture
def serve(tmp_path) -> Iterator[Serve]:
    """`serve(script)` runs the script for one connection and returns the address; `tcp=True` for TCP.

    The script fails silently when the client leaves; another failure of it fails the test.
    """
    threads: list[threading.Thread] = []
    open_sockets: list[socket.socket] = []
    failures: list[BaseException] = []

    def start(script: Script, *, tcp: bool = False) -> "str | tuple[str, int]":
        listener = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        address: str | tuple[str, int] = ("127.0.0.1", 0) if tcp else str(tmp_path / f"s{len(threads)}")
        listener.bind(address)
        listener.listen()
        open_sockets.append(listener)

        def run() -> None:
            try:
                conn, _ = listener.accept()
                open_sockets.append(conn)
                with conn:
                    wire = Wire(conn)
                    script(wire)
                    wire.hang_up_later()
            except OSError:
                pass
            except BaseException as error:  # told by the fixture
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        threads.append(thread)
        thread.start()
        return listener.getsockname()

    yield start
    for sock in open_sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    if failures:
        raise failures[0]
