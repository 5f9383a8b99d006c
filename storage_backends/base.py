"""What a store of immutable objects is: the Protocol, its entries, its keys and its errors.

StoreError
├── BadStoreUrl         the address names no store that this version knows
├── BadKey              a key that no store takes
├── ObjectMissing       no such object
├── ObjectExists        the key is taken by other bytes
├── ObjectTruncated     the object is shorter than what was asked for
├── ObjectTooLarge      the whole object was asked for, and is larger than any can be
├── DeleteRefused       the object is locked, or the keys may not delete it
├── StoreMissing        no such folder or bucket
├── StoreFull           no space or quota left
├── StoreUnfit          the place deletes or locks objects by itself
└── StoreUnavailable    unreachable, not permitted, or failing
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from mmap import mmap
from typing import ClassVar, Protocol

Buffer = bytes | bytearray | memoryview | mmap

MAX_GET = 256 << 20  # bytes of an object that is got whole: what is larger was put there by somebody else
MAX_KEY_LENGTH = 1024  # characters; what S3 allows
MAX_SEGMENT_LENGTH = 255  # characters; what Linux file systems allow for a name
# No leading dot: "..", temporary and hidden files are no keys.
_SEGMENT = re.compile(r"[a-z0-9_-][a-z0-9._-]*")


class StoreError(Exception):
    """A store refused or failed. `message` is one sentence of what is wrong, `hint` one of what to do."""

    kind: ClassVar[str] = "store"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadStoreUrl(StoreError):
    """The address cannot be meant. The caller corrects it."""

    kind = "store_url"


class BadKey(StoreError):
    """The key is outside of what every store takes: a mistake of the program, or a hostile name."""

    kind = "store_key"


class ObjectMissing(StoreError):
    """There is no object of this key, in a store that is there."""

    kind = "object_missing"

    def __init__(self, key: str) -> None:
        super().__init__(f"object {key} does not exist")
        self.key = key


class ObjectExists(StoreError):
    """The key is taken by an object of other bytes, which stands as it was."""

    kind = "object_exists"

    def __init__(self, key: str) -> None:
        super().__init__(f"object {key} exists already, with other content")
        self.key = key


class ObjectTruncated(StoreError):
    """The object ends at `size`, before `end` (both bytes). Nothing that was read may be used."""

    kind = "object_truncated"

    def __init__(self, key: str, size: int, end: int) -> None:
        super().__init__(f"object {key} has {size} bytes, {end} were expected")
        self.key = key
        self.size = size
        self.end = end


class ObjectTooLarge(StoreError):
    """The object has `size` bytes, more than MAX_GET. Nothing of it was read."""

    kind = "object_too_large"

    def __init__(self, key: str, size: int) -> None:
        super().__init__(f"object {key} has {size} bytes, more than any object can have")
        self.key = key
        self.size = size


class DeleteRefused(StoreError):
    """The object stays as it was: locked `until` (seconds since 1970), or the keys may not delete it (None)."""

    kind = "delete_refused"

    def __init__(self, key: str, until: float | None) -> None:
        if until is None:
            hint = "only an access key for pruning may delete versions of objects"
            super().__init__(f"this access key may not delete {key}", hint)
        else:
            super().__init__(f"{key} is locked until {datetime.fromtimestamp(until, UTC):%Y-%m-%d %H:%M} UTC")
        self.key = key
        self.until = until


class StoreMissing(StoreError):
    """There is no such folder or bucket: not mounted, not made yet, or gone since it was opened."""

    kind = "store_missing"


class StoreFull(StoreError):
    """No space or quota is left. Nothing of the refused object was kept; the caller may try again later."""

    kind = "store_full"


class StoreUnfit(StoreError):
    """The place deletes or locks objects by itself, or cannot lock them: no repository may be made or kept there."""

    kind = "store_unfit"


class StoreUnavailable(StoreError):
    """The store is unreachable, forbids it, or fails. Whether a put took place is not known; repeat it."""

    kind = "store_unavailable"


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a list shows it: bytes, and seconds since 1970 by the store's clock."""

    key: str
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What is set for a bucket: whether it keeps versions, and can lock objects; None where it did not tell.

    `unknown` names the settings that the keys may not ask for, or that the server does not know. `conditional`:
    it is the server that refuses a second put, not the order of versions that settles it. `rules`: it has lifecycle
    rules, harmless ones. `powers`: what the keys may
    do that only those of a pruner, or of the bucket's owner, should, each as the end of "may ...".
    """

    versioning: bool | None
    object_lock: bool | None
    unknown: tuple[str, ...] = ()
    conditional: bool = True
    rules: bool = False
    powers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a store was seen to do with a throw-away object.

    `put_if_absent`: a second put of other bytes was refused and changed nothing. `ranges`: parts come back
    exactly. `lists`: the object was listed at once, in its place. `deletes`: it was gone after a delete; a repository
    in a bucket that keeps versions needs that for prunes only.
    `clock_skew`: seconds by which the store's clock is ahead of ours. `free_bytes`: None where unknown. `bucket`:
    None for a store that is none.
    """

    put_if_absent: bool
    ranges: bool
    lists: bool
    deletes: bool
    clock_skew: float
    free_bytes: int | None
    bucket: BucketFacts | None = None

    @property
    def lacks(self) -> tuple[str, ...]:
        """What a repository cannot do without, each as the end of a sentence about the place; empty if all is well."""
        told = {
            "does not keep what was put first": self.put_if_absent,
            "gives no exact ranges": self.ranges,
            "does not list what was just put": self.lists,
            "does not delete": self.deletes or bool(self.bucket and self.bucket.versioning),
        }
        return tuple(lack for lack, fine in told.items() if not fine)


