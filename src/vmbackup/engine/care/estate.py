"""The repository itself: config, key slots, groups, enrolments, and what stands beside the restore points."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from vmbackup.engine.care import marks
from vmbackup.engine.care.findings import Findings
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.repository import frames, keys
from vmbackup.repository.catalog import fetch
from vmbackup.repository.enrolments import REVOKED, writer_of
from vmbackup.repository.opening import number_of
from vmbackup.repository.repository import Repository


@dataclass(frozen=True)
class Garbage:
    """An object that counts for nothing, and how that shows."""

    object: str
    problem: str


class Estate:
    """Looks at all of it; what is wrong goes into `found`, what was looked at with its size into `objects`.

    `garbage`: by key what counts for nothing and costs nothing, and how that shows.
    """

    def __init__(self, repository: Repository, found: Findings, objects: dict[str, int]) -> None:
        self._repository, self._store = repository, repository.store
        self._found, self._objects = found, objects
        self.garbage: dict[str, str] = {}

    def check(self) -> None:
        """Config, copies, key slots, groups, enrolments; pins, tombstones, lists, records."""
        repository = self._repository
        repository.forget_writers()
        unjudged = {error.object_key: error for error in repository.unjudged()}
        for error in unjudged.values():
            self._found.error(error)
        for folder in ("config/", "config.copy/"):
            for key, data in self._read_all(folder):
                costly = repository.config.has(number_of(key))
                self._try(key, partial(self._config, key, data), costly=costly)
        for key, data in self._read_all("writers/"):
            own = writer_of(key) == repository.writer.id  # known without the store
            costly = REVOKED not in key and (own or writer_of(key) not in repository.writers())
            if key not in unjudged:
                self._try(key, partial(repository.check_enrolment, key, data), costly=costly)
        slots = repository.config.slots
        for key, data in self._read_all("keys/"):
            costly = not slots or key.removeprefix("keys/") in slots
            self._try(key, partial(keys.read_slot, data, key), costly=costly)
        self._objects.update((entry.key, entry.size) for entry in self._store.list("groups/"))
        for group in repository.groups():
            self._keys_of(group)
        self._strange_groups(set(repository.groups()))
        self._pairs()
        for entry, problem in marks.checked(self._repository):
            self._objects[entry.key] = entry.size
            if problem:
                self._found.add(entry.key, problem.message)

    def _pairs(self) -> None:
        """What is written twice, or must be there."""
        for number in filter(self._repository.config.has, range(1, self._repository.config.version + 1)):
            for key in (f"config/{number}", f"config.copy/{number}"):
                self._must_exist(key)
        self._must_exist(f"writers/{self._repository.writer.id.hex()}")
        for slot in self._repository.config.slots:
            self._must_exist(f"keys/{slot}")

    def _config(self, key: str, data: bytes) -> None:
        document = frames.open_document(data, b"CONF", key, self._repository.verify_key)
        check_place(document, key)
        if document.get("repository") != self._repository.config.repository.hex():
            raise DamageError(f"{key} is of another repository", object_key=key)

    def _keys_of(self, group: str) -> None:
        """Two documents of the first epoch that a group has keys for; what else lies there costs nothing then."""
        signed, damaged = self._repository.group_documents(group)
        astray = {error.object_key for error in damaged}
        epochs = [told["epoch"] for number, told in signed.items() if f"groups/{group}/{number}" not in astray]
        whole = epochs.count(min(epochs, default=0)) >= 2
        for error in damaged:
            if whole:
                self.garbage[error.object_key or ""] = _problem(error)
            else:
                self._found.error(error)
        if not whole:
            self._must_exist(f"groups/{group}/1")
            self._must_exist(f"groups/{group}/2")

    def _strange_groups(self, known: set[str]) -> None:
        """What lies under names of groups that there are none of."""
        for key in [key for key in self._objects if key.startswith("groups/") and key.split("/")[1] not in known]:
            self.garbage[key] = "is not signed by this repository's key"

    def _must_exist(self, key: str) -> None:
        if key not in self._objects:
            self._found.add(key, "is missing")

    def _read_all(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        for entry in self._store.list(prefix):
            try:
                data = fetch(self._store, entry.key)
            except DamageError as error:
                if self._repository.exists(entry.key):
                    self._found.error(error)
                continue  # else it was taken away meanwhile; what must be there is told by `_pairs`
            self._objects[entry.key] = entry.size
            yield entry.key, data

    def _try(self, key: str, check: Callable[[], object], *, costly: bool = True) -> None:
        """Tells what is wrong with an object: as damage, or as garbage where it costs nothing that it is none."""
        try:
            check()
        except VmbackupError as error:
            if costly:
                self._found.add(key, error.message)
            else:
                self.garbage[key] = _problem(error, key)


def _problem(error: VmbackupError, key: str = "") -> str:
    named = key or (error.object_key if isinstance(error, DamageError) else None) or ""
    return error.message.removeprefix(named).strip()


def check_place(document: dict[str, Any], key: str) -> None:
    """Whether a signed document is the one of its name. Raises DamageError."""
    told = document.get("writer", document.get("number", document.get("version")))
    if str(told) != key.rpartition("/")[2]:
        raise DamageError(f"{key} does not belong where it lies", object_key=key)
