"""A disk in memory to export, and a client that says exactly what a test tells it to."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vmbackup.nbd import protocol as p
from vmbackup.nbd.errors import ReadFailed
from vmbackup.nbd.export import zeros
from vmbackup.nbd.extents import Extent, Kind

KIB, MIB = 1 << 10, 1 << 20
SLAB = 256 * KIB  # every third one is a hole


class Disk:
    """Bytes with holes; `bad` offsets cannot be read; `gate` holds all reads back."""

    parallel = 99

    def __init__(self, data: bytes) -> None:
        self.data = b"".join(
            data[at : at + SLAB] if at // SLAB % 3 != 1 else bytes(len(data[at : at + SLAB]))
            for at in range(0, len(data), SLAB)
        )
        self.size = len(data)
        self.bad: set[int] = set()
        self.gate: threading.Event | None = None
        self.wrong: BaseException | None = None
        self.short = False
        self.reads = 0

    def read(self, offset: int, length: int) -> Sequence[bytes | memoryview]:
        self.reads += 1
        if self.gate is not None:
            self.gate.wait(30)
        if self.wrong is not None:
            raise self.wrong
        if any(offset <= at < offset + length for at in self.bad):
            raise ReadFailed("a chunk is damaged")
        pieces: list[bytes | memoryview] = []
        for start, size, kind in self.extents(offset, length):
            pieces += zeros(size) if kind is Kind.ZERO else [self.data[start : start + size]]
        return pieces[:-1] if self.short else pieces

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self.wrong is not None:
            raise self.wrong
        end = offset + length
        while offset < end:
            stop = min(end, (offset // SLAB + 1) * SLAB)
            yield Extent(offset, stop - offset, Kind.ZERO if offset // SLAB % 3 == 1 else Kind.DATA)
            offset = stop


class Reply(NamedTuple):
    """One structured chunk."""

    flags: int
    kind: int
    cookie: int
    payload: bytes

    @property
    def errno(self) -> int:
        assert self.kind & p.CHUNK_ERROR_BIT
        return struct.unpack_from(">I", self.payload)[0]


class Teller:
    """A client's end of a connection: the protocol's messages, nothing checked."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(address)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise ConnectionError("the server is gone")
            data += more
        return data

    def is_closed(self) -> bool:
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionError:
            return True
        return True

    def greet(self, flags: int = 3) -> None:
        assert self.take(18) == b"NBDMAGICIHAVEOPT\0\3"
        self.send(struct.pack(">I", flags))

    def option(self, option: int, data: bytes = b"", *, length: int | None = None) -> None:
        self.send(p.OPTION.pack(p.IHAVEOPT, option, len(data) if length is None else length) + data)

    def answer(self, option: int) -> tuple[int, bytes]:
        magic, echoed, kind, length = p.OPTION_REPLY.unpack(self.take(20))
        assert (magic, echoed) == (p.OPTION_REPLY_MAGIC, option)
        return kind, self.take(length)

    def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """All answers to an option, the last one an ACK or an error."""
        self.option(option, data)
        found = [self.answer(option)]
        while found[-1][0] != p.REP_ACK and not found[-1][0] & p.REP_ERROR_BIT:
            found.append(self.answer(option))
        return found

    def start_tls(self, context: ssl.SSLContext) -> None:
        assert self.ask(p.OPT_STARTTLS) == [(p.REP_ACK, b"")]
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")

    def begin(self, export: str = "vda", *, structured: bool = True, allocation: bool = True) -> None:
        """The whole handshake."""
        self.greet()
        if structured:
            assert self.ask(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
            if allocation:
                assert len(self.ask(p.OPT_SET_META_CONTEXT, contexts(export, p.BASE_ALLOCATION))) == 2
        assert self.ask(p.OPT_GO, go(export))[-1] == (p.REP_ACK, b"")

    def request(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> None:
        self.send(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length))

    def chunk(self) -> Reply:
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.take(20))
        assert magic == p.CHUNK_MAGIC
        return Reply(flags, kind, cookie, self.take(length))

    def chunks(self) -> list[Reply]:
        """One whole structured reply."""
        found = [self.chunk()]
        while not found[-1].flags & p.CHUNK_FLAG_DONE:
            found.append(self.chunk())
        return found

    def simple(self) -> tuple[int, int]:
        """Error and cookie of a simple reply."""
        magic, errno, cookie = p.SIMPLE_REPLY.unpack(self.take(16))
        assert magic == p.SIMPLE_REPLY_MAGIC
        return errno, cookie


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack(">I", len(raw)) + raw


def contexts(export: str, *queries: str) -> bytes:
    return string(export) + struct.pack(">I", len(queries)) + b"".join(map(string, queries))


def go(export: str, *infos: int) -> bytes:
    return string(export) + struct.pack(f">H{len(infos)}H", len(infos), *infos)
