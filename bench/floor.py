"""What decoding a disk costs whoever does it: zstd, AES-GCM and BLAKE3 alone, on chunks of a raw image."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

CHUNK = 64 << 10
CHUNKS = 4096       # with data, spread over the image
LEVEL = 1           # as backups have it
TAG = 16
KEY, NONCE, ZEROS = bytes(32), bytes(12), bytes(CHUNK)


def floor(raw: Path) -> dict[str, float]:
    """Seconds of processor time for a GB of plain data, by what is done; the best of three."""
    plain = _sample(raw)
    cipher, compress = AESGCM(KEY), zstandard.ZstdCompressor(level=LEVEL).compress
    decompress = zstandard.ZstdDecompressor().decompress
    stored = [min(compress(chunk), chunk, key=len) for chunk in plain]
    frames = [one for one, chunk in zip(stored, plain, strict=True) if len(one) < len(chunk)]
    sealed = [cipher.encrypt(NONCE, one, None) for one in stored]
    room = memoryview(bytearray(CHUNK))
    steps: dict[str, Callable[[], object]] = {
        "zstd": lambda: [len(decompress(frame)) for frame in frames],
        "AES-GCM": lambda: [cipher.decrypt_into(NONCE, one, None, room[: len(one) - TAG]) for one in sealed],
        "BLAKE3": lambda: [blake3(chunk, key=KEY).digest() for chunk in plain],
    }
    return {name: min(_seconds(step) for _ in range(3)) / (len(plain) * CHUNK / 1e9) for name, step in steps.items()}


def _sample(raw: Path) -> list[bytes]:
    with raw.open("rb") as file:
        places = range(0, raw.stat().st_size, CHUNK)
        found: list[bytes] = []
        for place in places[:: max(1, len(places) // (2 * CHUNKS))]:
            file.seek(place)
            chunk = file.read(CHUNK)
            if len(chunk) == CHUNK and chunk != ZEROS:
                found.append(chunk)
    return found[:CHUNKS]


def _seconds(step: Callable[[], object]) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started
