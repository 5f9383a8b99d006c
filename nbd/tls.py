"""TLS for a client: asked for within the handshake (OPT_STARTTLS), then every byte goes through it.

The socket does not block and OpenSSL is asked again when it says so, because both directions may have to wait for each
other: TLS has messages of its own.
"""

import select
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import cast

from vmbackup.nbd import protocol as p
from vmbackup.nbd.channel import SLICE, Buffer, Channel, lost
from vmbackup.nbd.errors import ConnectionLost, Fault, HandshakeRefused

# Names of libvirt's and QEMU's own for what a client has of certificates.
CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca-cert.pem", "client-cert.pem", "client-key.pem"


@dataclass(frozen=True)
class ClientTls:
    """How a client proves who it is, and knows who answers: a server with a certificate for `host`."""

    context: ssl.SSLContext
    host: str

    @classmethod
    def from_folder(cls, folder: Path, host: str) -> "ClientTls":
        """With the authority's certificate, ours and its key from a folder. Raises OSError, ssl.SSLError."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(folder / CA_FILE))
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(str(folder / CERTIFICATE_FILE), str(folder / KEY_FILE))
        return cls(context, host)


class TlsChannel(Channel):
    """A channel whose every byte is encrypted. Takes over a plain one; raises a Fault where no TLS comes about."""

    def __init__(self, plain: Channel, tls: ClientTls) -> None:
        self.timeout, self.deadline = plain.timeout, plain.deadline
        self._sock = plain.take()
        self._ready = select.poll()
        self._ready.register(self._sock, select.POLLIN | select.POLLOUT)
        try:
            self._sock.setblocking(False)
            self._tls = tls.context.wrap_socket(
                self._sock, server_hostname=tls.host, do_handshake_on_connect=False, suppress_ragged_eofs=False
            )
            self._sock = self._tls
            self._again(self._tls.do_handshake)
        except BaseException:
            self._sock.close()
            raise

    def fill(self, view: memoryview | bytearray, size: int) -> None:
        """See Channel."""
        into, got = memoryview(view)[:size], 0
        while got < size:
            more = self._again(partial(self._tls.recv_into, into[got:]))
            if not more:
                raise Fault(ConnectionLost, "the server closed the connection")
            got += more

    def send(self, pieces: Sequence[Buffer], size: int, drain: Callable[[], None]) -> None:  # noqa: ARG002 (Channel's)
        """See Channel. OpenSSL encrypts before it sends, so that a copy is made."""
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while view:
                sent = self._again(partial(self._tls.send, view), drain)
                view = view[sent:]

    def send_last(self, message: bytes) -> None:
        """See Channel."""
        with suppress(OSError):
            self._tls.send(message)

    def _again(self, call: Callable[[], object], drain: Callable[[], None] | None = None) -> int:
        """Makes a call of OpenSSL until it has an answer, and takes what has come meanwhile (`drain`)."""
        while True:
            try:
                return cast("int", call() or 0)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except ssl.SSLWantWriteError:
                if self._wait(select.POLLIN | select.POLLOUT) & select.POLLIN and drain is not None:
                    drain()
            except ssl.SSLCertVerificationError as error:
                raise Fault(
                    HandshakeRefused,
                    f"its certificate is not one to trust: {error.verify_message}",
                    "the server's certificate must be from the authority, and for the name, that the client was told",
                ) from None
            except ssl.SSLError as error:
                raise Fault(ConnectionLost, f"TLS: {error.reason or error}") from None
            except OSError as error:
                raise lost(error) from None

    def _wait(self, wanted: int) -> int:
        self.check()
        self._ready.modify(self._sock, wanted)
        ready = self._ready.poll(min(SLICE, max(0.001, self.deadline - monotonic())) * 1000)
        return ready[0][1] if ready else 0


def ask_for_tls(channel: Channel, tls: ClientTls, reply: Callable[[Channel], None]) -> TlsChannel:
    """Past the greeting: OPT_STARTTLS, its answer by `reply` (which raises for a refusal), then TLS itself."""
    message = p.CLIENT_FLAGS.pack(p.FLAG_FIXED_NEWSTYLE) + p.OPTION.pack(p.IHAVEOPT, p.OPT_STARTTLS, 0)
    channel.send((message,), len(message), lambda: None)
    reply(channel)
    return TlsChannel(channel, tls)
