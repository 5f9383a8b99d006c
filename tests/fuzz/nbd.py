"""Our NBD server, spoken to by whom it may concern: what it is told is nearly what a client says, or not at all."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import struct
import threading
from collections.abc import Iterator

from tests.fuzz.mutate import NUMBERS, mutated
from tests.unit.nbd.served import Disk, contexts, go, string
from vmbackup.nbd import protocol as p
from vmbackup.nbd.conversation import Conversation
from vmbackup.nbd.greeting import Greeting
from vmbackup.nbd.stream import Gone, PlainStream

OPTIONS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xFFFFFFFF]
SECONDS = 30.0
_DISK = Disk(random.Random(1).randbytes(1 << 20))


def converse(chance: random.Random) -> None:
    """One connection, from its first byte to its end. Raises what the server did not expect."""
    ours, theirs = socket.socketpair()
    said = mutated(chance, _words(chance), [p.NBDMAGIC, p.IHAVEOPT, p.REQUEST_MAGIC.to_bytes(4, "big")])
    talker = threading.Thread(target=_talk, args=(theirs, said if chance.random() < 0.7 else _words(chance)))
    listener = threading.Thread(target=_listen, args=(theirs,))
    stream = PlainStream(ours)
    with _failures() as failed:
        talker.start()
        listener.start()
        try:
            agreed = Greeting(stream, {"vda": _DISK, "": _DISK}).run()
            if agreed is not None:
                Conversation(agreed).run()
        except Gone:
            pass
        finally:
            stream.shutdown()
            stream.close()
            talker.join(SECONDS)
            listener.join(SECONDS)
            theirs.close()
    if talker.is_alive() or listener.is_alive():
        raise RuntimeError("a connection did not end")
    if failed:
        raise RuntimeError(failed[0])


def _words(chance: random.Random) -> bytes:
    name = chance.choice(["vda", "vda", "", "nobody"])
    said = [struct.pack(">I", chance.choice([1, 3, 3, 3]))]
    for _ in range(chance.randrange(4)):
        option = chance.choice(OPTIONS)
        data = chance.choice([b"", go(name), contexts(name, "base:allocation", "x"), string(name), chance.randbytes(9)])
        said.append(p.OPTION.pack(p.IHAVEOPT, option, len(data)) + data)
    if chance.random() < 0.7:
        said.append(p.OPTION.pack(p.IHAVEOPT, p.OPT_STRUCTURED_REPLY, 0))
        data = contexts("vda", "base:allocation")
        said.append(p.OPTION.pack(p.IHAVEOPT, p.OPT_SET_META_CONTEXT, len(data)) + data)
    data = go("vda")
    said.append(p.OPTION.pack(p.IHAVEOPT, p.OPT_GO, len(data)) + data)
    for cookie in range(chance.randrange(20)):
        command = chance.choice([0, 0, 1, 3, 4, 5, 6, 7, 7, 8, 99])
        offset = chance.choice([0, 1, 4096, 1 << 19, _DISK.size - 1, *NUMBERS]) & ((1 << 64) - 1)
        length = chance.choice([0, 1, 512, 65536, 1 << 20, *NUMBERS]) & 0xFFFFFFFF
        flags = chance.choice([0, 0, 4, 8, 0xFFFF])
        said.append(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, cookie, offset, length))
        if command == p.CMD_WRITE:
            said.append(bytes(min(length, 1 << 20)))
    return b"".join(said)


def _talk(sock: socket.socket, said: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(said)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _listen(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass


@contextlib.contextmanager
def _failures() -> Iterator[list[str]]:
    """What the server's threads log that nobody expected."""
    found: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                found.append(logging.Formatter().format(record))

    logger, keeper = logging.getLogger("vmbackup.nbd.server"), Keeper()
    logger.addHandler(keeper)
    try:
        yield found
    finally:
        logger.removeHandler(keeper)
