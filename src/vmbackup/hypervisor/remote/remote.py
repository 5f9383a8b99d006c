"""A hypervisor that is not this machine: what libvirt tells of it holds, what stands in its files is out of reach.

Its disks come over the network, by NBD, and only with TLS on both sides: NBD itself knows no passwords.
"""

import random
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.names import PREFIX
from vmbackup.nbd.address import TcpAddress, parse_tcp
from vmbackup.nbd.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE, ClientTls

_SCHEME = "nbd://"
DEFAULT_PORTS = (10810, 10899)


def host_of(uri: str) -> str | None:
    """The other machine that a libvirt URI leads to; None for this one (also by a socket of its)."""
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    return None if transport in ("", "unix") and not parts.hostname else parts.hostname or "localhost"


def is_remote(raw: Any) -> bool:
    """Whether a virConnect leads to another machine: paths are then that one's."""
    return host_of(raw.getURI()) is not None


@dataclass(frozen=True)
class Reach:
    """How QEMU's NBD server on `host` is reached: where it listens, in which ports, and our certificates."""

    host: str
    tls_dir: Path | None
    address: str | None = None
    ports: tuple[int, int] = DEFAULT_PORTS

    def tls(self) -> ClientTls:
        """What a client needs. Raises HypervisorError where it is not there: nothing goes over a network in plain."""
        if self.tls_dir is None:
            raise HypervisorError(
                f"the disks of guests on {self.host} come over the network, and only with TLS",
                f"set [libvirt] nbd_tls_dir to a folder with {CA_FILE}, {CERTIFICATE_FILE} and {KEY_FILE},"
                " or run vmbackup on that host; docs/operations.md, 'A backup host beside the hypervisors'",
            )
        try:
            return ClientTls.from_folder(self.tls_dir, self.address or self.host)
        except (OSError, ssl.SSLError) as error:
            raise HypervisorError(
                f"the certificates in {self.tls_dir} cannot be used: {error}",
                f"[libvirt] nbd_tls_dir needs {CA_FILE}, {CERTIFICATE_FILE} and {KEY_FILE}",
            ) from error

    def place(self, tag: str, taken: Collection[str], chance: random.Random | None = None) -> str:
        """The name of a run's server at a port that no other of ours has: nbd://ADDRESS:PORT/vmbackup-TAG.

        Raises HypervisorError where all are taken.
        """
        used = {address_of(place).port for place in taken if is_place(place)}
        free = [port for port in range(self.ports[0], self.ports[1] + 1) if port not in used]
        if not free:
            raise HypervisorError(
                f"the ports {self.ports[0]} to {self.ports[1]} for NBD on {self.host} are all in use",
                "set [libvirt] nbd_ports to more of them",
            )
        port = (chance or random.Random()).choice(free)  # noqa: S311 (no secret: several programs shall not meet)
        return place_of(self.address or self.host, port, tag)


def require_here(reach: Reach | None, doing: str, instead: str) -> None:
    """Raises HypervisorError for what needs the files of a hypervisor that is another machine."""
    if reach:
        raise HypervisorError(
            f"{doing} needs files of {reach.host}, which are out of reach here",
            f"{instead}, or run vmbackup on {reach.host} itself, with the same repository",
        )


def place_of(address: str, port: int, tag: str) -> str:
    """A server's name, which stands where a socket's path does for a guest of this machine."""
    return f"{_SCHEME}{TcpAddress(address, port)}/{PREFIX}{tag}"


def is_place(socket: str) -> bool:
    """Whether it is such a name, and no path."""
    return socket.startswith(_SCHEME)


def address_of(place: str) -> TcpAddress:
    """Where it listens."""
    return parse_tcp(place.removeprefix(_SCHEME).partition("/")[0])


def tag_of(place: str) -> str:
    """What the names of the run's scratch files have in common."""
    return place.rpartition("/")[2].removeprefix(PREFIX)
