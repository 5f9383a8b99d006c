"""The server's half of the handshake: from a fresh connection to an export that the client chose."""

import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import NoReturn

from vmbackup.nbd import protocol as p
from vmbackup.nbd.errors import clean_text
from vmbackup.nbd.export import Export
from vmbackup.nbd.stream import Gone, PlainStream, Stream, TlsStream

HANDSHAKE_SECONDS = 20.0  # for all of it: a client that says nothing gives its place free
MAX_OPTION = 64 << 10  # bytes of data of one option; what is longer is no client's that means well
MAX_OPTIONS = 256  # options a handshake; clients use a dozen
MAX_QUERIES = 256  # meta contexts asked for at once
BLOCK_SIZE = (1, 64 << 10, p.MAX_REQUEST)  # minimum, preferred, maximum of every export, in bytes
CONTEXT_ID = 1  # of base:allocation, the only meta context
FLAGS = (
    p.Transmission.HAS_FLAGS
    | p.Transmission.READ_ONLY
    | p.Transmission.SEND_FLUSH
    | p.Transmission.CAN_MULTI_CONN
    | p.Transmission.SEND_CACHE
)


@dataclass(frozen=True)
class Agreed:
    """What the handshake came to."""

    stream: Stream
    name: str
    export: Export
    structured: bool
    allocation: bool  # the client may ask for base:allocation


class _Malformed(Exception):
    """An option's data are not what its length says: the client is told, and may try again."""


