"""A replica: another repository of the same realm, with the same keys (docs/repository-format.md, section 4)."""

import contextlib
import os
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import DamageError, RepositoryError
from vmbackup.repository import enrolling, keys, residency
from vmbackup.repository.catalog import fetch
from vmbackup.repository.keys import Secret
from vmbackup.repository.opening import RepositoryConfig
from vmbackup.repository.repository import Repository, put_first, refuse_occupied
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import ObjectExists, Store

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
    shared = {entry.key: fetch(source.store, entry.key) for folder in _SHARED for entry in source.store.list(folder)}
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
    }
    made = Repository(store, reader, RepositoryConfig.from_document(document), trust)
    put_first(made.store, shared)
    for slot, data in slots.items():
        made.store.put(f"keys/{slot}", data)
    made.start(document, own)
    return made


def _slots(source: Repository) -> set[str]:
    """The key slots that are in force in the source."""
    return set(source.config.slots) or {entry.key.removeprefix("keys/") for entry in source.store.list("keys/")}


def _opened_by(slots: dict[str, bytes], secret: Secret) -> str | None:
    """The slot that a secret opens; None where it opens none."""
    for slot, data in sorted(slots.items()):
        with contextlib.suppress(DamageError):
            if keys.unwrap(keys.read_slot(data, f"keys/{slot}"), secret, f"keys/{slot}"):
                return slot
    return None


def follow(source: Repository, target: Repository) -> list[str]:
    """Brings to a replica what the realm has signed since: groups, writers; by a reader also epochs and key slots.

    A reader revokes there who is revoked in the source; for another the names are given of those who should be.
    Nothing is taken away there. Raises RepositoryError, DamageError.
    """
    there = {entry.key for folder in _SHARED for entry in target.store.list(folder)}
    listed = (entry.key for folder in _SHARED for entry in source.store.list(folder))
    new = [key for key in listed if key not in there and not key.endswith(".revoked")]
    for key in new:
        with contextlib.suppress(ObjectExists):
            target.store.put(key, fetch(source.store, key))
    if new:
        target.forget_writers()
    by_reader = source.can_read and target.can_read
    if by_reader:
        _follow_keys(source, target)
    elif source.config.epoch > target.config.epoch:
        raise RepositoryError(
            f"the keys of {source.store.url} were rotated, and {target.store.url} has no key slot for them yet",
            "run one 'vmbackup copy' to it where both open with the passphrase",
        )
    ended = {writer.id: writer for writer in source.writers().values() if writer.revoked}
    open_there = [writer for writer in target.writers().values() if writer.id in ended and not writer.revoked]
    if by_reader:
        for writer in open_there:
            enrolling.revoke(target, writer.id.hex())
    return [] if by_reader else [writer.name for writer in open_there]


def _follow_keys(source: Repository, target: Repository) -> None:
    slots = _slots(source) - set(target.config.slots)
    for slot in slots:
        with contextlib.suppress(ObjectExists):
            target.store.put(f"keys/{slot}", fetch(source.store, f"keys/{slot}"))
    ours = source.config.document
    if not slots and target.config.epoch >= source.config.epoch:
        return

    def change(config: RepositoryConfig) -> dict[str, Any]:
        epochs = {epoch["number"]: epoch for epoch in (*config.document["epochs"], *ours["epochs"])}
        return {
            "slots": sorted({*config.slots, *slots}),
            "epochs": [epochs[number] for number in sorted(epochs)],
            "epoch": max(config.epoch, source.config.epoch),
        }

    target.change_config(change, "the keys were brought over")
