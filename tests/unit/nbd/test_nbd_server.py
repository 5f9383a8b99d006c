"""Our NBD server against clients that mean well, those that do not, and those that are just slow."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.nbd.served import KIB, MIB, SLAB, Disk, Reply, Teller, contexts, go, string
from vmbackup.nbd import CannotListen, ExportMissing, Extent, NbdClient, RequestFailed, extents
from vmbackup.nbd import protocol as p
from vmbackup.nbd.address import TcpAddress, UnixAddress, parse_tcp
from vmbackup.nbd.answers import PIECE
from vmbackup.nbd.server import NbdServer

SIZE = 5 * MIB + 777
EINVAL, EPERM, EIO, EOVERFLOW = 22, 1, 5, 75


@pytest.fixture
def disk() -> Disk:
    return Disk(random.Random(5).randbytes(SIZE))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


@pytest.fixture
def server(disk: Disk, path: str) -> Iterator[NbdServer]:
    with NbdServer({"vda": disk, "vdb": Disk(b"b" * 600)}, UnixAddress(path), connections=4) as made:
        yield made


@pytest.fixture
def tell(server: NbdServer, path: str) -> Iterator[Callable[[], Teller]]:
    """`tell()` connects."""
    made: list[Teller] = []

    def connect() -> Teller:
        made.append(Teller(path))
        return made[-1]

    yield connect
    for teller in made:
        teller.sock.close()


@pytest.fixture
def teller(tell: Callable[[], Teller]) -> Teller:
    return tell()


# The handshake


def test_the_list_names_all_exports(teller: Teller) -> None:
    teller.greet()
    assert teller.ask(p.OPT_LIST) == [(p.REP_SERVER, string("vda")), (p.REP_SERVER, string("vdb")), (p.REP_ACK, b"")]
    assert teller.ask(p.OPT_LIST, b"x")[0][0] == p.REP_ERR_INVALID


@pytest.mark.parametrize("option", [p.OPT_INFO, p.OPT_GO])
def test_an_export_is_told_of(teller: Teller, option: int) -> None:
    """Size, flags, block sizes, its name where that is asked for; after INFO the handshake goes on."""
    teller.greet()
    told = teller.ask(option, go("vda", p.INFO_NAME, 99))
    flags = 0b0101_0000_0111
    assert told == [
        (p.REP_INFO, struct.pack(">HQH", 0, SIZE, flags)),
        (p.REP_INFO, struct.pack(">HIII", 3, 1, 64 * KIB, 32 * MIB)),
        (p.REP_INFO, struct.pack(">H", 1) + b"vda"),
        (p.REP_ACK, b""),
    ]
    if option == p.OPT_INFO:
        assert teller.ask(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
        assert struct.unpack(">HQH", teller.ask(option, go("vda"))[0][1])[2] == flags | p.Transmission.SEND_DF


@pytest.mark.parametrize(
    ("option", "data", "answer"),
    [
        (p.OPT_GO, go("nobody"), p.REP_ERR_UNKNOWN),
        (p.OPT_GO, go("x" * 5000), p.REP_ERR_INVALID),
        (p.OPT_GO, string("vda"), p.REP_ERR_INVALID),
        (p.OPT_GO, string("vda") + b"\0\5\0\0", p.REP_ERR_INVALID),
        (p.OPT_GO, go("vda") + b"more", p.REP_ERR_INVALID),
        (p.OPT_GO, string(b"\xff\xfe") + b"\0\0", p.REP_ERR_INVALID),
        (p.OPT_GO, struct.pack(">I", 0xFFFFFFFF), p.REP_ERR_INVALID),
        (p.OPT_GO, b"", p.REP_ERR_INVALID),
        (p.OPT_SET_META_CONTEXT, contexts("nobody", "base:allocation"), p.REP_ERR_UNKNOWN),
        (p.OPT_SET_META_CONTEXT, string("vda") + b"\xff\xff\xff\xff", p.REP_ERR_INVALID),
        (p.OPT_SET_META_CONTEXT, string("vda") + b"\0\0\0\2" + string("base:allocation"), p.REP_ERR_INVALID),
        (p.OPT_STRUCTURED_REPLY, b"x", p.REP_ERR_INVALID),
        (p.OPT_STARTTLS, b"", p.REP_ERR_POLICY),
        (4, b"", p.REP_ERR_UNSUP),
        (11, b"", p.REP_ERR_UNSUP),
        (0xFFFFFFFF, bytes(60_000), p.REP_ERR_UNSUP),
    ],
)
def test_options_that_mean_nothing_are_refused_and_forgotten(
    teller: Teller, option: int, data: bytes, answer: int
) -> None:
    teller.greet()
    assert teller.ask(p.OPT_STRUCTURED_REPLY) == [(p.REP_ACK, b"")]
    assert teller.ask(option, data)[-1][0] == answer
    assert teller.ask(p.OPT_GO, go("vda"))[-1] == (p.REP_ACK, b"")


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(1000),
        struct.pack(">I", 3) + p.OPTION.pack(p.IHAVEOPT, p.OPT_GO, 1 << 20),
        struct.pack(">I", 3) + p.OPTION.pack(b"WHATEVER", p.OPT_GO, 0),
        struct.pack(">I", 3) + p.OPTION.pack(p.IHAVEOPT, p.OPT_EXPORT_NAME, 6) + b"nobody",
        struct.pack(">I", 3) + p.OPTION.pack(p.IHAVEOPT, 99, 0) * 300,
    ],
)
def test_who_does_not_speak_nbd_is_let_go(teller: Teller, tell: Callable[[], Teller], said: bytes) -> None:
    teller.send(said)
    assert teller.is_closed()
    tell().begin()


def test_contexts_are_listed_and_set(teller: Teller) -> None:
    """Listing takes a namespace or nothing for all; setting leaves out what there is not, and its last one holds."""
    name = b"base:allocation"
    teller.greet()
    assert teller.ask(p.OPT_SET_META_CONTEXT, contexts("vda", "base:allocation"))[0][0] == p.REP_ERR_INVALID
    teller.ask(p.OPT_STRUCTURED_REPLY)
    for queries in ((), ("base:",), ("base:allocation", "x")):
        assert teller.ask(p.OPT_LIST_META_CONTEXT, contexts("vda", *queries)) == [
            (p.REP_META_CONTEXT, bytes(4) + name),
            (p.REP_ACK, b""),
        ]
    assert teller.ask(p.OPT_LIST_META_CONTEXT, contexts("vda", "qemu:")) == [(p.REP_ACK, b"")]
    assert teller.ask(p.OPT_SET_META_CONTEXT, contexts("vda", "base:", "x")) == [(p.REP_ACK, b"")]
    assert teller.ask(p.OPT_SET_META_CONTEXT, contexts("vda", "x", "base:allocation")) == [
        (p.REP_META_CONTEXT, b"\0\0\0\1" + name),
        (p.REP_ACK, b""),
    ]
    teller.ask(p.OPT_GO, go("vdb"))
    teller.request(p.CMD_BLOCK_STATUS, 0, 512)
    assert teller.chunk().errno == EINVAL  # they were those of another export


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0), (2, 0), (0, 124)])
def test_the_oldest_way_to_an_export(teller: Teller, disk: Disk, flags: int, zeroes: int) -> None:
    teller.greet(flags)
    teller.option(p.OPT_EXPORT_NAME, b"vda")
    assert teller.take(10 + zeroes) == struct.pack(">QH", SIZE, 0b0101_0000_0111) + bytes(zeroes)
    teller.request(p.CMD_READ, 1, 999)
    assert teller.simple() == (0, 7)
    assert teller.take(999) == disk.data[1:1000]


def test_a_client_may_take_its_leave(teller: Teller) -> None:
    teller.greet()
    assert teller.ask(p.OPT_ABORT) == [(p.REP_ACK, b"")]
    assert teller.is_closed()


# Reading


def test_our_own_client_reads_all_of_it(server: NbdServer, disk: Disk, path: str) -> None:
    client = NbdClient.connect(path, "vda", contexts=[p.BASE_ALLOCATION])
    assert (client.size, client.read_only, client.can_multi_conn) == (SIZE, True, True)
    data = bytearray(SIZE)
    client.read_into(0, memoryview(data))
    assert data == disk.data
    wanted = [Extent(o, n, k) for o, n, k in disk.extents(0, SIZE)]
    found = list(extents(client, None, 0, SIZE, None))
    assert [(o, k) for o, _, k in found] == [
        (o, k) for n, (o, _, k) in enumerate(wanted) if n == 0 or wanted[n - 1].kind is not k
    ]
    client.flush()
    client.close()
    with pytest.raises(ExportMissing, match="there is vda, vdb"):
        NbdClient.connect(path, "vdc")


def test_a_reply_covers_what_was_asked_holes_as_holes(teller: Teller, disk: Disk) -> None:
    """A large read comes in several chunks, in order, the last one marked."""
    teller.begin()
    start, length = SLAB - 100, 3 * MIB
    teller.request(p.CMD_READ, start, length)
    data = bytearray(b"?" * length)
    for reply in teller.chunks():
        (at,) = struct.unpack_from(">Q", reply.payload)
        if reply.kind == p.CHUNK_OFFSET_HOLE:
            size = struct.unpack_from(">I", reply.payload, 8)[0]
            data[at - start : at - start + size] = bytes(size)
        else:
            assert at // SLAB % 3 != 1
            data[at - start : at - start + len(reply.payload) - 8] = reply.payload[8:]
    assert data == disk.data[start : start + length]


def test_without_fragments_it_is_one_chunk_or_too_much(teller: Teller, disk: Disk) -> None:
    teller.begin()
    teller.request(p.CMD_READ, 0, PIECE, flags=p.CMD_FLAG_DF)
    (reply,) = teller.chunks()
    assert (reply.kind, reply.payload[8:]) == (p.CHUNK_OFFSET_DATA, disk.data[:PIECE])
    teller.request(p.CMD_READ, 0, PIECE + 1, flags=p.CMD_FLAG_DF)
    assert teller.chunk().errno == EOVERFLOW


def test_simple_replies_are_whole(teller: Teller, disk: Disk) -> None:
    """For clients that know no others, as the kernel's."""
    teller.begin(structured=False)
    teller.request(p.CMD_READ, 5, 3 * MIB)
    assert teller.simple() == (0, 7)
    assert teller.take(3 * MIB) == disk.data[5 : 5 + 3 * MIB]
    disk.bad.add(2 * MIB)
    teller.request(p.CMD_READ, 0, 3 * MIB, cookie=8)
    assert teller.simple() == (EIO, 8)  # nothing of it was sent
    teller.request(p.CMD_FLUSH, cookie=9)
    assert teller.simple() == (0, 9)
    teller.request(p.CMD_BLOCK_STATUS, 0, 512, cookie=10)
    assert teller.simple() == (EINVAL, 10)
    teller.request(p.CMD_READ, 0, 512, cookie=11, flags=p.CMD_FLAG_DF)
    assert teller.simple() == (EINVAL, 11)


