"""What can be asked of any store through its verbs alone: what it can do, and what stands in it."""

import contextlib
import secrets
import time
from collections.abc import Iterator

from vmbackup.storage_backends.base import DeleteRefused, ObjectExists, ObjectMissing, ProbeResult, Store, StoreError

PROBE_PREFIX = "probe/"  # throw-away objects; a killed probe may leave one
_FIRST, _SECOND = b"vmbackup probe: the first put\n", b"vmbackup probe: the second one\n"


def probe_store(store: Store, free_bytes: int | None = None) -> ProbeResult:
    """Put, put again, read, list and delete an object of a random name, and tell what was seen.

    Raises StoreError where even a first put and get fail.
    """
    key = PROBE_PREFIX + secrets.token_hex(8)
    started = time.time()
    try:
        store.put(key, _FIRST)
        finished = time.time()
        modified = store.stat(key).modified
        put_if_absent = _refuses(store, key)
        ranges = store.get(key, 5, 7) == store.get(key)[5:12]
        lists = [entry.key for entry in store.list(key)] == [key]
    except StoreError:
        with contextlib.suppress(StoreError):
            store.delete(key)
        raise
    try:
        store.delete(key)
        deletes = _is_gone(store, key)
    except DeleteRefused:
        deletes = False
    return ProbeResult(
        put_if_absent=put_if_absent,
        ranges=ranges,
        lists=lists,
        deletes=deletes,
        clock_skew=_outside(modified, started, finished),
        free_bytes=free_bytes,
    )


def occupants(store: Store) -> Iterator[str]:
    """Yield the names of what stands in the place, ours or foreign; the first one is enough to refuse it."""
    return (entry.key for entry in store.list("") if not entry.key.startswith(PROBE_PREFIX))


def _refuses(store: Store, key: str) -> bool:
    try:
        store.put(key, _SECOND)
    except ObjectExists:
        return store.get(key) == _FIRST
    return False


def _is_gone(store: Store, key: str) -> bool:
    try:
        store.stat(key)
    except ObjectMissing:
        return True
    return False


def _outside(moment: float, first: float, last: float) -> float:
    """Return the distance in seconds of `moment` from the interval, 0 inside."""
    return min(moment - first, 0.0) or max(moment - last, 0.0)
