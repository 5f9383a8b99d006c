"""Stores of immutable objects: the Protocol and its backends."""

from vmbackup.storage_backends.base import (
    BadKey,
    BadStoreUrl,
    Buffer,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    ObjectTruncated,
    ProbeResult,
    Store,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    check_key,
)
from vmbackup.storage_backends.probe import occupants
from vmbackup.storage_backends.registry import open_store

__all__ = [
    "BadKey",
    "BadStoreUrl",
    "Buffer",
    "Entry",
    "ObjectExists",
    "ObjectMissing",
    "ObjectTooLarge",
    "ObjectTruncated",
    "ProbeResult",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreMissing",
    "StoreUnavailable",
    "check_key",
    "occupants",
    "open_store",
]