@pytest.mark.parametrize(
    ("command", "offset", "length", "errno"),
    [
        (p.CMD_READ, 0, 0, EINVAL),
        (p.CMD_READ, SIZE, 1, EINVAL),
        (p.CMD_READ, SIZE - 1, 2, EINVAL),
        (p.CMD_READ, (1 << 64) - 1, 1, EINVAL),
        (p.CMD_READ, 0, 0xFFFFFFFF, EINVAL),
        (p.CMD_BLOCK_STATUS, 0, 0, EINVAL),
        (p.CMD_BLOCK_STATUS, SIZE, 1, EINVAL),
        (p.CMD_CACHE, SIZE, 1, EINVAL),
        (p.CMD_TRIM, 0, 512, EPERM),
        (p.CMD_WRITE_ZEROES, 0, 0xFFFFFFFF, EPERM),
        (99, 0, 512, EINVAL),
        (0xFFFF, 0, 512, EINVAL),
    ],
)
def test_requests_that_cannot_be_fail_alone(
    teller: Teller, disk: Disk, command: int, offset: int, length: int, errno: int
) -> None:
    teller.begin()
    teller.request(command, offset, length)
    reply = teller.chunk()
    assert (reply.errno, reply.cookie, reply.flags) == (errno, 7, p.CHUNK_FLAG_DONE)
    teller.request(p.CMD_READ, 0, 10, cookie=8)
    assert teller.chunk() == Reply(1, p.CHUNK_OFFSET_DATA, 8, bytes(8) + disk.data[:10])


