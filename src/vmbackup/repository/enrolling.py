"""Enrolling writers and revoking them: a reader's work (docs/repository-format.md, section 4)."""

import contextlib
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

from vmbackup.errors import DamageError, NotFoundError, RepositoryError, UsageError
from vmbackup.repository import frames, making, points, tombstones
from vmbackup.repository.enrolments import MOST_REVOCATION
from vmbackup.repository.keyring import Keyring
from vmbackup.repository.layout import check_group
from vmbackup.repository.repository import Repository, point_place
from vmbackup.repository.tombstones import Told
from vmbackup.repository.writers import ROLES, Enrolment, WriterKey, WriterKeys
from vmbackup.storage_backends import DeleteRefused, ObjectMissing, ObjectTruncated

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def new_writer(repository: Keyring, name: str, group: str, role: str) -> WriterKeys:
    """Keys for a host, which count for nothing until they are enrolled; its group is made where there is none.

    Raises AccessError for one who is no reader, UsageError for a name that is taken or none.
    """
    reader = repository.reader
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a writer", "use a host's name: letters, digits, '-', '_' and '.'")
    if role not in ROLES:
        raise UsageError(f"there is no role '{role}'", f"use {' or '.join(ROLES)}")
    check_group(group)
    if any(name == writer.name and not writer.revoked for writer in repository.writers().values()):
        raise UsageError(
            f"there is a writer '{name}' already",
            f"take another name, or revoke it first: vmbackup key revoke-writer {name}",
        )
    try:
        keys = repository.group(group)
    except NotFoundError:
        repository.make_group(group)
        keys = repository.group(group)
    return WriterKeys(reader.realm, reader.verify_key, keys, WriterKey.generate(name, role, group))


def enrol(repository: Keyring, writer: WriterKeys) -> None:
    """From now on what it signs counts."""
    repository.put_enrolment(writer.writer.id, making.enrolment(repository.reader, writer.writer)[1])
    repository.forget_writers()


@dataclass(frozen=True)
class Revocation:
    """What was done: numbers of commits of the writer that stand, of such as stay forgotten, of such as come back."""

    writer: Enrolment
    standing: int
    forgotten: int
    undone: int


def revoke(repository: Repository, name: str, *, undo_since: float | None = None) -> Revocation:
    """Ends what a writer may. Its commits of now stand, later ones are quarantined; what it forgot stays forgotten.

    `name` is a name or an id. What it forgot from `undo_since` on (seconds since 1970, by the store's clock) comes
    back, as far as the store still has it. Doing it again ends what was begun. Raises AccessError for one who is no
    reader, NotFoundError, UsageError, RepositoryError.
    """
    reader = repository.reader
    repository.forget_writers()
    writer = _named(repository, name)
    if writer.role == "reader":
        raise UsageError(
            f"'{name}' is the key of those who open the repository with a passphrase",
            "'vmbackup key remove' takes a passphrase away, 'vmbackup key rotate' begins with new keys",
        )
    told: list[Told] = []
    forgotten, undone = set[bytes](), set[bytes]()
    if writer.standing is None:
        told = list(tombstones.told_by(repository, writer.group, writer.id))
        for one in told:
            (undone if undo_since is not None and one.stored >= undo_since else forgotten).update(one.sessions)
        undone -= forgotten
        tombstones.put_dead(repository, writer.group, forgotten - _shared(repository, writer.group, told))
        standing: dict[str, list[str]] = defaultdict(list)
        for lineage, session in _commits(repository, writer):
            standing[lineage.hex()].append(session.hex())
        document = {
            "realm": reader.realm.hex(),
            "repository": repository.config.repository.hex(),
            "writer": writer.id.hex(),
            "revoked": datetime.now(UTC).isoformat(timespec="seconds"),
            "stands": {lineage: "".join(sorted(sessions)) for lineage, sessions in standing.items()},
        }
        data = frames.sign_document(b"WRVK", document, reader.signing)
        if len(data) > MOST_REVOCATION:
            raise RepositoryError(
                f"'{name}' made more restore points than a revocation can list", "forget old ones, then prune"
            )
        repository.put_revocation(writer.id, data)  # another reader may be first: what stands is what that one saw
    held = repository.revocations(writer.id)
    if not held:
        raise next(iter(repository.unjudged()))
    _list(repository, writer.id, set(held.values()))
    repository.forget_writers()
    judged = repository.writers()[writer.id]
    _tidy(repository, told, forgotten)
    return Revocation(judged, len(judged.standing or ()), len(forgotten), len(undone))


def _named(repository: Keyring, name: str) -> Enrolment:
    found = [w for w in repository.writers().values() if name in (w.name, w.id.hex())]
    live = [w for w in found if not w.revoked]
    if not found:
        raise NotFoundError(f"there is no writer '{name}'", "'vmbackup key list' shows them")
    return live[0] if live else found[-1]


def _tidy(repository: Repository, told: list[Told], forgotten: set[bytes]) -> None:
    """Deletes the tombstones that count no more, after commits that a dead list of the reader's names."""
    for one in told:
        commits = [one.lineage.point(session) for session in one.sessions & forgotten] if one.lineage else []
        for key in (*commits, one.key):
            with contextlib.suppress(DeleteRefused):  # locked, or not with this access key: it does no harm
                repository.store.delete(key)


def _commits(repository: Repository, writer: Enrolment) -> list[tuple[bytes, bytes]]:
    """Lineage and session of all that the writer committed and that can be read."""
    found = []
    for entry in repository.store.list(f"points/{writer.group}/"):
        lineage, session = point_place(entry.key)
        with contextlib.suppress(DamageError, ObjectMissing, ObjectTruncated):
            data = repository.store.get(entry.key)
            if points.signer(data, lineage) == writer.id:
                points.decode(data, repository.group(writer.group), lineage, session, repository.writers())
                found.append((lineage.id, session))
    return found


def _shared(repository: Repository, group: str, told: list[Told]) -> set[bytes]:
    """Sessions in the trash that a dead list cannot name, for a commit of another history has the same."""
    places = {(one.lineage, session) for one in told if one.lineage for session in one.sessions}
    return {session for _, session in places - tombstones.sole(repository, group, places)}


def _list(repository: Keyring, writer: bytes, valid: set[bytes]) -> None:
    """Lists the revocation in the config: who saw that version notices where it is hidden."""
    if repository.config.revoked.get(writer) in valid:
        return
    held = min(valid)

    def add(revoked: dict[bytes, bytes]) -> list[dict[str, str]]:
        return [{"writer": w.hex(), "digest": d.hex()} for w, d in sorted({**revoked, writer: held}.items())]

    repository.change_config(lambda config: {"revoked": add(config.revoked)}, f"writer {writer.hex()} was revoked")
