"""Requests and replies, against servers that reorder, cut, lie, dawdle or flood."""

import itertools
import random
import struct
import threading
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbackup.nbd import ConnectionLost, NbdClient, ProtocolError, RequestFailed, TimedOut, Unsupported
from vmbackup.nbd import protocol as p
from vmbackup.nbd.errors import Fault
from vmbackup.nbd.request import Request

KIB, MIB = 1 << 10, 1 << 20
BITMAP = "qemu:dirty-bitmap:b"
BOTH = (p.BASE_ALLOCATION, BITMAP)


def connect(serve, script, *, timeout: float = 5.0, contexts: tuple[str, ...] = (), **export) -> NbdClient:
    """A client of a server that negotiates and then runs the script."""

    def whole(wire) -> None:
        wire.negotiate(contexts=contexts, **export)
        script(wire)

    return NbdClient.connect(serve(whole), "vda", contexts=contexts, timeout=timeout)


# What is right


def _cut(rng: random.Random, offset: int, data: bytes) -> list[tuple[int, bytes]]:
    borders = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randrange(6)))})
    return [(offset + a, data[a:b]) for a, b in itertools.pairwise(borders)]


@pytest.mark.parametrize("seed", range(12))
def test_pieces_of_many_reads_in_any_order_arrive_where_they_belong(serve, seed) -> None:
    """Chunks of all requests shuffled together, data and holes, end marks apart: each buffer is right."""
    rng = random.Random(seed)
    count, size = 7, 64 * KIB
    disk = bytearray(rng.randbytes(count * size))
    for _ in range(20):
        at = rng.randrange(len(disk) - 8 * KIB)
        disk[at : at + 8 * KIB] = bytes(8 * KIB)

    def script(wire) -> None:
        asked = [wire.request() for _ in range(count)]
        todo = {a.cookie: _cut(rng, a.offset, bytes(disk[a.offset : a.offset + a.length])) for a in asked}
        for chunks in todo.values():
            rng.shuffle(chunks)
        while todo:
            cookie = rng.choice(list(todo))
            offset, data = todo[cookie].pop()
            done = not todo[cookie] and rng.random() < 0.5
            if not any(data):
                wire.hole(cookie, offset, len(data), done=done)
            else:
                wire.data(cookie, offset, data, done=done)
            if not todo[cookie]:
                del todo[cookie]
                if not done:
                    wire.chunk(cookie, p.CHUNK_NONE)

    client = connect(serve, script)
    buffers = [bytearray(b"\xee" * size) for _ in range(count)]
    cookies = {client.submit_read(n * size, memoryview(buffers[n])): n for n in range(count)}
    assert client.outstanding == count
    assert {client.wait() for _ in range(count)} == set(cookies)
    assert client.outstanding == 0
    assert b"".join(buffers) == disk
    client.close()


def test_a_slow_but_steady_server_is_waited_for(serve) -> None:
    """Halves that come a while apart, longer than one wait of the socket, make a whole."""

    def script(wire) -> None:
        asked = wire.request()
        message = struct.pack(">IHHQIQ", p.CHUNK_MAGIC, 1, 1, asked.cookie, 8 + 4096, asked.offset)
        message += b"x" * 4096
        for part in (message[:10], message[10:25], message[25:2000], message[2000:]):
            time.sleep(0.35)
            wire.send(part)

    client = connect(serve, script, timeout=1.2 * 2)
    buffer = bytearray(4096)
    client.read_into(0, memoryview(buffer))
    assert buffer == b"x" * 4096
    client.close()