def test_nothing_is_ever_written(teller: Teller, disk: Disk) -> None:
    """A write is refused once its data are out of the way; flush and cache do no harm."""
    teller.begin()
    teller.request(p.CMD_WRITE, 0, 200_000)
    teller.send(bytes(200_000))
    assert teller.chunk().errno == EPERM
    teller.request(p.CMD_CACHE, 0, MIB, cookie=8)
    assert teller.chunk() == Reply(1, p.CHUNK_NONE, 8, b"")
    assert disk.reads == 1
    teller.request(p.CMD_FLUSH, cookie=9)
    assert teller.chunk() == Reply(1, p.CHUNK_NONE, 9, b"")


def test_one_extent_is_told_where_one_is_asked_for(teller: Teller) -> None:
    teller.begin()
    teller.request(p.CMD_BLOCK_STATUS, 100, 2 * SLAB, flags=p.CMD_FLAG_REQ_ONE)
    (reply,) = teller.chunks()
    assert struct.unpack(">3I", reply.payload) == (1, SLAB - 100, 0)
    teller.request(p.CMD_BLOCK_STATUS, 100, 2 * SLAB)
    (reply,) = teller.chunks()
    assert struct.unpack(">7I", reply.payload) == (1, SLAB - 100, 0, SLAB, 3, 100, 0)


