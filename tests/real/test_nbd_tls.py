"""Our NBD client over TLS against qemu-nbd: the bytes are right, and nobody but who he says he is gets any."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.certificate import make_pki
from vmbackup.nbd import ConnectFailed, HandshakeRefused, Kind, NbdClient, NbdError, extents
from vmbackup.nbd.tls import ClientTls

pytestmark = pytest.mark.real
MIB = 1 << 20
Serve = Callable[..., tuple[str, int]]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a client's certificate."""
    return make_pki(tmp_path_factory.mktemp("tls") / "pki")


@pytest.fixture
def serve(tmp_path: Path, pki: Path) -> Iterator[Serve]:
    """Serves an image by qemu-nbd at a port of its own, with TLS unless told."""
    if shutil.which("qemu-nbd") is None:
        pytest.skip("qemu-nbd is missing: apt install qemu-utils")
    started: list[subprocess.Popen[bytes]] = []

    def start(image: Path, *, tls: bool = True) -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = int(taken.getsockname()[1])
        options = ["--object", f"tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir={pki}", "--tls-creds", "t"]
        started.append(subprocess.Popen(
            [machine.program("qemu-nbd"), "-f", "raw", "-t", "-x", "vda", "-b", "127.0.0.1", "-p", str(port),
             *(options if tls else ()), str(image)], stdin=subprocess.DEVNULL))
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                return "127.0.0.1", port
            except OSError:
                assert started[-1].poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Random bytes with a hole."""
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.write(random.Random(7).randbytes(3 * MIB + 12345))
    return path


def test_reads_writes_and_maps(serve: Serve, image: Path, pki: Path) -> None:
    """Many requests under way, large ones in both directions, and the map of the disk."""
    address = serve(image)
    tls = ClientTls.from_folder(pki, "localhost")
    client = NbdClient.connect(address, "vda", contexts=("base:allocation",), tls=tls)
    whole = bytearray(client.size)
    client.read_into(0, memoryview(whole))
    assert bytes(whole) == image.read_bytes()
    kinds = {extent.kind for extent in extents(client, None, 0, client.size, None)}
    assert kinds == {Kind.DATA, Kind.ZERO}
    data = random.Random(8).randbytes(2 * MIB + 777)
    client.write(4 * MIB, data)
    client.flush()
    back = bytearray(len(data))
    client.read_into(4 * MIB, memoryview(back))
    assert bytes(back) == data
    client.close()


def test_a_server_of_another_name_or_authority(serve: Serve, image: Path, pki: Path, tmp_path: Path) -> None:
    """Refused before anything is read, with what is wrong of its certificate."""
    address = serve(image)
    with pytest.raises(HandshakeRefused, match="not one to trust: Hostname mismatch"):
        NbdClient.connect(address, "vda", tls=ClientTls.from_folder(pki, "hv1.example.org"))
    stranger = make_pki(tmp_path / "stranger")
    with pytest.raises(HandshakeRefused, match="not one to trust"):
        NbdClient.connect(address, "vda", tls=ClientTls.from_folder(stranger, "localhost"))


def test_a_client_that_the_server_does_not_know(serve: Serve, image: Path, pki: Path, tmp_path: Path) -> None:
    """qemu-nbd ends the connection; the error says that it is TLS, or that it was closed."""
    mixed = make_pki(tmp_path / "mixed")
    shutil.copy(pki / "ca-cert.pem", mixed / "ca-cert.pem")
    with pytest.raises(NbdError, match=r"TLS|closed|broke"):
        NbdClient.connect(serve(image), "vda", tls=ClientTls.from_folder(mixed, "localhost"))


def test_a_server_without_tls_is_refused(serve: Serve, image: Path, pki: Path) -> None:
    """Nothing is read in plain where TLS was asked for, and a server that insists is not read in plain either."""
    with pytest.raises(HandshakeRefused, match="refused TLS"):
        NbdClient.connect(serve(image, tls=False), "vda", tls=ClientTls.from_folder(pki, "localhost"))
    with pytest.raises(HandshakeRefused, match="insists on TLS"):
        NbdClient.connect(serve(image), "vda")


def test_nobody_there(pki: Path) -> None:
    """As without TLS."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    with pytest.raises(ConnectFailed):
        NbdClient.connect(("127.0.0.1", port), "vda", tls=ClientTls.from_folder(pki, "localhost"))
