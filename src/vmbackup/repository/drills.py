"""What drills saw: that a restore point booted, or not, signed by a reader (docs/repository-format.md, section 15).

A record is told, and nothing depends on it: one that is lost, damaged or forged costs the memory of a drill.
"""

import contextlib
import struct
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature

from vmbackup.errors import AccessError, DamageError, RepositoryError
from vmbackup.repository import frames, shapes
from vmbackup.repository.cache import Cache
from vmbackup.repository.crypto import seal, unseal
from vmbackup.repository.layout import Lineage, new_session
from vmbackup.repository.pointcache import PointCache
from vmbackup.repository.points import Verify, verify_signature
from vmbackup.storage_backends import DeleteRefused, Entry, ObjectMissing, ObjectTruncated

if TYPE_CHECKING:
    from vmbackup.repository.points import Point
    from vmbackup.repository.repository import Repository

MOST_BYTES = 32 << 10
MOST_CHECKS = 50
_NAME, _TEXT = 80, 500  # characters of a name, of a sentence: with all of them far below MOST_BYTES
_SIGNATURE, _SIGNER = 64, 8
_LENGTH = struct.Struct(">I")
_CONTEXT = b"vmbackup drill\0"
_SHAPE = {
    "time": str,
    "success": bool,
    "boot_seconds": shapes.Maybe(float),
    "duration_seconds": float,
    "host": str,
    "checks": [{"name": str, "success": bool}],
    "problem": shapes.Maybe(str),
}