@pytest.mark.parametrize("wrong", [None, ValueError("a bug"), OSError(5, "no")])
def test_what_cannot_be_read_fails_alone(
    server: NbdServer, disk: Disk, path: str, wrong: BaseException | None, caplog: pytest.LogCaptureFixture
) -> None:
    """EIO for that range, right bytes for others, whatever the export raised; never short or wrong data."""
    client = NbdClient.connect(path, "vda", contexts=[p.BASE_ALLOCATION])
    data = bytearray(MIB)
    disk.bad.add(2 * MIB + 5)
    disk.wrong = wrong
    with pytest.raises(RequestFailed, match=r"\(EIO\)" + ("" if wrong else ": a chunk is damaged")):
        client.read_into(2 * MIB, memoryview(data))
    if wrong:
        with pytest.raises(RequestFailed, match=r"\(EIO\)"):
            client.block_status(0, MIB)
        assert "offset=2097152" in caplog.text
    disk.wrong = None
    disk.short = True
    with pytest.raises(RequestFailed, match=r"\(EIO\)"):
        client.read_into(0, memoryview(data))
    disk.short = False
    client.read_into(0, memoryview(data))
    assert data == disk.data[:MIB]
    client.close()


def test_a_slow_read_holds_up_no_other(teller: Teller, disk: Disk) -> None:
    """Answers come when they are ready, in whatever order."""
    teller.begin()
    disk.gate = threading.Event()
    teller.request(p.CMD_READ, 0, 100, cookie=1)
    teller.request(p.CMD_FLUSH, cookie=2)
    assert teller.chunk().cookie == 2
    disk.gate.set()
    assert teller.chunk().cookie == 1


# Clients that do harm, or would


@pytest.mark.parametrize(
    "said",
    [
        b"\0" * 28,
        p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_WRITE, 1, 0, 33 * MIB),
        p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_DISC, 1, 0, 0),
    ],
)
def test_a_connection_that_is_of_no_use_ends_alone(tell: Callable[[], Teller], said: bytes) -> None:
    other, teller = tell(), tell()
    other.begin()
    teller.begin()
    teller.send(said)
    assert teller.is_closed()
    other.request(p.CMD_FLUSH)
    assert other.chunk().cookie == 7


