"""The socket at which a server listens; a unix socket's file goes with it."""

import contextlib
import errno
import os
import socket
import stat

from vmbackup.nbd.address import ServerAddress, TcpAddress, UnixAddress
from vmbackup.nbd.errors import CannotListen

BACKLOG = 64  # connections that wait to be accepted
MAX_PATH = 107  # bytes of a unix socket's path: Linux' limit


class Listener:
    """Listens from `open` to `close`. `address` is the true one: the port that was free, for port 0."""

    def __init__(self, sock: socket.socket, address: ServerAddress, file: tuple[int, int] | None) -> None:
        self.sock, self.address = sock, address
        self._file = file  # device and inode of the socket's file

    @classmethod
    def open(cls, address: ServerAddress) -> "Listener":
        """Raises CannotListen."""
        try:
            return _open_unix(address) if isinstance(address, UnixAddress) else _open_tcp(address)
        except OSError as error:
            raise _refused(address, error.strerror or str(error)) from error

    def close(self) -> None:
        """Stops listening; the socket's file goes unless another server's stands there by now. Never raises."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self.sock.close()
        if isinstance(self.address, UnixAddress) and self._file is not None:
            with contextlib.suppress(OSError):
                found = os.lstat(self.address.path)
                if (found.st_dev, found.st_ino) == self._file:
                    os.unlink(self.address.path)
            self._file = None


def _refused(address: ServerAddress, reason: str) -> CannotListen:
    if isinstance(address, UnixAddress):
        hint = "name another path; its folder must exist, and this user must be able to write there"
    else:
        hint = "name an address of this host and a free port, as 127.0.0.1:10809"
    return CannotListen(f"cannot listen at {address}: {reason}", hint)


def _open_tcp(address: TcpAddress) -> Listener:
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # "::" takes IPv4 too
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(place)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, TcpAddress(address.host, sock.getsockname()[1]), None)


def _open_unix(address: UnixAddress) -> Listener:
    """The socket's file is for its owner only: who may connect may read the disk."""
    if len(os.fsencode(address.path)) > MAX_PATH:
        raise _refused(address, f"the path is longer than {MAX_PATH} bytes")
    _remove_stale(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address.path)
        found = os.lstat(address.path)
        os.chmod(address.path, 0o600)  # nobody connects before it listens
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return Listener(sock, address, (found.st_dev, found.st_ino))


def _remove_stale(address: UnixAddress) -> None:
    """What a killed server left, and nothing else."""
    try:
        if not stat.S_ISSOCK(os.lstat(address.path).st_mode):
            raise _refused(address, "a file is there that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(address.path)
    if code != errno.ECONNREFUSED:
        raise _refused(address, "a server listens there already" if code in (0, errno.EAGAIN) else os.strerror(code))
    os.unlink(address.path)
