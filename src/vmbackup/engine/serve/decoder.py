"""A process that decodes runs of chunks for a server, so that the server's own interpreter is free to answer.

It is started by decoders.py with a socket and shared memory, is told all that it needs with each run, and ends when the
socket does. It has no file of the repository open and keeps nothing.
"""

import mmap
import signal
import socket
import struct
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbackup.errors import DamageError
from vmbackup.repository.chunks import SealedRun, open_sealed
from vmbackup.repository.packs import SlotOpener

# Plain bytes of a run at most: what a server reads at a time for who reads on.
MOST_PLAIN = 1 << 20
PLAIN_AT = 2 * MOST_PLAIN  # of the shared memory: what is stored lies before it, with a tag for each chunk
AREA = PLAIN_AT + MOST_PLAIN
MOST_MESSAGE = 128 << 10  # bytes: a record for each chunk, as small as they may be, and the head
READY, DONE, FAILED = b"r", b"d", b"f"

_HEAD = struct.Struct(">QIII32s32s")
_CIPHERS = 64


def encode(run: SealedRun) -> bytes:
    """A run as the process is told of it; what is stored lies at the beginning of the shared memory."""
    return _HEAD.pack(run.start, run.stored, run.chunks, run.size, run.key, run.id_key) + run.aad + run.records


def decode(message: bytes, aad_bytes: int) -> SealedRun:
    """What `encode` made a message of."""
    start, stored, chunks, size, key, id_key = _HEAD.unpack_from(message)
    aad, records = message[_HEAD.size : _HEAD.size + aad_bytes], message[_HEAD.size + aad_bytes :]
    return SealedRun("", start, stored, chunks, size, records, key, id_key, aad)


def fits(run: SealedRun) -> bool:
    """Whether a run is small enough to be handed over."""
    return run.chunks * run.size <= MOST_PLAIN and run.stored <= PLAIN_AT and len(run.records) <= MOST_MESSAGE // 2


class _Decoder:
    def __init__(self, area: memoryview) -> None:
        self._area = area
        self._openers: dict[bytes, SlotOpener] = {}
        self._ciphers: dict[bytes, AESGCM] = {}

    def decode(self, run: SealedRun) -> None:
        """Puts the plain bytes into the shared memory, each chunk authenticated and its id computed. DamageError."""
        at = PLAIN_AT
        for plain in open_sealed(run, self._area[: run.stored], self._opener(run), self._cipher(run.key)):
            self._area[at : at + run.size] = plain
            at += run.size

    def _opener(self, run: SealedRun) -> SlotOpener:
        if run.id_key not in self._openers:
            self._openers[run.id_key] = SlotOpener(run.aad, run.id_key)
        return self._openers[run.id_key]

    def _cipher(self, key: bytes) -> AESGCM:
        if key not in self._ciphers:
            if len(self._ciphers) >= _CIPHERS:
                self._ciphers.clear()
            self._ciphers[key] = AESGCM(key)
        return self._ciphers[key]


def main(sock: socket.socket, area: mmap.mmap, aad_bytes: int) -> None:
    """Until the server is gone."""
    decoder = _Decoder(memoryview(area))
    sock.send(READY)
    while message := sock.recv(MOST_MESSAGE):
        try:
            decoder.decode(decode(message, aad_bytes))
        except DamageError:  # the server reads it again by itself, and tells what is wrong
            sock.send(FAILED)
        else:
            sock.send(DONE)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the server ends first
    number, memory, length = map(int, sys.argv[1:])
    with socket.socket(fileno=number) as connected:
        main(connected, mmap.mmap(memory, AREA), length)
