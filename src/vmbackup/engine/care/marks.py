"""What stands beside the restore points: pins, tombstones, condemned lists, records of damage. Are they whole."""

from collections.abc import Callable, Iterator

from vmbackup.errors import VmbackupError
from vmbackup.repository import condemned, damage, tombstones
from vmbackup.repository.catalog import fetch
from vmbackup.repository.layout import Lineage
from vmbackup.repository.repository import Repository
from vmbackup.repository.session import read_pin
from vmbackup.storage_backends import Entry, ObjectMissing


def checked(repository: Repository) -> Iterator[tuple[Entry, VmbackupError | None]]:
    """Each of them that this key sees, and what is wrong with it. One that goes meanwhile is left out."""
    checks: dict[str, Callable[[str, str], object]] = {
        "sessions": lambda group, key: _pin(repository, group, key),
        "trash": lambda group, key: tombstones.check(repository, b"TRSH", group, key),
        "dead": lambda group, key: tombstones.check(repository, b"DEAD", group, key),
        "condemned": lambda _group, key: condemned.decode(fetch(repository.store, key), key),
        "damage": lambda _group, key: damage.decode(fetch(repository.store, key), key),
    }
    for group in repository.groups():
        for folder, check in checks.items():
            for entry in repository.store.list(f"{folder}/{group}/"):
                try:
                    check(group, entry.key)
                except ObjectMissing:
                    continue
                except tombstones.RevokedSignerError:
                    yield entry, None
                except VmbackupError as error:
                    if repository.exists(entry.key):
                        yield entry, error
                else:
                    yield entry, None


def _pin(repository: Repository, group: str, key: str) -> None:
    _, _, lineage, session = key.split("/")
    read_pin(repository, Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(session), fetch(repository.store, key))
