"""Key slots: what opens a repository for a reader (docs/repository-format.md, section 5)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError, UsageError
from vmbackup.repository import keys
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import PrivateKey
from vmbackup.repository.keyring import Keyring
from vmbackup.repository.keys import ReaderKeys, Secret, SlotInfo
from vmbackup.repository.opening import RepositoryConfig
from vmbackup.storage_backends import DeleteRefused

RECOVERY = "recovery"


def listed(repository: Keyring) -> Iterator[SlotInfo | DamageError]:
    """The key slots that are stored, damaged ones as their errors."""
    for entry in repository.store.list("keys/"):
        try:
            yield keys.slot_info(keys.read_slot(fetch(repository.store, entry.key), entry.key))
        except DamageError as error:
            yield error
        except RepositoryError as error:  # of a newer version, it says, and nobody signed it
            yield DamageError(error.message, error.hint, object_key=entry.key)


def in_force(repository: Keyring, slot: str) -> bool:
    """Whether the config lists it: one that was removed, and that the store still has, opens nothing."""
    return not repository.config.slots or slot in repository.config.slots


def add(repository: Keyring, secret: Secret, label: str) -> str:
    """A further passphrase or recovery key; gives the slot's id. It is stored first, then listed in the config."""
    return _add(repository, repository.reader, secret, label)


def _add(repository: Keyring, reader: ReaderKeys, secret: Secret, label: str) -> str:
    slot, data = keys.wrap(reader, secret, label)
    repository.store.put(f"keys/{slot}", data)
    stored = _stored(repository)

    def with_it(config: RepositoryConfig) -> dict[str, Any]:
        return {"slots": sorted({*(config.slots or stored), slot})}

    repository.change_config(with_it, f"key {slot} was added")
    return slot


def add_recovery(repository: Keyring, label: str) -> str:
    """A new recovery key, as people write it."""
    recovery = os.urandom(32)
    add(repository, Secret(recovery, RECOVERY, random=True), label)
    return keys.format_recovery(recovery)


def remove(repository: Keyring, name: str, *, allow_recovery: bool = False) -> tuple[SlotInfo | None, bool]:
    """Takes a slot out of the config, then deletes it; gives what it was (None: damaged), and whether it is gone.

    `name` is an id or the beginning of one. False: object lock keeps the object, which opens nothing any more. Raises
    NotFoundError, UsageError for an ambiguous name, the slot in use, and a recovery key unless that is allowed.
    """
    repository.check_may_change()
    slot = _resolve(repository, name)
    info = _info(repository, slot)
    if slot == repository.slot:
        raise UsageError(
            f"key {slot} is the one that opens the repository here",
            "'vmbackup key change' replaces it; to remove it, open the repository with another one",
        )
    if info is not None and info.kind == RECOVERY and not allow_recovery:
        raise UsageError(
            f"key {slot} is a recovery key ({info.label}): who lost the passphrase needs one",
            "make another one first ('vmbackup key export-recovery'), then add --allow-recovery",
        )
    return info, _drop(repository, slot)


def change(repository: Keyring, secret: Secret, between: Callable[[], None] = lambda: None) -> tuple[str, str, bool]:
    """A new secret in place of the one in use; gives the old slot, the new one, and whether the old one is gone.

    The new slot opens before `between` is called, and the old one until that has returned: whatever is cut off, one
    of both opens. Raises UsageError where that is a recovery key.
    """
    repository.check_may_change()
    old = repository.slot
    info = _info(repository, old)
    if info is not None and info.kind == RECOVERY:
        raise UsageError(
            "the repository was opened with a recovery key, which stays as it is",
            "add a passphrase with 'vmbackup key add', then remove the lost one with 'vmbackup key remove'",
        )
    new = add(repository, secret, info.label if info else "")
    between()
    repository.slot = new
    return old, new, _drop(repository, old)


@dataclass(frozen=True)
class Rotated:
    """The new epoch, the slot that opens it, the slots that open nothing any more, and those the store still holds."""

    epoch: int
    slot: str
    dropped: tuple[SlotInfo, ...]
    kept: tuple[str, ...]


def others(repository: Keyring) -> list[SlotInfo]:
    """The passphrases in force beside the one in use: a rotation has no secret to wrap the new keys for them."""
    found = [slot for slot in listed(repository) if isinstance(slot, SlotInfo)]
    return [s for s in found if s.id != repository.slot and s.kind != RECOVERY and in_force(repository, s.id)]