@dataclass(frozen=True)
class Seen:
    """What a drill saw. `time`: when it ended, aware; `checks`: names, and whether each held; `problem`: a sentence.

    `boot_seconds`: from its start to the guest's answer, None where none came. Nothing of the guest's own output
    stands here: it goes with the restore point.
    """

    time: datetime
    success: bool
    boot_seconds: float | None
    duration_seconds: float
    host: str
    checks: tuple[tuple[str, bool], ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Drill:
    """A record that counts: of the restore point that session `session` of the history made."""

    key: str
    lineage: Lineage
    session: bytes
    seen: Seen

    @property
    def place(self) -> tuple[Lineage, bytes]:
        """Which restore point it is of."""
        return self.lineage, self.session

    @property
    def order(self) -> tuple[datetime, str]:
        """By what the newest is told."""
        return self.seen.time, self.key


def record(repository: "Repository", point: "Point", seen: Seen) -> Drill:
    """Stores what a drill of that point saw, and drops older records of it that nobody asks for. Raises AccessError."""
    repository.check_may_read()
    drill = new_session()
    key = f"{point.lineage.prefix('drills', point.session)}{drill.hex()}"
    data = _encode(repository, point.lineage, point.session, drill, seen)
    repository.store.put(key, data)
    made = Drill(key, point.lineage, point.session, seen)
    older = [known for known in of_history(repository, point.lineage) if known.place == made.place]
    for spent in superseded([*older, made]):
        with contextlib.suppress(DeleteRefused):  # a prune does it, with an access key that may
            repository.store.delete(spent)
    return made


def every(repository: "Repository") -> list[Drill]:
    """All that count and that this key sees, newest first."""
    return _read(repository, repository.seen("drills"))


def of_history(repository: "Repository", lineage: Lineage) -> list[Drill]:
    """Those of a guest's history, newest first."""
    return _read(repository, lineage.prefix("drills"))


def superseded(drills: Iterable[Drill]) -> set[str]:
    """The keys of records that are neither the newest of their restore point nor its newest success."""
    by_point: dict[tuple[Lineage, bytes], list[Drill]] = defaultdict(list)
    for drill in drills:
        by_point[drill.place].append(drill)
    kept = {known.key for found in by_point.values() for known in _newest(found)}
    return {drill.key for found in by_point.values() for drill in found} - kept


def collect(
    repository: "Repository", listed: Collection[Entry], points: Collection[tuple[Lineage, bytes]]
) -> None:
    """Deletes what nobody asks for of records that were listed before the `points` were read, all that there are.

    Of a history that has points its newest record and its newest success stay, though the point they are of is gone.
    """
    found, garbage = _decoded(repository, listed)
    alive = {lineage for lineage, _ in points}
    mine = [drill for drill in found if drill.lineage in alive]
    stay = {drill.key for drill in mine if drill.place in points} - superseded(mine)
    for lineage in alive:
        stay |= {drill.key for drill in _newest([d for d in mine if d.lineage == lineage])}
    for key in [*garbage, *({drill.key for drill in found} - stay)]:
        with contextlib.suppress(DeleteRefused):
            repository.store.delete(key)


def _newest(drills: Collection[Drill]) -> list[Drill]:
    """The newest, and the newest success."""
    good = [drill for drill in drills if drill.seen.success]
    return [max(some, key=lambda drill: drill.order) for some in (drills, good) if some]


def _read(repository: "Repository", prefix: str) -> list[Drill]:
    known = PointCache(repository.cache, repository.writer.private)
    found, listed = [], set()
    for entry in repository.store.list(prefix):
        listed.add(entry.key)
        with contextlib.suppress(DamageError, AccessError, RepositoryError, ObjectMissing, ObjectTruncated):
            found.append(_fetched(repository, entry, known))
    known.close(prefix, listed)
    return sorted(found, key=lambda drill: drill.order, reverse=True)


def _decoded(repository: "Repository", listed: Iterable[Entry]) -> tuple[list[Drill], list[str]]:
    """The records that count, and the keys of what can count nowhere: not those of a newer version, or another key."""
    known = PointCache(Cache(), repository.writer.private)
    found, garbage = [], []
    for entry in listed:
        try:
            found.append(_fetched(repository, entry, known))
        except DamageError:
            garbage.append(entry.key)
        except (AccessError, RepositoryError, ObjectMissing, ObjectTruncated):
            continue
    return found, garbage


def _fetched(repository: "Repository", entry: Entry, known: PointCache) -> Drill:
    if entry.size > MOST_BYTES:
        raise DamageError(f"{entry.key} is too large", object_key=entry.key)
    return known.get(
        entry, repository.store.get, lambda data, verify: _decode(repository, data, entry.key, verify)
    )


def _head(key_number: int, lineage: Lineage, session: bytes, drill: bytes, writer: bytes) -> bytes:
    group = lineage.group.encode()
    return frames.preamble(b"DRIL", key_number) + bytes((len(group),)) + group + lineage.id + session + drill + writer


def _encode(repository: "Repository", lineage: Lineage, session: bytes, drill: bytes, seen: Seen) -> bytes:
    writer, keys = repository.writer, repository.group(lineage.group)
    head = _head(keys.current, lineage, session, drill, writer.id)
    sealed = seal(keys.derive(keys.current, "drill", drill), head, frames.canonical(_document(seen)))
    data = head + _LENGTH.pack(len(sealed)) + sealed
    return data + writer.private.sign(_bound(repository) + data)


def _document(seen: Seen) -> dict[str, Any]:
    return {
        "time": seen.time.isoformat(),
        "success": seen.success,
        "boot_seconds": seen.boot_seconds,
        "duration_seconds": seen.duration_seconds,
        "host": _cut(seen.host, _NAME),
        "checks": [{"name": _cut(name, _NAME), "success": good} for name, good in seen.checks[:MOST_CHECKS]],
        "problem": None if seen.problem is None else _cut(seen.problem, _TEXT),
    }


def _cut(text: str, most: int) -> str:
    """As much of it as may stand there; halves of characters, which no JSON may hold, become question marks."""
    return text[:most].encode("utf-8", "replace").decode()


def _bound(repository: "Repository") -> bytes:
    """Signed with it: a drill of a replica says nothing of another repository of its realm."""
    return _CONTEXT + repository.config.realm + repository.config.repository


def _decode(repository: "Repository", data: bytes, key: str, verify: Verify = verify_signature) -> Drill:
    """A record whose place and signature hold. Raises DamageError, AccessError, RepositoryError (newer)."""
    number = frames.check_preamble(data, b"DRIL", key)
    _, group, lineage_id, name = key.split("/")
    lineage, (session, drill) = Lineage(group, bytes.fromhex(lineage_id)), map(bytes.fromhex, name.split("-"))
    size = len(_head(0, lineage, session, drill, bytes(_SIGNER)))
    writer = data[size - _SIGNER : size]
    if data[:size] != _head(number, lineage, session, drill, writer):
        raise DamageError(f"{key} does not belong where it lies", object_key=key)
    _check_signature(repository, data, writer, key, verify)
    sealed = data[size + _LENGTH.size : -_SIGNATURE]
    if _LENGTH.pack(len(sealed)) != data[size : size + _LENGTH.size]:
        raise DamageError(f"{key} is malformed", object_key=key)
    secret = repository.group(group).derive(number, "drill", drill, name=key)
    document = frames.parse(unseal(secret, data[:size], sealed, key), key)
    return Drill(key, lineage, session, _seen(document, key))


def _check_signature(repository: "Repository", data: bytes, signer: bytes, key: str, verify: Verify) -> None:
    """Only a reader's counts: nobody else can have booted what is stored."""
    writer = repository.writers_with(signer).get(signer)
    if writer is None or writer.role != "reader" or writer.revoked:
        raise DamageError(f"{key} was signed by nobody who may read", object_key=key)
    try:
        verify(writer.public, data[-_SIGNATURE:], _bound(repository) + data[:-_SIGNATURE])
    except InvalidSignature as error:
        raise DamageError(f"{key} is damaged: its signature does not hold", object_key=key) from error


def _seen(document: dict[str, Any], key: str) -> Seen:
    shapes.check(document, _SHAPE, key)
    with frames.reading(key):
        time = datetime.fromisoformat(document["time"])
    if time.tzinfo is None or not 1970 <= time.year <= 9998:
        raise DamageError(f"{key} has no time that can be", object_key=key)
    checks = tuple((check["name"], check["success"]) for check in document["checks"])
    numbers = document["boot_seconds"], document["duration_seconds"]
    return Seen(time, document["success"], *numbers, document["host"], checks, document["problem"])


