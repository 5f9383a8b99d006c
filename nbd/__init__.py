"""NBD: the protocol, a client, a server, and extents."""

from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import (
    CannotListen,
    ConnectFailed,
    ConnectionLost,
    ExportMissing,
    ExtentsError,
    HandshakeRefused,
    MetaContextMissing,
    NbdError,
    ProtocolError,
    ReadFailed,
    RequestFailed,
    TimedOut,
    Unsupported,
)
from vmbackup.nbd.extents import Extent, Kind, align, extents

__all__ = [
    "CannotListen",
    "ConnectFailed",
    "ConnectionLost",
    "ExportMissing",
    "Extent",
    "ExtentsError",
    "HandshakeRefused",
    "Kind",
    "MetaContextMissing",
    "NbdClient",
    "NbdError",
    "ProtocolError",
    "ReadFailed",
    "RequestFailed",
    "TimedOut",
    "Unsupported",
    "align",
    "extents",
]
