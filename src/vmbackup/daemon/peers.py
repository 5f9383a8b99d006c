"""Who is at the other end of a connection to the control socket, and whether he may use it."""

import os
import socket
import struct
from array import array
from dataclasses import dataclass
from typing import Protocol

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid
_PEER_GROUPS = 59  # SO_PEERGROUPS of <asm-generic/socket.h>, which Python 3.11 does not name
_GROUPS_BYTES = 1024  # the most that getsockopt of Python takes: 256 groups


class Connection(Protocol):
    """The part of a socket that is asked."""

    def getsockopt(self, level: int, optname: int, buflen: int) -> bytes:
        """An option's bytes."""


@dataclass(frozen=True)
class Peer:
    """A process as it was when it connected, by the kernel's word."""

    pid: int
    uid: int
    groups: frozenset[int]  # the primary one, and the supplementary ones

    @classmethod
    def of(cls, connection: Connection) -> "Peer":
        """The process at the other end. Raises OSError."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(raw)
        return cls(pid, uid, frozenset((gid, *_supplementary(connection, pid))))


def _supplementary(connection: Connection, pid: int) -> list[int]:
    """Asked of the socket itself: unlike /proc it cannot speak of a process that has taken over the number."""
    try:
        return array("I", connection.getsockopt(socket.SOL_SOCKET, _PEER_GROUPS, _GROUPS_BYTES)).tolist()
    except OSError:  # an older kernel, or more groups than fit
        return _groups_in_proc(pid)


def _groups_in_proc(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = [line for line in file if line.startswith("Groups:")]
    except OSError:
        return []
    return [int(word) for line in lines for word in line.split()[1:]]


@dataclass(frozen=True)
class Guard:
    """Lets in root, the service's own user, and members of `group` (None: nobody else)."""

    group: int | None = None
    own: int = os.geteuid()

    def lets_in(self, connection: Connection) -> bool:
        """Whether the process at the other end may use the socket; False also where the kernel does not tell."""
        try:
            peer = Peer.of(connection)
        except OSError:
            return False
        return peer.uid in (0, self.own) or self.group in peer.groups
