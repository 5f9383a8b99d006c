"""Hooks: one chunk id in 64, by which the group finds a session's packs (docs/repository-format.md, section 7)."""

import struct
from collections.abc import Iterable, Iterator

from vmbackup.errors import DamageError
from vmbackup.repository import frames
from vmbackup.repository.crypto import GroupKeys, seal, unseal

# A chunk id whose first byte is below this is a hook: one in 64.
HOOK = 4
# So much of an id is kept: of the hooks of 100 TiB two are equal by chance once in some 800 repositories.
HOOK_BYTES = 8
# A session of fewer hooks, some 64 MiB of the disk, is not worth a request to store them and one to fetch them.
LEAST = 16
# What is more is left out, and costs storage: this is a session of 7 TiB.
MAX_HOOKS = 16 << 20

_PACK = struct.Struct(">II")


def select(ids: Iterable[bytes]) -> bytes:
    """The hooks among the chunk ids of a pack, HOOK_BYTES each."""
    return b"".join([chunk_id[:HOOK_BYTES] for chunk_id in ids if chunk_id[0] < HOOK])


def encode(keys: GroupKeys, session: bytes, number: int, hooks: dict[int, bytes]) -> bytes:
    """An index part that holds the hooks of packs, by the packs' numbers, and nothing else."""
    body = bytearray()
    for pack, found in hooks.items():
        if len(body) + _PACK.size + len(found) > MAX_HOOKS:
            break
        body += _PACK.pack(pack, len(found) // HOOK_BYTES) + found
    head = frames.preamble(b"IDXH", keys.current)
    return head + seal(keys.derive(keys.current, "hooks", session, number), head, bytes(body))


def decode(data: bytes, keys: GroupKeys, session: bytes, number: int, name: str) -> dict[int, bytes]:
    """The hooks of packs out of such a part. Raises DamageError."""
    key_number = frames.check_preamble(data, b"IDXH", name)
    key = keys.derive(key_number, "hooks", session, number, name)
    return dict(_rows(unseal(key, data[: frames.PREAMBLE.size], data[frames.PREAMBLE.size :], name), name))


def _rows(body: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(body):
        if at + _PACK.size > len(body):
            raise DamageError(f"{name} is malformed", object_key=name)
        pack, count = _PACK.unpack_from(body, at)
        end = at + _PACK.size + count * HOOK_BYTES
        if end > len(body):
            raise DamageError(f"{name} is malformed", object_key=name)
        yield pack, body[at + _PACK.size : end]
        at = end