def rotate(
    repository: Keyring, secret: Secret, keep_recovery: Callable[[str], None], *, original_lost: bool = False
) -> Rotated:
    """A new epoch: what is stored from now on is sealed for a new key pair; nothing that is stored is written again.

    `secret` is the one in use. It and a new recovery key open the new epoch and all earlier ones; all other slots go.
    `keep_recovery` is called before anything depends on that key. `original_lost`: a replica stands on its own from now
    on. Raises AccessError, RepositoryError.
    """
    repository.check_may_change()
    reader = repository.reader
    before = repository.config
    if before.document.get("replica_of") and not original_lost:
        raise RepositoryError(
            "a replica has the keys of what it is a replica of",
            "rotate there: the next 'vmbackup copy' with a passphrase brings the new keys; if that repository is lost,"
            " add --original-lost",
        )
    if not before.public_keys.keys() <= reader.epochs.keys():
        raise AccessError("this passphrase lacks keys of the repository", "open it with one that was made since")
    epoch, private = before.epoch + 1, PrivateKey.generate()
    renewed = replace(reader, epochs={**reader.epochs, epoch: private})
    gone = [slot for slot in listed(repository) if isinstance(slot, SlotInfo) and in_force(repository, slot.id)]
    used, info = repository.slot, _info(repository, repository.slot)
    recovery = os.urandom(32)
    slot, data = keys.wrap(renewed, secret, info.label if info else "")
    spare, spare_data = keys.wrap(
        renewed, Secret(recovery, RECOVERY, random=True), f"recovery key of rotation {epoch - 1}"
    )
    repository.store.put(f"keys/{slot}", data)
    repository.store.put(f"keys/{spare}", spare_data)
    keep_recovery(keys.format_recovery(recovery))
    public = {"number": epoch, "public_key": private.public().raw.hex()}

    def begun(config: RepositoryConfig) -> dict[str, Any]:
        if public in config.document["epochs"]:
            return {}
        if config.epoch != before.epoch:
            raise RepositoryError("somebody else rotates the keys at the same time", "look who, and what was dropped")
        epochs = [*config.document["epochs"], public]
        return {"epoch": epoch, "epochs": epochs, "slots": sorted((slot, spare)), "replica_of": None}

    old = _stored(repository) - {slot, spare}
    repository.change_config(begun, "new keys were made")
    repository.identity, repository.slot = renewed, slot
    repository.recheck()
    for group in repository.groups():
        repository.put_group(repository.group(group), epoch)
    kept = [name for name in sorted(old) if not _delete(repository, name)]
    return Rotated(epoch, slot, tuple(s for s in gone if s.id != used), tuple(kept))


def _stored(repository: Keyring) -> set[str]:
    return {entry.key.removeprefix("keys/") for entry in repository.store.list("keys/")}


def _resolve(repository: Keyring, name: str) -> str:
    known = sorted(_stored(repository) | set(repository.config.slots))
    matches = [slot for slot in known if name and slot.startswith(name.lower())]
    if not matches:
        raise NotFoundError(f"there is no key '{name}'", "'vmbackup key list' shows them")
    if len(matches) > 1:
        raise UsageError(f"'{name}' names {len(matches)} keys", f"write more of it: {', '.join(matches)}")
    return matches[0]


def _info(repository: Keyring, slot: str) -> SlotInfo | None:
    with contextlib.suppress(DamageError, RepositoryError):
        return keys.slot_info(keys.read_slot(fetch(repository.store, f"keys/{slot}"), f"keys/{slot}"))
    return None


def _drop(repository: Keyring, slot: str) -> bool:
    """Out of the config first: a list that names what is gone would tell of damage."""
    stored = _stored(repository)

    def without(config: RepositoryConfig) -> dict[str, Any]:
        return {"slots": sorted({*(config.slots or stored)} - {slot})}

    repository.change_config(without, f"key {slot} was not removed")
    return _delete(repository, slot)


def _delete(repository: Keyring, slot: str) -> bool:
    """Whether it is gone; object lock may keep it for a while."""
    try:
        repository.store.delete(f"keys/{slot}")
    except DeleteRefused:
        return False
    return True
