"""NBD: the protocol, a client, and extents."""

from vmbackup.nbd.client import NbdClient
from vmbackup.nbd.errors import (
    ConnectFailed,
    ConnectionLost,
    ExportMissing,
    ExtentsError,
    HandshakeRefused,
    MetaContextMissing,
    NbdError,
    ProtocolError,
    RequestFailed,
    TimedOut,
    Unsupported,
)
from vmbackup.nbd.extents import Extent, Kind, align, extents

__all__ = [
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
    "RequestFailed",
    "TimedOut",
    "Unsupported",
    "align",
    "extents",
]
