"""What was forgotten: trash and dead lists, signed (docs/repository-format.md, section 11)."""

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidSignature

from vmbackup.errors import DamageError, RepositoryError
from vmbackup.repository import frames
from vmbackup.repository.layout import SESSION_BYTES, Lineage
from vmbackup.storage_backends import ObjectExists, ObjectMissing

if TYPE_CHECKING:
    from vmbackup.repository.repository import Repository

# Sessions of one dead list: 1 MiB.
DEAD_MOST = 65536
# Bounds of the objects, generous.
_TRASH_BYTES = 1 << 10
_DEAD_BYTES = DEAD_MOST * SESSION_BYTES + _TRASH_BYTES
_COUNT = struct.Struct(">I")
_SIGNATURE = 64
_SIGNER = 8
_CONTEXT = b"vmbackup tombstone\0"


class RevokedSignerError(DamageError):
    """Whoever signed it was revoked since: it counts for nothing, and is no damage."""


def forget(repository: "Repository", lineage: Lineage, session: bytes) -> None:
    """Forgets a session for good (rule F1); it may be forgotten already. Raises AccessError, RepositoryError."""
    repository.check_may_collect(lineage.group)
    key = lineage.trash(session)
    with contextlib.suppress(ObjectExists):  # another pruner's signature makes other bytes, and counts as well
        repository.store.put(key, _signed(repository, _head(b"TRSH", lineage.group) + lineage.id + session))
        return
    if (lineage, session) in trashed(repository, lineage.group, lineage):
        return
    if not sole(repository, lineage.group, [(lineage, session)]):  # what is in its place counts for nothing
        raise RepositoryError(
            f"{key} is occupied by what somebody else put there, and a point of another history has the same session",
            f"delete {key} with an access key that may, then forget it again",
        )
    put_dead(repository, lineage.group, [session])


def put_dead(repository: "Repository", group: str, sessions: Iterable[bytes]) -> None:
    """One list of sessions whose trash may go then."""
    ids = sorted(sessions)
    for start in range(0, len(ids), DEAD_MOST):
        part = ids[start : start + DEAD_MOST]
        body = _head(b"DEAD", group) + _COUNT.pack(len(part)) + b"".join(part)
        repository.store.put(f"dead/{group}/{os.urandom(16).hex()}", _signed(repository, body))


def trashed(repository: "Repository", group: str, lineage: Lineage | None = None) -> set[tuple[Lineage, bytes]]:
    """The sessions of a group, or of one history, that a valid trash names: a session of another history is another."""
    prefix = lineage.prefix("trash") if lineage else f"trash/{group}/"
    return {
        (Lineage(group, body[: Lineage.BYTES]), body[Lineage.BYTES :])
        for body in _valid(repository, b"TRSH", group, prefix, _TRASH_BYTES)
    }


def sole(
    repository: "Repository", group: str, forgotten: Iterable[tuple[Lineage, bytes]]
) -> set[tuple[Lineage, bytes]]:
    """Those that a dead list may name: it knows no histories, and no other one has a commit of that session.

    No two runs have one session, but a stolen writer can commit in one history under the session of another's point.
    """
    wanted = set(forgotten)
    sessions = {session for _, session in wanted}
    others = set()
    for entry in repository.store.list(f"points/{group}/") if wanted else ():
        _, _, lineage, name = entry.key.split("/")
        place = Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(name)
        if place[1] in sessions and place not in wanted:
            others.add(place[1])
    return {place for place in wanted if place[1] not in others}


def dead(repository: "Repository", group: str) -> set[bytes]:
    """The sessions that valid dead lists of a group name."""
    found: set[bytes] = set()
    for body in _valid(repository, b"DEAD", group, f"dead/{group}/", _DEAD_BYTES):
        found |= _ids(body)
    return found


def _ids(body: bytes) -> set[bytes]:
    """The sessions of a dead list."""
    return {body[at : at + SESSION_BYTES] for at in range(_COUNT.size, len(body), SESSION_BYTES)}


