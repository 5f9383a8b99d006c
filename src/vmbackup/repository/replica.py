"""A replica: another repository of the same realm, with the same keys (docs/repository-format.md, section 4)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import DamageError, RepositoryError
from vmbackup.repository import enrolling, frames, keys, residency
from vmbackup.repository.catalog import fetch
from vmbackup.repository.enrolments import REVOKED, writer_of
from vmbackup.repository.keys import Secret
from vmbackup.repository.opening import RepositoryConfig
from vmbackup.repository.repository import Repository, put_first, refuse_occupied
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import DeleteRefused, ObjectExists, Store

# What the realm signed for all of its repositories, verbatim.
_SHARED = ("groups/", "writers/", "envelopes/")


def make_replica(
    source: Repository, store: Store, secret: Secret, trust: Trust, label: str, object_lock_days: int | None = None
) -> Repository:
    """Makes a replica of `source` in an empty place. All that opens the source opens it, and so does `secret`.

    Raises AccessError for one who is no reader, RepositoryError where the place is taken, DamageError.
    """
    reader = source.reader
    refuse_occupied(store)
    residency.check(source.config.allowed_endpoints, store.place)
    shared = {key: data for key, data in _signed(source) if REVOKED not in key}
    slots = {slot: fetch(source.store, f"keys/{slot}") for slot in _slots(source)}
    own = _opened_by(slots, secret)
    if own is None:
        own, data = keys.wrap(reader, secret, label)
        slots[own] = data
    document: dict[str, Any] = {
        **source.config.document,
        "repository": os.urandom(16).hex(),
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "replica_of": source.config.repository.hex(),
        "object_lock_days": object_lock_days,
        "slots": sorted(slots),
        "revoked": [],
        "skipped": [],
    }
    made = Repository(store, reader, RepositoryConfig.from_document(document), trust)
    put_first(made.store, shared)
    for slot, data in slots.items():
        made.store.put(f"keys/{slot}", data)
    made.start(document, own)
    for writer in source.writers().values():
        if writer.revoked:
            enrolling.revoke(made, writer.id.hex())
    return made


def _signed(source: Repository) -> Iterator[tuple[str, bytes]]:
    """What the realm signed for all of its repositories; garbage that lies there is left behind."""
    for entry in (entry for folder in _SHARED for entry in source.store.list(folder)):
        with contextlib.suppress(DamageError):
            yield entry.key, _checked(source, entry.key)


def _checked(source: Repository, key: str) -> bytes:
    """A document of the realm. Raises DamageError where it is none."""
    data = fetch(source.store, key)
    if key.startswith("writers/"):
        source.check_enrolment(key, data)
    elif key.startswith("groups/"):
        frames.open_document(data, b"GRUP", key, source.verify_key)
    return data


def _slots(source: Repository) -> set[str]:
    """The key slots that are in force in the source."""
    return set(source.config.slots) or {entry.key.removeprefix("keys/") for entry in source.store.list("keys/")}


def _opened_by(slots: dict[str, bytes], secret: Secret) -> str | None:
    """The slot that a secret opens; None where it opens none."""
    for slot, data in sorted(slots.items()):
        with contextlib.suppress(DamageError, RepositoryError):
            if keys.unwrap(keys.read_slot(data, f"keys/{slot}"), secret, f"keys/{slot}"):
                return slot
    return None


def follow(source: Repository, target: Repository, secret: Callable[[], Secret] | None = None) -> list[str]:
    """Brings to a replica what the realm has signed since: groups, writers; by a reader also key slots and new keys.

    A reader revokes there who is revoked in the source; for another the names are given of those who should be.
    Nothing else is taken away there but, after a rotation, the slots that lack the new keys; `secret` gives what opens
    the replica here, so that it goes on to. Raises RepositoryError, DamageError, AccessError.
    """
    _refuse_apart(source, target)
    by_reader = source.can_read and target.can_read
    if by_reader:
        _follow_keys(source, target, secret)
    elif source.config.epoch > target.config.epoch:
        raise RepositoryError(
            f"the keys of {source.store.url} were rotated, and {target.store.url} has no key slot for them yet",
            "run one 'vmbackup copy' to it where both open with the passphrase",
        )
    _follow_documents(source, target)
    if by_reader:
        _follow_groups(source, target)
    ended = {writer.id: writer for writer in source.writers().values() if writer.revoked}
    open_there = [writer for writer in target.writers().values() if writer.id in ended and not writer.revoked]
    if by_reader:
        for writer in open_there:
            enrolling.revoke(target, writer.id.hex())
    return [] if by_reader else [writer.name for writer in open_there]


def _refuse_apart(source: Repository, target: Repository) -> None:
    """Keys that one of them has made while it stood on its own: the other's are not mixed with them."""
    ours, theirs = source.config.public_keys, target.config.public_keys
    if any(ours[number].raw != theirs[number].raw for number in ours.keys() & theirs.keys()):
        raise RepositoryError(
            f"the keys of {source.store.url} and of {target.store.url} were rotated apart",
            "copy into a repository with keys of its own: 'vmbackup init' makes one",
        )
    if target.config.epoch > source.config.epoch:
        raise RepositoryError(
            f"the keys of {target.store.url} were rotated, and {source.store.url} lacks the new ones",
            "run one 'vmbackup copy' the other way, with the passphrase: it brings them",
        )