def test_a_failed_read_leaves_the_connection_usable(serve) -> None:
    """The error names the request, the others complete, also where data came before the error."""

    def script(wire) -> None:
        first, second = wire.request(), wire.request()
        wire.data(first.cookie, first.offset, b"a" * 512, done=False)
        wire.error(first.cookie, 5, b"disk\x07 on fire", done=False)
        wire.chunk(first.cookie, p.CHUNK_NONE)
        wire.data(second.cookie, second.offset, b"b" * 1024)
        third = wire.request()
        payload = p.ERROR.pack(12, 0) + struct.pack(">Q", third.offset)
        wire.chunk(third.cookie, p.CHUNK_ERROR_BIT | 2, payload)

    client = connect(serve, script)
    first, second = bytearray(1024), bytearray(1024)
    cookie = client.submit_read(4096, memoryview(first))
    other = client.submit_read(8192, memoryview(second))
    told = r"read of 1024 bytes at 4096 on export 'vda' at .*\(EIO\): disk on fire"
    with pytest.raises(RequestFailed, match=told) as e:
        client.wait()
    assert (e.value.cookie, e.value.errno, e.value.offset, e.value.length) == (cookie, 5, 4096, 1024)
    assert client.wait() == other
    assert second == b"b" * 1024
    with pytest.raises(RequestFailed, match="ENOMEM"):
        client.read_into(0, memoryview(first))
    client.close()


def test_a_failed_piece_of_a_large_read_is_told_after_the_others_came(serve) -> None:
    """The buffer is the caller's again when read_into raises: nothing is written into it any more."""

    def script(wire) -> None:
        asked = [wire.request() for _ in range(3)]
        wire.error(asked[0].cookie, 5)
        for a in asked[1:]:
            time.sleep(0.1)
            wire.data(a.cookie, a.offset, b"z" * a.length)
        wire.simple(wire.request().cookie)

    client = connect(serve, script)
    buffer = bytearray(3 * MIB)
    with pytest.raises(RequestFailed, match="at 0 "):
        client.read_into(0, memoryview(buffer))
    assert buffer[MIB:] == b"z" * 2 * MIB
    assert client.outstanding == 0
    client.flush()
    client.close()


def test_writes_zeroes_trims_and_flushes_say_what_they_mean(serve) -> None:
    seen: list[tuple[int, int, int, int]] = []
    written = bytearray()

    def script(wire) -> None:
        for _ in range(6):
            a = wire.request()
            seen.append((a.command, a.flags, a.offset, a.length))
            if a.command == p.CMD_WRITE:
                written.extend(wire.receive(a.length))
                wire.simple(a.cookie)
            else:
                wire.chunk(a.cookie, p.CHUNK_NONE)

    client = connect(serve, script)
    pieces = [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b"", *[b"."] * 2000]
    cookie = client.submit_write(10, pieces)
    assert client.wait() == cookie
    client.write(100, b"data")
    client.zero(512, 1024)
    client.zero(512, 1024, may_trim=False)
    client.trim(0, 16 * MIB)
    client.flush()
    client.close()
    assert written == b"abcdef" + b"." * 2000 + b"data"
    assert seen == [
        (p.CMD_WRITE, 0, 10, 2006),
        (p.CMD_WRITE, 0, 100, 4),
        (p.CMD_WRITE_ZEROES, 0, 512, 1024),
        (p.CMD_WRITE_ZEROES, p.CMD_FLAG_NO_HOLE, 512, 1024),
        (p.CMD_TRIM, 0, 0, 16 * MIB),
        (p.CMD_FLUSH, 0, 0, 0),
    ]


