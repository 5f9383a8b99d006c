"""The store as a repository sees it: objects of its own names only, none larger than any can be."""

import re
from collections.abc import Iterator

from vmbackup.errors import DamageError
from vmbackup.storage_backends import Buffer, Entry, ObjectTooLarge, ProbeResult, Store

_GROUP, _ID, _SESSION = "[a-z0-9-]{1,64}", "[0-9a-f]{16}", "[0-9a-f]{32}"
_NAMES = re.compile(
    "|".join(
        (
            r"config(\.copy)?/\d{1,18}",
            rf"keys/{_ID}",
            rf"writers/{_ID}(\.revoked)?(\.\d{{1,9}})?",
            rf"groups/{_GROUP}/\d{{1,18}}",
            r"envelopes/\d+/\d+",
            rf"(sessions|points|trash)/{_GROUP}/{_SESSION}/{_SESSION}",
            rf"(data|meta|index)/{_GROUP}/{_SESSION}/{_SESSION}-\d+",
            rf"drills/{_GROUP}/{_SESSION}/{_SESSION}-{_SESSION}",
            rf"(dead|condemned|damage)/{_GROUP}/{_SESSION}",
            rf"probe/{_ID}",
        )
    )
)


# What is locked where objects are: all that a restore point needs. Not what lives while a session or a prune does.
_LOCKED = {"config", "config.copy", "keys", "groups", "writers", "envelopes", "data", "meta", "index", "points"}


class Objects:
    """A Store that lists no foreign files (an .nfs... file, a README, an editor's copy).

    `lock_seconds`: for how long each object that a restore point may need is locked when it is stored; 0 for not at
    all.
    """

    def __init__(self, store: Store, lock_seconds: float = 0.0) -> None:
        self._store, self.lock_seconds = store, lock_seconds

    @property
    def url(self) -> str:
        """See Store."""
        return self._store.url

    @property
    def place(self) -> str:
        """See Store."""
        return self._store.place

    def put(self, key: str, data: Buffer) -> None:
        """See Store; when this returns, the object is locked too."""
        self._store.put(key, data)
        if self.lock_seconds and key.partition("/")[0] in _LOCKED:
            self._store.lock(key, self.lock_seconds)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """See Store. Raises DamageError for an object that no repository makes so large."""
        try:
            return self._store.get(key, offset, length)
        except ObjectTooLarge as error:
            raise DamageError(error.message, object_key=key) from error

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """See Store."""
        self._store.read_into(key, offset, buffer)

    def stat(self, key: str) -> Entry:
        """See Store."""
        return self._store.stat(key)

    def delete(self, key: str) -> None:
        """See Store."""
        self._store.delete(key)

    def probe(self, *, powers: bool = False) -> ProbeResult:
        """See Store."""
        return self._store.probe(powers=powers)

    def lock(self, key: str, seconds: float) -> float:
        """See Store."""
        return self._store.lock(key, seconds)

    def close(self) -> None:
        """See Store."""
        self._store.close()

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """See Store."""
        return (entry for entry in self._store.list(prefix, after) if _NAMES.fullmatch(entry.key))