@dataclass
class Greeting:
    """One handshake. `exports` by name; with `tls` nothing is told before the client has started it."""

    stream: Stream
    exports: Mapping[str, Export]
    tls: ssl.SSLContext | None = None
    _structured: bool = field(default=False, init=False)
    _contexts_of: str | None = field(default=None, init=False)  # the export whose base:allocation was asked for
    _no_zeroes: bool = field(default=False, init=False)
    _secure: bool = field(default=False, init=False)

    def run(self) -> Agreed | None:
        """Greets, answers options; None where the client took its leave. Raises Gone."""
        self._deadline = monotonic() + HANDSHAKE_SECONDS
        flags = p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES
        self.stream.send((p.GREETING.pack(p.NBDMAGIC, p.IHAVEOPT, flags),))
        (said,) = p.CLIENT_FLAGS.unpack(self._take(p.CLIENT_FLAGS.size))
        if said & ~flags:
            raise Gone(f"unknown client flags {said:#x}")
        self._no_zeroes = bool(said & p.FLAG_NO_ZEROES)
        for _ in range(MAX_OPTIONS):
            magic, option, length = p.OPTION.unpack(self._take(p.OPTION.size))
            if magic != p.IHAVEOPT:
                raise Gone("it does not speak NBD")
            if length > MAX_OPTION:
                raise Gone(f"an option of {length} bytes")
            data = self._take(length)
            if option == p.OPT_ABORT:
                self._reply(option, p.REP_ACK)
                return None
            agreed = self._answer(option, data)
            if agreed:
                return agreed
        raise Gone("endless options")

    def _answer(self, option: int, data: bytes) -> Agreed | None:
        if self.tls and not self._secure and option != p.OPT_STARTTLS:
            if option == p.OPT_EXPORT_NAME:  # which has no answer but the export
                raise Gone("it asked for an export without TLS")
            self._reply(option, p.REP_ERR_TLS_REQD, b"start TLS first")
            return None
        try:
            if option == p.OPT_EXPORT_NAME:
                return self._export_name(data)
            if option in (p.OPT_GO, p.OPT_INFO):
                return self._go(option, data)
            self._tell(option, data)
        except _Malformed as error:
            self._reply(option, p.REP_ERR_INVALID, str(error).encode())
        return None

    def _tell(self, option: int, data: bytes) -> None:
        """Options that do not end the handshake."""
        if option == p.OPT_STRUCTURED_REPLY:
            _none(data)
            self._structured = True
            self._reply(option, p.REP_ACK)
        elif option == p.OPT_LIST:
            self._list(data)
        elif option in (p.OPT_SET_META_CONTEXT, p.OPT_LIST_META_CONTEXT):
            self._contexts(option, data)
        elif option == p.OPT_STARTTLS:
            self._start_tls(data)
        else:
            self._reply(option, p.REP_ERR_UNSUP)

    def _list(self, data: bytes) -> None:
        _none(data)
        for name in self.exports:
            if name:
                raw = name.encode()
                self._reply(p.OPT_LIST, p.REP_SERVER, p.U32.pack(len(raw)) + raw)
        self._reply(p.OPT_LIST, p.REP_ACK)

    def _start_tls(self, data: bytes) -> None:
        _none(data)
        if self._secure:
            raise _Malformed("TLS was started already")
        if self.tls is None or not isinstance(self.stream, PlainStream):
            self._reply(p.OPT_STARTTLS, p.REP_ERR_POLICY, b"this server has no certificate")
            return
        self._reply(p.OPT_STARTTLS, p.REP_ACK)
        self.stream = TlsStream(self.stream, self.tls, self._deadline)
        # What was said before is void: somebody in between may have said it.
        self._secure, self._structured, self._contexts_of = True, False, None

    def _contexts(self, option: int, data: bytes) -> None:
        name, at = _string(data, 0)
        count, at = _number(data, at)
        if count > MAX_QUERIES:
            raise _Malformed(f"{count} meta contexts")
        queries = []
        for _ in range(count):
            query, at = _string(data, at)
            queries.append(query)
        _end(data, at)
        if option == p.OPT_SET_META_CONTEXT:
            self._contexts_of = None
            if not self._structured:
                raise _Malformed("structured replies come first")
        if name not in self.exports:
            self._unknown(option, name)
            return
        if _wanted(option, queries):
            number = CONTEXT_ID if option == p.OPT_SET_META_CONTEXT else 0
            self._reply(option, p.REP_META_CONTEXT, p.U32.pack(number) + p.BASE_ALLOCATION.encode())
            if option == p.OPT_SET_META_CONTEXT:
                self._contexts_of = name
        self._reply(option, p.REP_ACK)

    def _go(self, option: int, data: bytes) -> Agreed | None:
        name, at = _string(data, 0)
        if len(data) < at + 2:
            raise _Malformed("it is cut short")
        (count,) = p.U16.unpack_from(data, at)
        _end(data, at + 2 + 2 * count)
        asked = struct.unpack_from(f">{count}H", data, at + 2)
        export = self.exports.get(name)
        if export is None:
            self._unknown(option, name)
            return None
        self._reply(option, p.REP_INFO, p.EXPORT_INFO.pack(p.INFO_EXPORT, export.size, self._flags()))
        self._reply(option, p.REP_INFO, p.BLOCK_SIZE_INFO.pack(p.INFO_BLOCK_SIZE, *BLOCK_SIZE))
        if p.INFO_NAME in asked:
            self._reply(option, p.REP_INFO, p.U16.pack(p.INFO_NAME) + name.encode())
        self._reply(option, p.REP_ACK)
        return self._agreed(name, export) if option == p.OPT_GO else None

    def _export_name(self, data: bytes) -> Agreed:
        """The oldest option: its only answer is the export, its only refusal the end."""
        name = data.decode("utf-8", "replace")
        export = self.exports.get(name)
        if export is None:
            raise Gone(f"no export {clean_text(data)!r}")
        zeroes = b"" if self._no_zeroes else bytes(p.EXPORT_NAME_ZEROES)
        self.stream.send((p.EXPORT_NAME_REPLY.pack(export.size, self._flags()), zeroes))
        return self._agreed(name, export)

    def _agreed(self, name: str, export: Export) -> Agreed:
        return Agreed(self.stream, name, export, self._structured, self._contexts_of == name)

    def _flags(self) -> int:
        return FLAGS | (p.Transmission.SEND_DF if self._structured else 0)

    def _unknown(self, option: int, name: str) -> None:
        known = ", ".join(name for name in self.exports if name)
        text = f"no export {clean_text(name.encode())!r}; there is {known}"
        self._reply(option, p.REP_ERR_UNKNOWN, text.encode()[: p.MAX_STRING])

    def _reply(self, option: int, kind: int, data: bytes = b"") -> None:
        self.stream.send((p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data,))

    def _take(self, length: int) -> bytes:
        """Receives `length` bytes, which the caller has bounded."""
        data = bytearray(length)
        if length and not self.stream.receive(memoryview(data), self._deadline):
            raise Gone("it left in the handshake")
        return bytes(data)


def _wanted(option: int, queries: list[str]) -> bool:
    if p.BASE_ALLOCATION in queries:
        return True
    return option == p.OPT_LIST_META_CONTEXT and (not queries or p.BASE_NAMESPACE in queries)


def _string(data: bytes, at: int) -> tuple[str, int]:
    length, at = _number(data, at)
    if length > p.MAX_STRING:
        raise _Malformed(f"a name of {length} bytes")
    if at + length > len(data):
        _cut()
    try:
        return data[at : at + length].decode(), at + length
    except UnicodeDecodeError:
        raise _Malformed("a name that is no UTF-8") from None


def _number(data: bytes, at: int) -> tuple[int, int]:
    if at + 4 > len(data):
        _cut()
    return p.U32.unpack_from(data, at)[0], at + 4


def _end(data: bytes, at: int) -> None:
    if at != len(data):
        raise _Malformed(f"it has {len(data)} bytes instead of {at}")


def _none(data: bytes) -> None:
    _end(data, 0)


def _cut() -> NoReturn:
    raise _Malformed("it is cut short")