def test_full_sockets_on_both_sides_do_not_wait_for_each_other(serve) -> None:
    """A server that sends all of its answers before it takes the next request is drained meanwhile."""

    def script(wire) -> None:
        for a in [wire.request() for _ in range(8)]:
            wire.data(a.cookie, a.offset, bytes([a.offset // MIB]) * a.length)
        for _ in range(8):
            a = wire.request()
            assert not any(wire.receive(a.length))
            wire.simple(a.cookie)

    client = connect(serve, script, timeout=10)
    buffers = [bytearray(MIB) for _ in range(8)]
    reads = [client.submit_read(n * MIB, memoryview(buffers[n])) for n in range(8)]
    block = bytes(4 * MIB)
    writes = [client.submit_write(8 * MIB, [block, block]) for _ in range(8)]
    assert sorted(client.wait() for _ in range(16)) == sorted(reads + writes)
    assert all(buffer == bytes([n]) * MIB for n, buffer in enumerate(buffers))
    client.close()


def test_what_completes_during_another_call_is_kept_for_wait(serve) -> None:
    def script(wire) -> None:
        read, flush = wire.request(), wire.request()
        wire.data(read.cookie, read.offset, b"r" * 512)
        wire.simple(flush.cookie)

    client = connect(serve, script)
    buffer = bytearray(512)
    cookie = client.submit_read(0, memoryview(buffer))
    client.flush()
    assert client.outstanding == 1
    assert client.wait() == cookie
    client.close()


def test_calls_that_cannot_be_meant_send_nothing(serve) -> None:
    client = connect(serve, lambda w: w.hang_up_later(), block_size=(512, 4096, MIB), flags=3 | 1 << 6)
    buffer = memoryview(bytearray(2 * MIB))
    for call in (
        lambda: client.submit_read(16 * MIB, buffer[:512]),
        lambda: client.submit_read(-512, buffer[:512]),
        lambda: client.submit_read(0, buffer[:0]),
        lambda: client.submit_read(0, buffer),
        lambda: client.submit_read(1, buffer[:512]),
        lambda: client.submit_read(0, buffer[:511]),
        lambda: client.submit_read(0, memoryview(bytes(512))),
        lambda: client.read_into(0, memoryview(bytes(512))),
        lambda: client.block_status(0, 512),
        client.wait,
    ):
        with pytest.raises(ValueError):
            call()
    for call in (
        lambda: client.submit_write(0, [bytes(512)]),
        lambda: client.write(0, bytes(512)),
        lambda: client.zero(0, 512),
        lambda: client.trim(0, 512),
        client.flush,
    ):
        with pytest.raises(Unsupported, match="on export 'vda'"):
            call()
    for _ in range(16):
        client.submit_read(0, buffer[:512])
    with pytest.raises(ValueError, match="16 requests are outstanding"):
        client.submit_read(0, buffer[:512])
    client.close()
    client.close()
    with pytest.raises(ConnectionLost, match="it was closed"):
        client.submit_read(0, buffer[:512])
    with pytest.raises(ConnectionLost, match="it was closed"):
        client.wait()


def test_abort_from_another_thread_ends_a_wait(serve) -> None:
    client = connect(serve, lambda w: w.hang_up_later(), timeout=60)
    client.submit_read(0, memoryview(bytearray(512)))
    timer = threading.Timer(0.2, client.abort)
    timer.start()
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="it was aborted"):
        client.wait()
    assert time.monotonic() - began < 5
    timer.join()
    client.abort()
    client.close()


# What is wrong: replies to a read of 64 KiB at 1 MiB


def _endless(send):
    def script(wire, asked) -> None:
        while True:
            send(wire, asked)

    return script


def _drip(wire, asked) -> None:
    wire.send(struct.pack(">IHHQIQ", p.CHUNK_MAGIC, 1, 1, asked.cookie, 8 + asked.length, asked.offset))
    for _ in range(100):
        wire.send(b"x")
        time.sleep(0.05)


def _overlap_later(wire, asked) -> None:
    for offset, length in ((0, 4096), (8192, 4096), (6000, 4096)):
        wire.data(asked.cookie, asked.offset + offset, bytes(length), done=False)


def _overlap_hole(wire, asked) -> None:
    wire.data(asked.cookie, asked.offset + 4096, bytes(4096), done=False)
    wire.hole(asked.cookie, asked.offset, 8192, done=False)


def _one_byte_pieces(wire, asked) -> None:
    for offset in range(asked.length):
        wire.data(asked.cookie, asked.offset + offset, b"x", done=False)


def _too_much(wire, asked) -> None:
    wire.data(asked.cookie, asked.offset, bytes(asked.length), done=False)
    wire.data(asked.cookie, asked.offset, b"x", done=False)


def _whole_after_a_part(wire, asked) -> None:
    wire.data(asked.cookie, asked.offset, b"x", done=False)
    wire.data(asked.cookie, asked.offset, bytes(asked.length))


def _trickle(wire, asked) -> None:
    """Right in all but the time it takes: no single wait is long."""
    for offset in range(0, asked.length, 512):
        wire.data(asked.cookie, asked.offset + offset, bytes(512), done=False)
        time.sleep(0.02)


def _leave(wire, asked) -> None:
    wire.send(p.CHUNK.pack(p.CHUNK_MAGIC, 1, 1, asked.cookie))
    wire.conn.close()


def _chunk(kind: int, payload: bytes = b"", *, done: bool = True, length: int | None = None):
    return lambda w, a: w.chunk(a.cookie, kind, payload, done=done, length=length)


END = 1 << 15


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (lambda w, a: w.data(a.cookie, a.offset - 1, bytes(4096)), ProtocolError, "outside"),
        (lambda w, a: w.data(a.cookie, a.offset + 61441, bytes(4096)), ProtocolError, "outside"),
        (lambda w, a: w.data(a.cookie, a.offset, b""), ProtocolError, "0 bytes .* lies outside"),
        (_chunk(1, bytes(8), length=0xFFFFFFFF), ProtocolError, "4294967287 bytes .* outside"),
        (_chunk(1, bytes(8), length=3), ProtocolError, "outside"),
        (lambda w, a: w.hole(a.cookie, a.offset, 0xFFFFFFFF), ProtocolError, "outside"),
        (lambda w, a: w.hole(a.cookie, a.offset, 0), ProtocolError, "outside"),
        (lambda w, a: w.hole(a.cookie, 0, 4096), ProtocolError, "outside"),
        (_chunk(2, bytes(16)), ProtocolError, "hole chunk of 16"),
        (lambda w, a: w.data(a.cookie, a.offset, bytes(4096)), ProtocolError, "only 4096 bytes came"),
        (_chunk(0), ProtocolError, "only 0 bytes came"),
        (_chunk(0, done=False), ProtocolError, "end mark"),
        (_chunk(0, b"x"), ProtocolError, "end mark"),
        (_chunk(99), ProtocolError, "type 99"),
        (_chunk(5, bytes(12)), ProtocolError, "type 5"),
        (_chunk(END | 1, p.ERROR.pack(5, 3)), ProtocolError, "shorter than its message"),
        (_chunk(END | 1, p.ERROR.pack(0, 0)), ProtocolError, "without an error"),
        (_chunk(END | 1, b"", length=0xFFFFFFFF), ProtocolError, "error chunk of 4294967295"),
        (_chunk(END | 1, b"x"), ProtocolError, "error chunk of 1 "),
        (lambda w, a: w.error(a.cookie, 108), ConnectionLost, "shutting down"),
        (lambda w, a: w.simple(a.cookie), ProtocolError, "simple reply to a read"),
        (lambda w, a: w.data(a.cookie + 1, a.offset, b"x"), ProtocolError, "no request of ours"),
        (lambda w, a: w.send(bytes(100)), ProtocolError, "wrong magic"),
        (lambda w, a: w.send(struct.pack(">IHHQI", 1, 1, 1, a.cookie, 0)), ProtocolError, "wrong magic"),
        (_overlap_later, ProtocolError, "overlap"),
        (_overlap_hole, ProtocolError, "overlap"),
        (_too_much, ProtocolError, "overlap"),
        (_whole_after_a_part, ProtocolError, "overlap"),
        (_trickle, TimedOut, "within 0.5 s"),
        (_one_byte_pieces, ProtocolError, "endless pieces"),
        (_endless(lambda w, a: w.error(a.cookie, 5, done=False)), ProtocolError, "endless pieces"),
        (_drip, TimedOut, "within 0.5 s"),
        (lambda w, a: None, TimedOut, "within 0.5 s"),
        (lambda w, a: w.send(b"x"), TimedOut, "within 0.5 s"),
        (_leave, ConnectionLost, "closed the connection"),
        (lambda w, a: w.conn.close(), ConnectionLost, "closed the connection"),
    ],
)
@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_broken_reply_to_a_read_is_told(serve, reply, error, text, tcp) -> None:
    """A clear error of the right kind, soon, that names the export; the connection is closed after it."""

    def script(wire) -> None:
        wire.negotiate()
        reply(wire, wire.request())

    client = NbdClient.connect(serve(script, tcp=tcp), "vda", timeout=0.5)
    tracemalloc.start()
    began = time.monotonic()
    client.submit_read(MIB, memoryview(bytearray(64 * KIB)))
    with pytest.raises(error, match=text) as caught:
        client.wait()
    assert time.monotonic() - began < 20
    assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    tracemalloc.stop()
    assert type(caught.value) is error
    assert "on export 'vda' at" in caught.value.message
    with pytest.raises(ConnectionLost, match="the connection is closed"):
        client.submit_read(0, memoryview(bytearray(512)))
    client.close()


