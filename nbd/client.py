"""An NBD client: many requests under way, answers straight into the caller's buffers."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from vmbackup.nbd import protocol as p
from vmbackup.nbd.channel import Address, Buffer, Channel
from vmbackup.nbd.connection import Connection
from vmbackup.nbd.errors import Fault, RequestFailed, Unsupported
from vmbackup.nbd.handshake import ExportDetails, messages, negotiate, start_tls
from vmbackup.nbd.request import Columns, Request, pieces
from vmbackup.nbd.tls import ClientTls

DEPTH = 16  # requests outstanding: QEMU works on as many a connection, and more wait in the socket
READ_PIECE = 1 << 20  # bytes of read_into's requests: with 2 MiB qemu-nbd gives half as much, with 64 KiB too
WRITE_PIECE = 256 << 10  # bytes of write's requests: with 1 MiB qemu-nbd takes less than half as much
WINDOW = 4  # requests of either at a time: with 8 of 1 MiB qemu-nbd gives a quarter less
ZERO_PIECE = 1 << 30  # bytes zeroed or trimmed at once: even written as data they take less than a timeout


class NbdClient(Connection):
    """A connection to one export. Not shared between threads; only `abort` may be called from another.

    `size` is in bytes, `flags` the transmission flags, `block_size` the server's minimum, preferred and
    maximum in bytes, `max_request` the most that one submit takes, `contexts` the meta contexts.
    Offsets and lengths must be multiples of the minimum block (the end of the export excepted) and lie
    inside the export: a ValueError tells a call that cannot be meant, and nothing was sent.

    Each call has `timeout` seconds for a whole answer. ConnectionLost, with its kinds TimedOut and
    ProtocolError, means that the connection is closed; RequestFailed and Unsupported leave it usable.
    """

    def __init__(self, channel: Channel, export: str, where: str, details: ExportDetails) -> None:
        super().__init__(channel, export, where, details)
        self.size = details.size
        self.flags = details.flags
        self.read_only = bool(self.flags & p.Transmission.READ_ONLY)
        self.can_multi_conn = bool(self.flags & p.Transmission.CAN_MULTI_CONN)
        self.block_size = details.block_size
        self.max_request = min(details.block_size[2], p.MAX_REQUEST)
        self.contexts = tuple(details.contexts.values())

    @classmethod
    def connect(
        cls,
        address: Address,
        export: str,
        *,
        contexts: Sequence[str] = (),
        timeout: float = 120.0,
        at_once: bool = False,
        tls: ClientTls | None = None,
    ) -> Self:
        """Opens an export at a unix socket's path or (host, port), with all the meta contexts asked for.

        `at_once`: says the whole handshake with the connection, without waiting for the answers in between. For
        QEMU, which takes that: it never has to wait for a client whom it has greeted (docs/adr/0005-seal.md). With
        `tls` nothing is told in plain but that TLS is wanted, and a server without it is refused.

        Raises ConnectFailed, ExportMissing, MetaContextMissing, HandshakeRefused or ConnectionLost.
        """
        where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        try:
            at_once = at_once and tls is None
            channel = Channel(address, timeout, b"".join(messages(export, contexts)) if at_once else b"")
            try:
                if tls is not None:
                    channel = start_tls(channel, tls)
                details = negotiate(channel, export, contexts, said=at_once, greeted=tls is not None)
            except BaseException:
                if not at_once:  # else the server may be past the handshake
                    channel.send_last(p.OPTION.pack(p.IHAVEOPT, p.OPT_ABORT, 0))
                channel.close()
                raise
        except Fault as fault:
            raise fault.told(f"opening export {export!r} at {where}") from None
        return cls(channel, export, where, details)

    def submit_read(self, offset: int, buffer: memoryview) -> int:
        """Asks for the bytes at `offset`, as many as the buffer holds; returns the request's cookie.

        The buffer is the connection's until `wait` returns the cookie or raises. At most DEPTH requests
        may be outstanding, of `max_request` bytes each.
        """
        if buffer.readonly:
            raise ValueError("the buffer of a read must be writable")
        self._check(offset, buffer.nbytes, self.max_request)
        self._check_depth()
        return self._send(_read(offset, buffer)).cookie

    def submit_write(self, offset: int, buffers: Sequence[Buffer]) -> int:
        """Sends the pieces, one after the other, to `offset`; returns the request's cookie.

        They are sent without a copy and are the caller's again when this returns; they are written when
        `wait` returns the cookie. Waits while the server takes no more, and receives answers meanwhile.
        """
        length = sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers)
        self._check(offset, length, self.max_request)
        self._check_writable("write")
        self._check_depth()
        return self._send(Request(p.CMD_WRITE, offset, length), data=buffers).cookie

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fills the buffer from `offset`, by several requests at a time."""
        if buffer.readonly:
            raise ValueError("the buffer of a read must be writable")
        view = buffer.cast("B")
        self._check(offset, len(view))
        cuts = pieces(offset, len(view), min(READ_PIECE, self.max_request))
        self._call_all((_read(at, view[at - offset :][:size]), ()) for at, size in cuts)

    def write(self, offset: int, data: Buffer) -> None:
        """Writes the data at `offset`, by several requests at a time; `flush` makes them durable."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        self._check_writable("write")
        cuts = pieces(offset, len(view), min(WRITE_PIECE, self.max_request))
        self._call_all(
            (Request(p.CMD_WRITE, at, size), (view[at - offset :][:size],)) for at, size in cuts
        )

    def zero(self, offset: int, length: int, *, may_trim: bool = True) -> None:
        """Makes a range read as zeros, by the server; it stays allocated unless it `may_trim`."""
        self._check(offset, length)
        self._check_writable("write-zeroes", p.Transmission.SEND_WRITE_ZEROES)
        flags = 0 if may_trim else p.CMD_FLAG_NO_HOLE
        for at, size in pieces(offset, length, ZERO_PIECE):
            self._call(Request(p.CMD_WRITE_ZEROES, at, size), flags)

    def trim(self, offset: int, length: int) -> None:
        """Tells that a range is not needed; what it reads as afterwards is the server's choice."""
        self._check(offset, length)
        self._check_writable("trim", p.Transmission.SEND_TRIM)
        for at, size in pieces(offset, length, ZERO_PIECE):
            self._call(Request(p.CMD_TRIM, at, size))

    def flush(self) -> None:
        """Makes durable all writes that had completed before this call."""
        if not self.flags & p.Transmission.SEND_FLUSH:
            raise Unsupported(f"flush {self._place}: not offered by the server")
        self._call(Request(p.CMD_FLUSH, 0, 0))

    def block_status(
        self, offset: int, length: int, *, one: bool = False
    ) -> dict[str, list[tuple[int, int]]]:
        """For each meta context of the connection: (length, flags) of the extents from `offset` on.

        At most 2 GiB may be asked for. Each context has at least one extent and none of no bytes; they
        may end before the range does, each context elsewhere, and never after it. `one` asks for the
        first extent only.
        """
        columns = self.block_status_columns(offset, length, one=one)
        return {name: list(zip(*pair, strict=True)) for name, pair in columns.items()}

    def block_status_columns(self, offset: int, length: int, *, one: bool = False) -> dict[str, Columns]:
        """As block_status, lengths and flags as arrays of their own."""
        if not self.contexts:
            raise ValueError("the connection has no meta contexts")
        self._check(offset, length, p.MAX_STATUS)
        request = Request(p.CMD_BLOCK_STATUS, offset, length)
        request.one = one
        self._call(request, p.CMD_FLAG_REQ_ONE if one else 0)
        return request.status

    def _call(self, request: Request, flags: int = 0, data: Sequence[Buffer] = ()) -> None:
        self._finish(self._send(_internal(request), flags, data))

    def _call_all(self, requests: Iterator[tuple[Request, Sequence[Buffer]]]) -> None:
        """Makes the calls, WINDOW at a time; raises the first failure when none is under way any more."""
        failed: RequestFailed | None = None
        window: deque[Request] = deque()
        while True:
            todo = None if failed or len(window) == WINDOW else next(requests, None)
            if todo:
                window.append(self._send(_internal(todo[0]), data=todo[1]))
            elif window:
                try:
                    self._finish(window.popleft())
                except RequestFailed as error:
                    failed = failed or error
            else:
                break
        if failed:
            raise failed

    def _check(self, offset: int, length: int, most: int | None = None) -> None:
        if offset < 0 or length <= 0 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} {self._place} of {self.size} bytes")
        if most is not None and length > most:
            raise ValueError(f"{length} bytes at once {self._place}: at most {most}")
        least = self.block_size[0]
        if least > 1 and (offset % least or (length % least and offset + length != self.size)):
            raise ValueError(f"{length} bytes at {offset} {self._place}: no multiples of {least}")

    def _check_depth(self) -> None:
        if self.outstanding >= DEPTH:
            raise ValueError(f"{DEPTH} requests are outstanding {self._place}: wait first")

    def _check_writable(self, call: str, flag: int = 0) -> None:
        if self.read_only or flag & ~self.flags:
            why = "it is read-only" if self.read_only else "not offered by the server"
            raise Unsupported(f"{call} {self._place}: {why}")


def _read(offset: int, buffer: memoryview) -> Request:
    request = Request(p.CMD_READ, offset, buffer.nbytes)
    request.buffer = buffer.cast("B")
    return request


def _internal(request: Request) -> Request:
    request.internal = True
    return request
