"""Stores of immutable objects: the Protocol and its backends."""

from vmbackup.storage_backends.base import (
    BadKey,
    BadStoreUrl,
    BucketFacts,
    Buffer,
    DeleteRefused,
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
    StoreUnfit,
    check_key,
)
from vmbackup.storage_backends.probe import occupants
from vmbackup.storage_backends.registry import open_store
from vmbackup.storage_backends.s3_settings import S3Settings

__all__ = [
    "BadKey",
    "BadStoreUrl",
    "BucketFacts",
    "Buffer",
    "DeleteRefused",
    "Entry",
    "ObjectExists",
    "ObjectMissing",
    "ObjectTooLarge",
    "ObjectTruncated",
    "ProbeResult",
    "S3Settings",
    "Store",
    "StoreError",
    "StoreFull",
    "StoreMissing",
    "StoreUnavailable",
    "StoreUnfit",
    "check_key",
    "occupants",
    "open_store",
]
