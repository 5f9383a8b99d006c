"""Stores of immutable objects: the Protocol and its backends."""

from .base import (
    BadKey,
    BadStoreUrl,
    Buffer,
    Entry,
    ObjectExists,
    ObjectMissing,
    ObjectTruncated,
    ProbeResult,
    Store,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    check_key,
)
from .probe import occupants
from .registry import open_store

__all__ = [
    "BadKey",
    "BadStoreUrl",
    "Buffer",
    "Entry",
    "ObjectExists",
    "ObjectMissing",
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