def bury(repository: "Repository", group: str) -> dict[tuple[Lineage, bytes], bool]:
    """Puts what is in the trash on a dead list, as far as one may name it; gives all of it, and whether each may go.

    Without the list a late commit would revive what has no trash any more.
    """
    trash = trashed(repository, group)
    named = sole(repository, group, trash)
    put_dead(repository, group, {session for _, session in named} - dead(repository, group))
    return {place: place in named for place in trash}


class Told(NamedTuple):
    """A tombstone that counts: its object, its age by the store (seconds since 1970), what it forgets, and where."""

    key: str
    stored: float
    sessions: set[bytes]
    lineage: Lineage | None


def told_by(repository: "Repository", group: str, signer: bytes) -> Iterator[Told]:
    """The trash and the dead lists of a group that one writer signed."""
    for kind, folder, most in ((b"TRSH", "trash", _TRASH_BYTES), (b"DEAD", "dead", _DEAD_BYTES)):
        for entry in repository.store.list(f"{folder}/{group}/"):
            if entry.size > most:
                continue
            with contextlib.suppress(DamageError, ObjectMissing):
                writer, body = check(repository, kind, group, entry.key)
                if writer == signer and kind == b"TRSH":
                    place = Lineage(group, body[: Lineage.BYTES])
                    yield Told(entry.key, entry.modified, {body[Lineage.BYTES :]}, place)
                elif writer == signer:
                    yield Told(entry.key, entry.modified, _ids(body), None)


def check(repository: "Repository", kind: bytes, group: str, key: str) -> tuple[bytes, bytes]:
    """The signer of a trash (`TRSH`) or a dead list (`DEAD`) that counts, and what it says, after its head.

    Raises DamageError where it does not count, ObjectMissing, RepositoryError (newer).
    """
    signer, body = _opened(repository, kind, group, key)
    if kind == b"TRSH":
        session = body[Lineage.BYTES :]
        sound = len(session) == SESSION_BYTES and key == Lineage(group, body[: Lineage.BYTES]).trash(session)
    else:
        sound = len(body) >= _COUNT.size and len(body) == _COUNT.size + _COUNT.unpack_from(body)[0] * SESSION_BYTES
    if not sound:
        raise DamageError(f"{key} does not belong where it lies", object_key=key)
    return signer, body


def _valid(repository: "Repository", kind: bytes, group: str, prefix: str, most: int) -> Iterator[bytes]:
    """What the objects say that count; the others are left out."""
    for entry in repository.store.list(prefix):
        if entry.size <= most:
            with contextlib.suppress(DamageError, ObjectMissing):
                yield check(repository, kind, group, entry.key)[1]


def _head(kind: bytes, group: str) -> bytes:
    return frames.preamble(kind) + bytes((len(group),)) + group.encode()


def _bound(repository: "Repository") -> bytes:
    """Signed with it: a replica's tombstones count for nothing in another repository of its realm."""
    return _CONTEXT + repository.config.realm + repository.config.repository


def _signed(repository: "Repository", body: bytes) -> bytes:
    writer = repository.writer
    data = body + writer.id
    return data + writer.private.sign(_bound(repository) + data)


def _opened(repository: "Repository", kind: bytes, group: str, key: str) -> tuple[bytes, bytes]:
    """The signer, and what lies between head and signer. Raises DamageError, ObjectMissing, RepositoryError (newer)."""
    data = repository.store.get(key)
    frames.check_preamble(data, kind, key)
    head = _head(kind, group)
    end = len(data) - _SIGNATURE
    writer = repository.writers().get(data[end - _SIGNER : end])
    entitled = writer is not None and writer.may_collect(group)
    if not data.startswith(head) or end - _SIGNER < len(head) or writer is None or not entitled:
        raise DamageError(f"{key} was signed by nobody who may forget there", object_key=key)
    try:
        writer.public.verify(data[end:], _bound(repository) + data[:end])
    except InvalidSignature as error:
        raise DamageError(f"{key} is damaged: its signature does not hold", object_key=key) from error
    if writer.revoked:
        raise RevokedSignerError(f"{key} was signed by a writer that is revoked", object_key=key)
    return writer.id, data[len(head) : end - _SIGNER]