def test_a_server_that_takes_no_writes_is_left(serve) -> None:
    left = threading.Event()
    client = connect(serve, lambda _: left.wait(60), timeout=0.3)
    began = time.monotonic()
    with pytest.raises(TimedOut, match="write of 8388608 bytes at 0 on export 'vda'"):
        client.submit_write(0, [bytes(8 * MIB)])
    assert time.monotonic() - began < 30
    left.set()


def test_a_server_that_answers_without_end_while_it_takes_no_writes_is_left(serve) -> None:
    def script(wire) -> None:
        asked = wire.request()
        while True:
            wire.error(asked.cookie, 5, done=False)

    client = connect(serve, script, timeout=5)
    with pytest.raises(ProtocolError, match="endless pieces"):
        client.submit_write(0, [bytes(8 * MIB)])


def test_data_for_a_write_is_refused(serve) -> None:
    def script(wire) -> None:
        asked = wire.request()
        wire.receive(asked.length)
        wire.data(asked.cookie, asked.offset, b"x" * 512)

    client = connect(serve, script)
    client.submit_write(0, [bytes(512)])
    with pytest.raises(ProtocolError, match="outside the write of 512 bytes at 0"):
        client.wait()


# Block status


def test_block_status_clips_the_last_extent_and_keeps_the_contexts_apart(serve) -> None:
    def script(wire) -> None:
        a = wire.request()
        wire.status(a.cookie, 2, [(4096, 1), (4096, 0)], done=False)
        wire.status(a.cookie, 1, [(512, 0), (512, 3), (1 << 31, 2)], done=False)
        wire.chunk(a.cookie, p.CHUNK_NONE)
        a = wire.request()
        assert a.flags == p.CMD_FLAG_REQ_ONE
        wire.status(a.cookie, 1, [(4096, 0)], done=False)
        wire.status(a.cookie, 2, [(512, 1)])
        a = wire.request()
        wire.error(a.cookie, 22, b"not today")
        a = wire.request()
        wire.status(a.cookie, 1, [(5, 0)], done=False)
        wire.status(a.cookie, 2, [(0xFFFFFFFF, 0)])

    client = connect(serve, script, contexts=BOTH)
    assert client.block_status(0, 65536) == {
        p.BASE_ALLOCATION: [(512, 0), (512, 3), (64512, 2)],
        BITMAP: [(4096, 1), (4096, 0)],
    }
    assert client.block_status(0, 4096, one=True) == {p.BASE_ALLOCATION: [(4096, 0)], BITMAP: [(512, 1)]}
    with pytest.raises(RequestFailed, match=r"block status of 4096 bytes at 0 .*EINVAL.*not today"):
        client.block_status(0, 4096)
    assert client.block_status(1, 9) == {p.BASE_ALLOCATION: [(5, 0)], BITMAP: [(9, 0)]}
    client.close()