class Store(Protocol):
    """Immutable objects under keys, shared by threads. Each verb may raise StoreMissing, StoreUnavailable."""

    @property
    def url(self) -> str:
        """The address that `open_store` takes."""

    @property
    def place(self) -> str:
        """What tells it from every other store: the url, and where that leaves it open, the server."""

    def put(self, key: str, data: Buffer) -> None:
        """Create the object, once and durably: when this returns, it outlives a power cut.

        The same bytes under the same key are a success, so a retry is harmless. `data` must not change
        meanwhile. Raises BadKey, ObjectExists where other bytes stand there, StoreFull.
        """

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return exactly `length` bytes from `offset` on, or all up to the end.

        Raises ObjectMissing, ObjectTruncated where the object is shorter than `offset + length`, ObjectTooLarge where
        all of one larger than MAX_GET is asked for.
        """

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """Fill the whole buffer with the object's bytes from `offset` on. Raises as `get` does."""

    def stat(self, key: str) -> Entry:
        """Return size and time of an object. Raises ObjectMissing."""

    def list(self, prefix: str, after: str = "") -> Iterator[Entry]:
        """Yield what is in the place and whose key starts with `prefix` and comes after `after`.

        In order of the keys' bytes, streamed. An object whose put had returned before the call is always
        listed; one made or deleted meanwhile may be. Foreign objects are listed too, under whatever name
        they have; temporary files of a put never are.
        """

    def delete(self, key: str) -> None:
        """Remove an object for good. No error where there is none. Raises DeleteRefused."""

    def lock(self, key: str, seconds: float) -> float:
        """Keep the object from being deleted by anybody for so long from now at least, by the store's clock.

        Gives until when it is locked now (seconds since 1970), as the store was heard to say; never shortens a lock.
        Raises ObjectMissing, StoreUnfit where nothing can be locked.
        """

    def probe(self, *, powers: bool = False) -> ProbeResult:
        """Try with throw-away objects what a repository relies on, and tell what was seen. May raise StoreUnfit.

        With `powers` also whether the keys to the store may do what they need not.
        """

    def close(self) -> None:
        """Give back connections. Never raises; the store is not used afterwards."""


def check_key(key: str) -> None:
    """Raise BadKey unless all segments are of [a-z0-9._-], between single slashes, with no leading dot."""
    segments = key.split("/")
    if len(key) > MAX_KEY_LENGTH or not all(
        len(segment) <= MAX_SEGMENT_LENGTH and _SEGMENT.fullmatch(segment) for segment in segments
    ):
        raise BadKey(f"{key[:80]!r} is no valid object key")
