"""The errors of vmbackup.nbd.

NbdError
├── ConnectFailed         nobody listens at the address, or it may not be opened
├── HandshakeRefused      the server answered, but cannot give what is needed
│   ├── ExportMissing     no export of that name
│   └── MetaContextMissing  a meta context that was asked for did not come back
├── ConnectionLost        the connection is dead: open a new one, repeat what was outstanding
│   ├── TimedOut          no whole answer within the time limit
│   └── ProtocolError     the server broke the protocol; nothing it sent may be used
├── RequestFailed         this request failed, the connection goes on: the request may be repeated
├── Unsupported           the export does not offer that command (read-only, no trim, ...)
├── CannotListen          a server cannot have the address that it is to listen at
├── ReadFailed            an export of ours cannot give these bytes: its client gets EIO
└── ExtentsError          runs that are no map of a disk: a gap, an overlap, a wrong total
"""

import errno as _errno
import os
from typing import Any, ClassVar


class NbdError(Exception):
    """An expected failure of an NBD connection; the text names the call, the export and the address."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "nbd"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConnectFailed(NbdError):
    """Nobody listens at the address, or it may not be opened. Try again when the server runs."""

    kind = "nbd_connect"


class HandshakeRefused(NbdError):
    """The server answered, but cannot give what is needed. Trying again does not help."""

    kind = "nbd_refused"


class ExportMissing(HandshakeRefused):
    """The server has no export of that name."""

    kind = "nbd_export_missing"


class MetaContextMissing(HandshakeRefused):
    """A meta context that was asked for did not come back. An absent bitmap never means clean.

    `missing` names the contexts.
    """

    kind = "nbd_context_missing"

    def __init__(self, message: str, hint: str = "", *, missing: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.missing = missing


class ConnectionLost(NbdError):
    """The connection is dead and closed. Open a new one and repeat all that was outstanding."""

    kind = "nbd_lost"


class TimedOut(ConnectionLost):
    """No whole answer came within the time limit; the connection was closed."""

    kind = "nbd_timeout"


class ProtocolError(ConnectionLost):
    """The server broke the protocol; the connection was closed and nothing outstanding may be used."""

    kind = "nbd_protocol"


class RequestFailed(NbdError):
    """One request failed; the connection goes on. The caller may repeat it, or fail the disk.

    `cookie` is what submit returned, `errno` the server's error number (Linux values), `offset` and
    `length` are in bytes.
    """

    kind = "nbd_request"

    def __init__(
        self, message: str, hint: str = "", *, cookie: int, errno: int, offset: int, length: int
    ) -> None:
        super().__init__(message, hint)
        self.cookie = cookie
        self.errno = errno
        self.offset = offset
        self.length = length


class Unsupported(NbdError):
    """The export does not offer that command; nothing was sent."""

    kind = "nbd_unsupported"


class CannotListen(NbdError):
    """A server cannot have the address that it is to listen at: taken, forbidden, or none of this host."""

    kind = "nbd_listen"


class ReadFailed(NbdError):
    """An export of ours cannot give these bytes. Its client is told EIO, and may ask for others."""

    kind = "nbd_read"


class ExtentsError(NbdError):
    """Runs that are no map of a disk: a gap, an overlap, or a total that is not the disk's size."""

    kind = "nbd_extents"


class Fault(Exception):
    """What went wrong, before the call, the export and the address are added to it."""

    def __init__(self, error: type[NbdError], reason: str, hint: str = "", **fields: Any) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
        self.hint = hint
        self.fields = fields

    def told(self, call: str) -> NbdError:
        """The error to raise, `call` telling what was being done where."""
        return self.error(f"{call}: {self.reason}", self.hint, **self.fields)


def broken(reason: str) -> Fault:
    """The server broke the protocol."""
    return Fault(ProtocolError, f"the server broke the NBD protocol: {reason}")


def errno_text(number: int) -> str:
    """A server's error number for people: `Input/output error (EIO)`."""
    name = _errno.errorcode.get(number)
    return f"{os.strerror(number)} ({name})" if name else f"unknown error {number}"


def clean_text(raw: bytes) -> str:
    """A server's free text made safe for a terminal and a log: printable, at most 200 characters."""
    text = "".join(c if c.isprintable() else " " for c in raw.decode("utf-8", "replace"))
    return " ".join(text.split())[:200]