def test_a_reply_of_a_million_extents_is_cut(serve) -> None:
    """What is kept of one reply is bounded; the rest is asked for anew by the caller."""

    def script(wire) -> None:
        asked = wire.request()
        wire.status(asked.cookie, 1, [(512, 0), (512, 3)] * (1 << 19))
        asked = wire.request()
        wire.status(asked.cookie, 1, [(512, 0)] * ((1 << 20) + 1))

    client = connect(serve, script, contexts=(p.BASE_ALLOCATION,), size=1 << 40)
    extents = client.block_status(0, 1 << 31)[p.BASE_ALLOCATION]
    assert extents == [(512, 0), (512, 3)] * (64 << 10)
    with pytest.raises(ProtocolError, match="status chunk of 8388620"):
        client.block_status(0, 1 << 31)


def _statuses(*chunks: tuple[int, list[tuple[int, int]]]):
    def reply(wire, asked) -> None:
        for number, (context, extents) in enumerate(chunks, 1):
            wire.status(asked.cookie, context, extents, done=number == len(chunks))

    return reply


OTHER = (2, [(65536, 0)])


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (_statuses((1, [(65536, 0)])), f"lacks the context {BITMAP}"),
        (_statuses(OTHER), "lacks the context base:allocation"),
        (_chunk(0), "lacks the context base:allocation, qemu"),
        (lambda w, a: w.simple(a.cookie), "lacks the context"),
        (_statuses(OTHER, OTHER), "came twice"),
        (_statuses((3, [(65536, 0)])), "not agreed on"),
        (_statuses(OTHER, (1, [(0, 0)])), "an extent of no bytes"),
        (_statuses(OTHER, (1, [(512, 0), (0, 1), (512, 0)])), "an extent of no bytes"),
        (_statuses(OTHER, (1, [(65536, 0), (512, 1)])), "beyond the end"),
        (_statuses(OTHER, (1, [(65535, 0), (0xFFFFFFFF, 0), (1, 1)])), "beyond the end"),
        (_statuses(OTHER, (1, [(1, 0)] * 1000)), "below 512 bytes"),
        (_statuses(OTHER, (1, [(513, 0)])), "minimum block size of 512"),
        (_chunk(5, struct.pack(">I", 1)), "status chunk of 4 bytes"),
        (_chunk(5, bytes(15)), "status chunk of 15 bytes"),
        (_chunk(5, bytes(15), length=0xFFFFFFFC), "status chunk of 4294967292 bytes"),
        (lambda w, a: w.data(a.cookie, a.offset, bytes(512)), "outside the block status"),
    ],
)
def test_a_broken_block_status_is_told(serve, reply, text) -> None:
    client = connect(serve, lambda w: reply(w, w.request()), contexts=BOTH, block_size=(512, 512, MIB))
    with pytest.raises(ProtocolError, match=text) as caught:
        client.block_status(0, 65536)
    assert "block status of 65536 bytes at 0 on export 'vda'" in caught.value.message


@pytest.mark.parametrize("extents", [[(512, 0), (512, 1)], [(65537, 0)]])
def test_one_extent_asked_for_is_one_extent_inside_the_range(serve, extents) -> None:
    reply = _statuses((1, extents))
    client = connect(serve, lambda w: reply(w, w.request()), contexts=(p.BASE_ALLOCATION,))
    with pytest.raises(ProtocolError):
        client.block_status(0, 65536, one=True)


# The bookkeeping of pieces, without a server


@given(st.lists(st.tuples(st.integers(-3, 70), st.integers(-1, 30)), max_size=40))
def test_pieces_are_given_out_once_and_inside_only(spans) -> None:
    """Against a set of bytes: a piece is refused exactly if it is empty, outside or was given before."""
    request = Request(p.CMD_READ, 100, 64)
    request.buffer = memoryview(bytearray(64))
    got: set[int] = set()
    for start, length in spans:
        wanted = set(range(start, start + length))
        if length <= 0 or start < 0 or start + length > 64 or wanted & got:
            with pytest.raises(Fault):
                request.claim(100 + start, length)
            continue
        assert len(request.claim(100 + start, length)) == length
        got |= wanted
        assert request.covered == len(got)
