"""Key slots: what opens a repository for a reader (docs/repository-format.md, section 5)."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vmbackup.errors import DamageError
from vmbackup.repository import keys
from vmbackup.repository.catalog import fetch
from vmbackup.repository.keys import Secret, SlotInfo

if TYPE_CHECKING:
    from vmbackup.repository.keyring import Keyring


def listed(repository: "Keyring") -> Iterator[SlotInfo | DamageError]:
    """The key slots, damaged ones as their errors."""
    for entry in repository.store.list("keys/"):
        try:
            yield keys.slot_info(keys.read_slot(fetch(repository.store, entry.key), entry.key))
        except DamageError as error:
            yield error


def add(repository: "Keyring", secret: Secret, label: str) -> str:
    """A further passphrase or recovery key; gives the slot's id. It is stored first, then listed in the config."""
    slot, data = keys.wrap(repository.reader, secret, label)
    repository.store.put(f"keys/{slot}", data)
    repository.change_config(lambda config: {"slots": sorted({*config.slots, slot})}, f"key {slot} was added")
    return slot


def add_recovery(repository: "Keyring", label: str) -> str:
    """A new recovery key, as people write it."""
    recovery = os.urandom(32)
    add(repository, Secret(recovery, "recovery", random=True), label)
    return keys.format_recovery(recovery)
