"""What every object begins with, and documents signed by the realm (docs/repository-format.md, 1 and 4)."""

import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vmbackup.errors import DamageError, RepositoryError

MAGIC = b"vmbackup"
VERSION = 1
PREAMBLE = struct.Struct(">8s4sHH")
MAX_DOCUMENT = 1 << 20  # bytes; a config with hundreds of epochs takes 300 KiB
LENGTH = struct.Struct(">I")
SIGNATURE = 64
_CONTEXT = b"vmbackup signed document\0"


def preamble(kind: bytes, key_number: int = 0) -> bytes:
    """The 16 bytes that begin an object of type `kind` (4 ASCII letters)."""
    return PREAMBLE.pack(MAGIC, kind, VERSION, key_number)


def check_preamble(data: bytes, kind: bytes, name: str) -> int:
    """The number of the id key that an object's preamble names. Raises DamageError, RepositoryError."""
    if len(data) < PREAMBLE.size:
        raise DamageError(f"{name} is cut: {len(data)} bytes", object_key=name)
    magic, found, version, key_number = PREAMBLE.unpack_from(data)
    if magic != MAGIC or found != kind:
        raise DamageError(f"{name} is no {kind.decode()} object", object_key=name)
    if version > VERSION:
        raise RepositoryError(
            f"{name} was written by a newer version of vmbackup (format {version}, this one knows {VERSION})",
            "upgrade vmbackup on this host",
        )
    return int(key_number)


def canonical(document: object) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object out of authenticated bytes. Raises DamageError."""
    try:
        document = json.loads(data)
        if b"\\u" in data:
            canonical(document)  # halves of a character, which no text may hold
    except (ValueError, RecursionError) as error:
        raise DamageError(f"{name} holds no valid JSON", object_key=name) from error
    if not isinstance(document, dict):
        raise DamageError(f"{name} holds no JSON object", object_key=name)
    return document


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Around what makes values of a document of the realm: DamageError where it lacks what it must have."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamageError(f"{name} lacks what it must have", object_key=name) from error


def sign_document(kind: bytes, document: object, key: Ed25519PrivateKey) -> bytes:
    """A whole signed object."""
    body = canonical(document)
    head = preamble(kind) + LENGTH.pack(len(body)) + body
    return head + key.sign(_CONTEXT + head)


def open_document(
    data: bytes, kind: bytes, name: str, key: Ed25519PublicKey, most: int = MAX_DOCUMENT
) -> dict[str, Any]:
    """The document of a signed object, of `most` bytes, whose signature holds. Raises DamageError, RepositoryError.

    A newer version is believed to be one if it is signed at its end, as all are: anybody could put it there else.
    """
    try:
        check_preamble(data, kind, name)
    except RepositoryError:
        _check_signature(data[:-SIGNATURE], data[-SIGNATURE:], name, key)
        raise
    start = PREAMBLE.size + LENGTH.size
    if len(data) < start:
        raise DamageError(f"{name} is cut: {len(data)} bytes", object_key=name)
    (length,) = LENGTH.unpack_from(data, PREAMBLE.size)
    if length > most or len(data) != start + length + SIGNATURE:
        raise DamageError(f"{name} has the wrong length", object_key=name)
    _check_signature(data[: start + length], data[start + length :], name, key)
    return parse(data[start : start + length], name)


def _check_signature(signed: bytes, signature: bytes, name: str, key: Ed25519PublicKey) -> None:
    try:
        key.verify(signature, _CONTEXT + signed)
    except InvalidSignature as error:
        raise DamageError(f"{name} is not signed by this repository's key", object_key=name) from error