def test_more_connections_than_allowed_are_turned_away(
    tell: Callable[[], Teller], caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once; a place that is given back is had by the next."""
    four = [tell() for _ in range(4)]
    for teller in four:
        teller.begin()
    assert tell().is_closed()
    assert tell().is_closed()
    assert [r.getMessage()[:26] for r in caplog.records] == ["4 connections are open at "]
    four[0].request(p.CMD_DISC)
    assert four[0].is_closed()
    assert until(lambda: begins(tell()))


def begins(teller: Teller) -> bool:
    try:
        teller.begin()
    except ConnectionError:
        return False
    return True


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("said", [b"", b"\0\0\0\3IHAVEO"])
def test_who_never_ends_the_handshake_is_let_go(
    monkeypatch: pytest.MonkeyPatch, teller: Teller, tell: Callable[[], Teller], said: bytes
) -> None:
    monkeypatch.setattr("vmbackup.nbd.greeting.HANDSHAKE_SECONDS", 0.0)
    slow = tell()
    slow.send(said)
    assert slow.is_closed()


def test_who_asks_and_never_listens_costs_little_and_is_let_go(
    monkeypatch: pytest.MonkeyPatch, tell: Callable[[], Teller], disk: Disk
) -> None:
    """However much is asked for, some pieces are read; then it waits, and ends."""
    monkeypatch.setattr("vmbackup.nbd.stream.MESSAGE_SECONDS", 1.0)
    greedy, other = tell(), tell()
    greedy.begin()
    other.begin()
    greedy.sock.setblocking(False)
    for _ in range(2000):
        try:
            greedy.request(p.CMD_READ, 0, 4 * MIB)
        except BlockingIOError:
            break
    assert until(lambda: disk.reads >= 8)
    other.request(p.CMD_READ, 0, 10)
    assert other.chunk().cookie == 7
    assert disk.reads <= 24  # its threads, and what the socket holds
    poll = select.poll()
    poll.register(greedy.sock, 0)  # tells of an end all the same
    assert poll.poll(20_000)


def test_a_message_that_trickles_is_let_go(monkeypatch: pytest.MonkeyPatch, teller: Teller) -> None:
    """A whole request may be waited for without end, half of one not."""
    monkeypatch.setattr("vmbackup.nbd.stream.MESSAGE_SECONDS", 0.5)
    teller.begin()
    teller.send(p.REQUEST.pack(p.REQUEST_MAGIC, 0, p.CMD_READ, 1, 0, 1)[:9])
    assert teller.is_closed()


def test_it_ends_with_clients_in_the_middle(disk: Disk, path: str) -> None:
    """Some wait for a request, some for an answer, some in the handshake: all of them see the end."""
    disk.gate = threading.Event()
    server = NbdServer({"vda": disk}, UnixAddress(path))
    server.start()
    tellers = [Teller(path) for _ in range(3)]
    tellers[0].begin()
    tellers[1].begin()
    tellers[1].request(p.CMD_READ, 0, 1)
    assert until(lambda: disk.reads == 1)
    threading.Timer(0.2, disk.gate.set).start()
    server.shutdown()
    for teller in tellers:
        assert teller.is_closed()
        teller.sock.close()
    assert not Path(path).exists()
    assert [t.name for t in threading.enumerate() if t.name.startswith("nbd-")] == []
    server.shutdown()


# Where it listens


def test_tcp_at_a_free_port(disk: Disk) -> None:
    with NbdServer({"": disk}, TcpAddress("localhost", 0)) as server:
        address = server.address
        assert isinstance(address, TcpAddress)
        assert address.port
        client = NbdClient.connect((address.host, address.port), "")
        assert client.size == SIZE
        client.close()
        with pytest.raises(CannotListen, match="Address already in use"):
            NbdServer({}, address).start()


def test_every_address_of_both_families(disk: Disk) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    with NbdServer({"": disk}, parse_tcp(":0")) as server:
        assert isinstance(server.address, TcpAddress)
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, server.address.port)) as sock:
                assert sock.recv(8) == b"NBDMAGIC"


def test_a_path_that_is_no_socket_or_too_long_stays_as_it_is(disk: Disk, tmp_path: Path) -> None:
    precious = tmp_path / "image.qcow2"
    precious.write_bytes(b"QFI")
    with pytest.raises(CannotListen, match="that is no socket"):
        NbdServer({"": disk}, UnixAddress(str(precious))).start()
    assert precious.read_bytes() == b"QFI"
    with pytest.raises(CannotListen, match="longer than 107 bytes"):
        NbdServer({"": disk}, UnixAddress(str(tmp_path / ("x" * 120)))).start()


def test_another_servers_socket_is_not_removed(disk: Disk, path: str) -> None:
    """Ours was taken away, and somebody else listens at its path by now."""
    server = NbdServer({"": disk}, UnixAddress(path))
    server.start()
    Path(path).unlink()
    with NbdServer({"": disk}, UnixAddress(path)):
        server.shutdown()
        client = NbdClient.connect(path, "")
        client.close()


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("host", "host", 10809),
        (":5", "::", 5),
        ("[::1]:7", "::1", 7),
        ("[fe80::1]", "fe80::1", 10809),
    ],
)
def test_addresses_are_read(text: str, host: str, port: int) -> None:
    assert parse_tcp(text) == TcpAddress(host, port)


@pytest.mark.parametrize("text", ["::1:5", "host:x", "host:99999", "host:-1", "host:"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|brackets"):
        parse_tcp(text)


@pytest.mark.parametrize(
    ("address", "local", "uri"),
    [
        (UnixAddress("/run/a b"), True, "nbd+unix:///vda?socket=/run/a%20b"),
        (TcpAddress("::1", 5), True, "nbd://[::1]:5/vda"),
        (TcpAddress("localhost", 5), True, "nbd://localhost:5/vda"),
        (TcpAddress("0.0.0.0", 5), False, "nbd://0.0.0.0:5/vda"),
        (TcpAddress("::", 5), False, "nbd://[::]:5/vda"),
        (TcpAddress("backup.example", 5), False, "nbd://backup.example:5/vda"),
    ],
)
def test_an_address_knows_who_reaches_it(address: UnixAddress | TcpAddress, local: bool, uri: str) -> None:
    assert address.is_local is local
    assert address.uri("vda") == uri
    assert address.uri("vda", tls=True) == uri.replace("nbd", "nbds", 1)
