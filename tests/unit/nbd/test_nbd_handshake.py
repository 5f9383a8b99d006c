"""The handshake, against servers that refuse, lie, dawdle or flood."""

import struct
import time

import pytest

from vmbackup.nbd import (
    ConnectFailed,
    ConnectionLost,
    ExportMissing,
    HandshakeRefused,
    MetaContextMissing,
    NbdClient,
    ProtocolError,
    TimedOut,
)
from vmbackup.nbd import protocol as p

MIB = 1 << 20
BITMAP = "qemu:dirty-bitmap:b"


def test_all_that_the_server_told_is_there(serve) -> None:
    address = serve(lambda w: w.negotiate(contexts=(p.BASE_ALLOCATION, BITMAP), block_size=(512, 4096, MIB)))
    client = NbdClient.connect(address, "vda", contexts=[p.BASE_ALLOCATION, BITMAP])
    assert client.size == 16 * MIB
    assert client.can_multi_conn
    assert not client.read_only
    assert client.block_size == (512, 4096, MIB)
    assert client.max_request == MIB
    assert client.contexts == (p.BASE_ALLOCATION, BITMAP)
    client.close()


def test_the_whole_handshake_is_said_at_once(serve) -> None:
    """A server that does not say a word before it has heard all of it."""
    options = []

    def script(wire) -> None:
        assert wire.receive(4) == b"\0\0\0\1"
        options.extend(wire.option()[0] for _ in range(3))
        wire.send(b"NBDMAGICIHAVEOPT\0\3")
        wire.answer(p.OPT_STRUCTURED_REPLY, p.REP_ACK)
        wire.answer(CONTEXT, p.REP_META_CONTEXT, b"\0\0\0\1" + BITMAP.encode())
        wire.answer(CONTEXT, p.REP_ACK)
        wire.answer(GO, p.REP_INFO, SIZE)
        wire.answer(GO, p.REP_ACK)

    for tcp in (False, True):
        client = NbdClient.connect(serve(script, tcp=tcp), "vda", contexts=[BITMAP], timeout=2, at_once=True)
        assert (client.size, client.contexts) == (MIB, (BITMAP,))
        client.close()
    assert options == [p.OPT_STRUCTURED_REPLY, CONTEXT, GO] * 2


def test_tcp_works_too(serve) -> None:
    client = NbdClient.connect(serve(lambda w: w.negotiate(flags=3), tcp=True), "")
    assert client.read_only
    client.close()


def test_without_block_sizes_the_defaults_of_the_specification_hold(serve) -> None:
    client = NbdClient.connect(serve(lambda w: w.negotiate()), "")
    assert client.block_size == (1, 4096, 32 * MIB)
    client.close()


@pytest.mark.parametrize("address", ["/nonexistent/socket", ("127.0.0.1", 1), "/\0"])
def test_nobody_listens(address) -> None:
    with pytest.raises(ConnectFailed, match="opening export 'vda' at"):
        NbdClient.connect(address, "vda", timeout=2)


def _greeted_with(data: bytes):
    return lambda w: w.send(data)


def _option_answered(*replies: tuple[int, int, bytes]):
    """Answers the structured reply option as it should be, and the next one by the replies."""

    def script(wire) -> None:
        wire.structured()
        wire.option()
        for option, kind, data in replies:
            wire.answer(option, kind, data)

    return script


def _endless(option: int, kind: int, data: bytes):
    def script(wire) -> None:
        wire.structured()
        while wire.option()[0] != option:
            pass
        while True:
            wire.answer(option, kind, data)

    return script


def _endless_contexts(wire) -> None:
    wire.structured()
    wire.option()
    number = 0
    while True:
        number += 1
        wire.answer(p.OPT_SET_META_CONTEXT, p.REP_META_CONTEXT, struct.pack(">I", number) + b"base:allocation")


def _drip(wire) -> None:
    for byte in b"NBDMAGICIHAVEOPT\0\3" * 100:
        wire.send(bytes([byte]))
        time.sleep(0.05)


def _refuses_structured(wire) -> None:
    wire.greet()
    wire.option()
    wire.answer(p.OPT_STRUCTURED_REPLY, p.REP_ERR_UNSUP, b"no\x1b[31m\nway")


def _huge_reply(wire) -> None:
    wire.greet()
    wire.option()
    wire.send(p.OPTION_REPLY.pack(p.OPTION_REPLY_MAGIC, p.OPT_STRUCTURED_REPLY, p.REP_ACK, 0xFFFFFFFF))


def _wrong_reply_magic(wire) -> None:
    wire.greet()
    wire.option()
    wire.send(p.OPTION_REPLY.pack(1, p.OPT_STRUCTURED_REPLY, p.REP_ACK, 0))


def _leaves(wire) -> None:
    wire.greet()
    wire.conn.close()


def _leaves_at_once(wire) -> None:
    wire.conn.close()


