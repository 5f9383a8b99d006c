"""The commits of restore points on this host, as they are stored: immutable, and authenticated anew on each reading."""

import contextlib
from collections.abc import Callable, Container
from typing import TypeVar

from vmbackup.errors import VmbackupError
from vmbackup.repository.cache import Cache
from vmbackup.storage_backends import Entry

# Commits of some KiB that are written to the file together.
_BATCH = 256

T = TypeVar("T")


class PointCache:
    """Bodies of objects below `points/`, by key, size and time, as the store tells them: a changed one is read."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._new: list[tuple[str, int, float, bytes]] = []

    def get(self, entry: Entry, read: Callable[[str], bytes], decode: Callable[[bytes], T]) -> T:
        """What `decode` makes of a body: of one that `read(key)` gets, where none here passes. Raises what they do."""
        rows = self._cache.rows(
            "SELECT body FROM points WHERE key = ? AND size = ? AND modified = ? AND length(body) = size",
            (entry.key, entry.size, entry.modified),
        )
        if rows and isinstance(rows[0][0], bytes):
            with contextlib.suppress(VmbackupError):
                return decode(rows[0][0])
        data = read(entry.key)
        found = decode(data)
        if self._cache and len(data) == entry.size:
            self._new.append((entry.key, entry.size, entry.modified, data))
            if len(self._new) >= _BATCH:
                self._flush()
        return found

    def _flush(self) -> None:
        new, self._new = self._new, []
        if new:
            self._cache.change(("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?)", new))

    def close(self, prefix: str, keys: Container[str]) -> None:
        """Writes what was read, and drops what is below `prefix` but not among the keys: it is gone from the store."""
        self._flush()
        rows = self._cache.rows("SELECT key FROM points WHERE key >= ? AND key < ?", (prefix, prefix[:-1] + "0"))
        if gone := [row for row in rows if row[0] not in keys]:
            self._cache.change(("DELETE FROM points WHERE key = ?", gone))
