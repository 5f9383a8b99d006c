"""The repository itself: config, key slots, groups, enrolments, and what stands beside the restore points."""

from collections.abc import Iterator
from typing import Any

from vmbackup.engine import marks
from vmbackup.engine.findings import Findings
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.repository import frames, keys
from vmbackup.repository.catalog import fetch
from vmbackup.repository.repository import Repository


class Estate:
    """Looks at all of it; what is wrong goes into `found`, what was looked at with its size into `objects`."""

    def __init__(self, repository: Repository, found: Findings, objects: dict[str, int]) -> None:
        self._repository, self._store = repository, repository.store
        self._found, self._objects = found, objects

    def check(self) -> None:
        """Config, copies, key slots, groups, enrolments; pins, tombstones, lists, records."""
        verify_key = self._repository.verify_key
        documents = {"config/": b"CONF", "config.copy/": b"CONF", "groups/": b"GRUP"}
        for prefix, kind in documents.items():
            for key, data in self._read_all(prefix):
                self._try(key, lambda k=key, d=data, t=kind: check_place(frames.open_document(d, t, k, verify_key), k))
        for key, data in self._read_all("writers/"):
            self._try(key, lambda k=key, d=data: self._repository.check_enrolment(k, d))
        for error in self._repository.unjudged():
            self._found.error(error)
        for key, data in self._read_all("keys/"):
            self._try(key, lambda k=key, d=data: keys.read_slot(d, k))
        self._pairs()
        for entry, problem in marks.checked(self._repository):
            self._objects[entry.key] = entry.size
            if problem:
                self._found.add(entry.key, problem.message)

    def _pairs(self) -> None:
        """What is written twice, or must be there."""
        for number in range(1, self._repository.config.version + 1):
            for key in (f"config/{number}", f"config.copy/{number}"):
                self._must_exist(key)
        for group in {*self._repository.groups(), "default"}:
            self._must_exist(f"groups/{group}/1")
            self._must_exist(f"groups/{group}/2")
        self._must_exist(f"writers/{self._repository.writer.id.hex()}")
        for slot in self._repository.config.slots:
            self._must_exist(f"keys/{slot}")

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

    def _try(self, key: str, check: object) -> None:
        try:
            check()  # type: ignore[operator]
        except DamageError as error:
            self._found.error(error)
        except VmbackupError as error:
            self._found.add(key, error.message)


def check_place(document: dict[str, Any], key: str) -> None:
    """Whether a signed document is the one of its name. Raises DamageError."""
    told = document.get("writer", document.get("number", document.get("version")))
    if str(told) != key.rpartition("/")[2]:
        raise DamageError(f"{key} does not belong where it lies", object_key=key)