GO, CONTEXT = p.OPT_GO, p.OPT_SET_META_CONTEXT
SIZE = p.EXPORT_INFO.pack(0, MIB, 1)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (_greeted_with(b"HTTP/1.1 400 Bad Request\r\n"), ProtocolError, "no NBD server"),
        (_greeted_with(b"NBDMAGIC" + p.OLDSTYLE_MAGIC + bytes(200)), HandshakeRefused, "oldstyle"),
        (_greeted_with(b"NBDMAGIC" + bytes(200)), ProtocolError, "unknown style"),
        (_greeted_with(b"NBDMAGICIHAVEOPT\0\2"), HandshakeRefused, "fixed newstyle"),
        (_greeted_with(b""), TimedOut, "within 0.5 s"),
        (_greeted_with(b"NBD"), TimedOut, "within 0.5 s"),
        (_drip, TimedOut, "within 0.5 s"),
        (_leaves, ConnectionLost, "closed the connection|broke"),
        (_leaves_at_once, ConnectionLost, "closed the connection|broke"),
        (_refuses_structured, HandshakeRefused, r"structured replies: not supported \(no \[31m way\)"),
        (_huge_reply, ProtocolError, "option reply of 4294967295 bytes"),
        (_wrong_reply_magic, ProtocolError, "wrong magic"),
        (_option_answered((GO, p.REP_ERR_UNKNOWN, b"who?")), ExportMissing, r"no such export \(who\?\)"),
        (_option_answered((GO, p.REP_ERR_TLS_REQD, b"")), HandshakeRefused, "insists on TLS"),
        (_option_answered((GO, p.REP_ERR_SHUTDOWN, b"")), ConnectionLost, "shutting down"),
        (_option_answered((GO, p.REP_ERROR_BIT + 77, b"")), HandshakeRefused, "error 77"),
        (_option_answered((8, p.REP_ACK, b"")), ProtocolError, "wrong magic or option"),
        (_option_answered((GO, p.REP_ACK, b"")), ProtocolError, "size was not told"),
        (_option_answered((GO, 99, b"xyz")), ProtocolError, "type 99"),
        (_option_answered((GO, p.REP_INFO, b"\0")), ProtocolError, "1 bytes"),
        (_option_answered((GO, p.REP_INFO, SIZE + b"x")), ProtocolError, "export information"),
        (_option_answered((GO, p.REP_INFO, p.EXPORT_INFO.pack(0, 1 << 63, 1))), ProtocolError, "export of"),
        (_option_answered((GO, p.REP_INFO, p.EXPORT_INFO.pack(0, MIB, 0))), ProtocolError, "HAS_FLAGS"),
        (_option_answered((GO, p.REP_INFO, p.BLOCK_SIZE_INFO.pack(3, 3, 8, 8))), ProtocolError, "block sizes"),
        (_option_answered((GO, p.REP_INFO, p.BLOCK_SIZE_INFO.pack(3, 512, 8, 8))), ProtocolError, "block sizes"),
        (_option_answered((GO, p.REP_INFO, b"\0\3xx")), ProtocolError, "block size information"),
        (_endless(GO, p.REP_INFO, b"\0\1name"), ProtocolError, "endless"),
        (_endless(GO, p.REP_INFO, SIZE), ProtocolError, "endless"),
    ],
)
def test_what_the_server_gets_wrong_is_told(serve, script, error, text, at_once) -> None:
    """A clear error of the right kind, soon, that names the export."""
    began = time.monotonic()
    with pytest.raises(error, match=text) as caught:
        NbdClient.connect(serve(script), "vda", timeout=0.5, at_once=at_once)
    assert type(caught.value) is error
    assert "opening export 'vda' at" in caught.value.message
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        (_option_answered((CONTEXT, p.REP_ACK, b"")), MetaContextMissing, f"does not offer {BITMAP}"),
        (_option_answered((CONTEXT, p.REP_ERR_UNSUP, b"")), HandshakeRefused, "meta contexts: not supported"),
        (_option_answered((CONTEXT, p.REP_ERR_UNKNOWN, b"")), ExportMissing, "no such export"),
        (_option_answered((CONTEXT, p.REP_META_CONTEXT, b"\0\0\0\1other")), ProtocolError, "not asked for"),
        (_option_answered((CONTEXT, p.REP_META_CONTEXT, b"\0\0\0\1")), ProtocolError, "of type 4 and 4"),
        (
            _option_answered(*[(CONTEXT, p.REP_META_CONTEXT, b"\0\0\0\1" + BITMAP.encode())] * 2),
            ProtocolError,
            "came twice",
        ),
        (_endless_contexts, ProtocolError, "not asked for"),
        (_endless(CONTEXT, p.REP_INFO, b"xyz"), ProtocolError, "type 3"),
    ],
)
def test_every_context_asked_for_must_come_back(serve, script, error, text, at_once) -> None:
    """An absent bitmap never means clean: a context that is left out is an error."""
    with pytest.raises(error, match=text) as caught:
        NbdClient.connect(serve(script), "vda", contexts=[BITMAP], timeout=0.5, at_once=at_once)
    if error is MetaContextMissing:
        assert caught.value.missing == (BITMAP,)


def test_names_longer_than_the_protocol_allows_are_not_sent(serve) -> None:
    with pytest.raises(ValueError, match="4097 bytes"):
        NbdClient.connect(serve(lambda w: w.greet()), "x" * 4097)


def test_a_server_that_takes_nothing_is_left(serve) -> None:
    """A handshake that is greeted in drips of whole options ends by the one deadline over all of it."""

    def script(wire) -> None:
        wire.structured()
        wire.option()
        for _ in range(1200):
            wire.answer(GO, p.REP_INFO, b"\0\1name")
            time.sleep(0.05)

    began = time.monotonic()
    with pytest.raises(TimedOut):
        NbdClient.connect(serve(script), "vda", timeout=0.4)
    assert time.monotonic() - began < 20