def _follow_documents(source: Repository, target: Repository) -> None:
    """Groups and enrolments, verbatim. An enrolment takes the next name where its own is occupied by something else."""
    target.forget_writers()
    there = {entry.key for folder in _SHARED for entry in target.store.list(folder)}
    known = target.writers()
    for entry in (entry for folder in _SHARED for entry in source.store.list(folder)):
        key = entry.key
        enrolment = key.startswith("writers/")
        if REVOKED in key or (key in there and (not enrolment or writer_of(key) in known)):
            continue
        with contextlib.suppress(DamageError, ObjectExists):  # garbage in the source; what another copy put
            data = _checked(source, key)
            if enrolment:
                target.put_enrolment(writer_of(key), data)
            else:
                target.store.put(key, data)
    target.forget_writers()


def _follow_groups(source: Repository, target: Repository) -> None:
    """The keys of groups whose names are occupied there by something else, signed anew."""
    for name in source.groups():
        signed, _ = source.group_documents(name)
        newest = max((document["epoch"] for document in signed.values()), default=0)
        if newest > max((document["epoch"] for document in target.group_documents(name)[0].values()), default=0):
            target.put_group(source.group(name), newest)


def _follow_keys(source: Repository, target: Repository, secret: Callable[[], Secret] | None) -> None:
    """Key slots and epochs."""
    rotated = source.config.epoch > target.config.epoch
    slots = {slot: fetch(source.store, f"keys/{slot}") for slot in _slots(source) - set(target.config.slots)}
    own = {} if not rotated or secret is None else _renewed(source, slots, secret())
    for slot, data in {**slots, **own}.items():
        with contextlib.suppress(ObjectExists):
            target.store.put(f"keys/{slot}", data)
    if not slots and not rotated:
        return
    ours, in_force = source.config.document, {*_slots(source), *own}

    def change(config: RepositoryConfig) -> dict[str, Any]:
        epochs = {epoch["number"]: epoch for epoch in (*config.document["epochs"], *ours["epochs"])}
        return {
            "slots": sorted(in_force if rotated else {*config.slots, *slots}),
            "epochs": [epochs[number] for number in sorted(epochs)],
            "epoch": max(config.epoch, source.config.epoch),
        }

    before = set(target.config.slots)
    target.change_config(change, "the keys were brought over")
    target.identity = replace(target.reader, epochs={**target.reader.epochs, **source.reader.epochs})
    for slot in before - in_force if rotated else ():
        with contextlib.suppress(DeleteRefused):
            target.store.delete(f"keys/{slot}")


def _renewed(source: Repository, slots: dict[str, bytes], secret: Secret) -> dict[str, bytes]:
    """A slot of the replica's own passphrase with the new keys, unless one of the source's opens with it."""
    if _opened_by(slots, secret):
        return {}
    slot, data = keys.wrap(source.reader, secret, "passphrase of the replica")
    return {slot: data}
