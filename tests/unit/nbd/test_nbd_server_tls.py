"""TLS of our NBD server: nothing is told without it, and with an authority only to those whom it knows."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.nbd.served import MIB, Disk, Teller, contexts, go
from vmbackup.nbd import protocol as p
from vmbackup.nbd.address import TcpAddress
from vmbackup.nbd.server import NbdServer


@dataclass
class Certificates:
    """An authority, and certificates that it made: a server's and a client's; and a stranger's client."""

    folder: Path

    def __post_init__(self) -> None:
        key, authority = self._make("ca", None, None)
        self._make("server", key, authority)
        self._make("client", key, authority)
        other_key, other = self._make("other-ca", None, None)
        self._make("stranger", other_key, other)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def _make(
        self, name: str, signer: ec.EllipticCurvePrivateKey | None, issuer: x509.Certificate | None
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .sign(signer or key, hashes.SHA256())
        )
        text = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.path(name).write_bytes(text)
        return key, made

    def server(self, *, known_only: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path("server"))
        if known_only:
            context.load_verify_locations(self.path("ca"))
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def client(self, name: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.path("ca"))
        if name:
            context.load_cert_chain(self.path(name))
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def disk() -> Disk:
    return Disk(b"the disk" * (3 * MIB // 8))


@pytest.fixture
def teller(certificates: Certificates, disk: Disk) -> Iterator[Teller]:
    with NbdServer({"vda": disk}, TcpAddress("127.0.0.1", 0), tls=certificates.server()) as server:
        made = connected(server)
        yield made
        made.sock.close()


def connected(server: NbdServer) -> Teller:
    assert isinstance(server.address, TcpAddress)
    return Teller((server.address.host, server.address.port))


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (p.OPT_LIST, b""),
        (p.OPT_GO, go("vda")),
        (p.OPT_INFO, go("vda")),
        (p.OPT_STRUCTURED_REPLY, b""),
        (p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation")),
        (99, b""),
    ],
)
def test_nothing_is_told_without_tls(teller: Teller, certificates: Certificates, option: int, data: bytes) -> None:
    teller.greet()
    ((kind, _),) = teller.ask(option, data)
    assert kind == p.REP_ERR_TLS_REQD
    teller.start_tls(certificates.client())
    assert teller.ask(p.OPT_GO, go("vda"))[-1] == (p.REP_ACK, b"")


def test_the_oldest_option_ends_without_tls(teller: Teller) -> None:
    teller.greet()
    teller.option(p.OPT_EXPORT_NAME, b"vda")
    assert teller.is_closed()


def test_what_was_said_in_the_open_is_void(teller: Teller, certificates: Certificates, disk: Disk) -> None:
    """TLS can be started once; bytes are right, in both directions at once, and end properly."""
    teller.greet()
    teller.start_tls(certificates.client())
    assert teller.ask(p.OPT_STARTTLS)[0][0] == p.REP_ERR_INVALID
    assert teller.ask(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))[0][0] == p.REP_ERR_INVALID
    teller.ask(p.OPT_STRUCTURED_REPLY)
    teller.ask(p.OPT_GO, go("vda"))
    for cookie in range(40):
        teller.request(p.CMD_READ, 2 * MIB + cookie, MIB // 4, cookie=cookie)
    seen = {}
    while len(seen) < 40:
        reply = teller.chunk()
        seen[reply.cookie] = reply
    for cookie, reply in seen.items():
        if reply.kind == p.CHUNK_OFFSET_DATA:
            assert reply.payload[8:] == disk.data[2 * MIB + cookie :][: len(reply.payload) - 8]
    teller.request(p.CMD_DISC)
    assert teller.is_closed()


def test_only_known_clients_are_told_anything(certificates: Certificates, disk: Disk) -> None:
    context = certificates.server(known_only=True)
    with NbdServer({"vda": disk}, TcpAddress("127.0.0.1", 0), tls=context) as server:
        for name, welcome in ((None, False), ("stranger", False), ("client", True)):
            teller = connected(server)
            try:
                teller.greet()
                teller.start_tls(certificates.client(name))
                found = teller.ask(p.OPT_GO, go("vda"))
                assert welcome
                assert found[-1] == (p.REP_ACK, b"")
            except (ssl.SSLError, ConnectionError):  # TLS 1.3 tells of it after the client's handshake
                assert not welcome
            teller.sock.close()


@pytest.mark.parametrize("said", [b"\x16\x03\x01\xff\xffhello", bytes(5000), b""])
def test_what_is_no_tls_is_let_go(teller: Teller, said: bytes) -> None:
    teller.greet()
    assert teller.ask(p.OPT_STARTTLS) == [(p.REP_ACK, b"")]
    teller.send(said)
    teller.sock.shutdown(socket.SHUT_WR)
    assert teller.is_closed()
