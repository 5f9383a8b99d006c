"""Where an NBD server listens, and how its clients name it."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote

DEFAULT_PORT = 10809  # as registered for NBD


@dataclass(frozen=True)
class UnixAddress:
    """A unix socket's path."""

    path: str

    def __str__(self) -> str:
        return self.path

    def uri(self, export: str, *, tls: bool = False) -> str:
        """What nbdcopy, nbdinfo and qemu-img take."""
        return f"nbd{'s' if tls else ''}+unix:///{quote(export)}?socket={quote(self.path)}"

    @property
    def is_local(self) -> bool:
        """Only this host reaches it."""
        return True


@dataclass(frozen=True)
class TcpAddress:
    """A host's name or address, and a port; 0 for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def uri(self, export: str, *, tls: bool = False) -> str:
        """What nbdcopy, nbdinfo and qemu-img take."""
        return f"nbd{'s' if tls else ''}://{self}/{quote(export)}"

    @property
    def is_local(self) -> bool:
        """Only this host reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


ServerAddress = UnixAddress | TcpAddress


def parse_tcp(text: str) -> TcpAddress:
    """HOST, HOST:PORT, [IPV6]:PORT or :PORT (every address of this host). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(DEFAULT_PORT)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 address stands in brackets, as in [::1]:10809")
    if not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"'{port}' is no port")
    return TcpAddress(host or "::", int(port))
