"""Opening a repository: from a secret to its keys, and to the config that holds."""

import contextlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError
from vmbackup.repository import frames, keys, shapes
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import PublicKey
from vmbackup.repository.keys import Identity, ReaderKeys, Secret
from vmbackup.repository.shapes import Hex, Maybe, Up
from vmbackup.storage_backends import Entry, Store

_CONFIG = {
    **dict.fromkeys(("realm", "repository"), Hex()),
    **dict.fromkeys(("version", "chunk_size"), int),
    "epoch": Up((1 << 32) - 1),
    "epochs": [{"number": int, "public_key": Hex()}],
    "features": {"ignore": [str], "read_only": [str], "refuse": [str]},
    "slots?": [str],
    "object_lock_days?": Maybe(int),
    "allowed_endpoints?": Maybe([str]),
    "revoked?": [{"writer": Hex(8), "digest": Hex(32)}],
    "skipped?": [[int]],
}


@dataclass(frozen=True)
class RepositoryConfig:
    """The signed config: ids of 16 bytes, `version` of this document, chunk size in bytes, public keys by epoch.

    `slots`: the key slots that there must be; `revoked`: the digests of the revocations, by the writer's id. `skipped`:
    first and last of the numbers under which there is no version, for somebody had put other things there.
    `allowed_endpoints`: the hosts where data may lie, None for any.
    """

    realm: bytes
    repository: bytes
    version: int
    chunk_size: int
    epoch: int
    public_keys: dict[int, PublicKey]
    features: dict[str, list[str]]
    slots: tuple[str, ...]
    object_lock_days: int | None
    revoked: dict[bytes, bytes]
    allowed_endpoints: tuple[str, ...] | None
    skipped: tuple[tuple[int, int], ...]
    document: dict[str, Any] = field(repr=False)

    def has(self, number: int) -> bool:
        """Whether there was a version of that number, up to this one."""
        return 1 <= number <= self.version and not any(first <= number <= last for first, last in self.skipped)

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "RepositoryConfig":
        """Out of the signed document. Raises DamageError, KeyError, TypeError, ValueError."""
        shapes.check(document, _CONFIG, "config")
        return cls(
            bytes.fromhex(document["realm"]),
            bytes.fromhex(document["repository"]),
            document["version"],
            document["chunk_size"],
            document["epoch"],
            {e["number"]: PublicKey(bytes.fromhex(e["public_key"])) for e in document["epochs"]},
            document["features"],
            tuple(document.get("slots", ())),
            document.get("object_lock_days"),
            {bytes.fromhex(r["writer"]): bytes.fromhex(r["digest"]) for r in document.get("revoked", ())},
            None if document.get("allowed_endpoints") is None else tuple(document["allowed_endpoints"]),
            tuple((first, last) for first, last in document.get("skipped", ())),
            document,
        )


def number_of(key: str) -> int:
    """The number that a key ends with; -1 for another name."""
    try:
        return int(key.rsplit("/", 1)[1])
    except ValueError:
        return -1


def unlock(store: Store, secret: Secret, known: str, only: Container[str] | None = None) -> tuple[ReaderKeys, str]:
    """The keys, and the slot that the secret opens, of all or `only` these; the slot `known` to open is tried first."""
    names = [entry.key.removeprefix("keys/") for entry in store.list("keys/")]
    if only is not None:
        names = [name for name in names if name in only]
    damaged: list[DamageError | RepositoryError] = []
    slots: dict[str, dict[str, Any]] = {}
    for slot in sorted(names, key=lambda n: (n != known, n)):
        key = f"keys/{slot}"
        try:
            slots[slot] = keys.read_slot(fetch(store, key), key)
        except (DamageError, RepositoryError) as error:  # nobody signs a slot: one of a newer version may be anybody's
            damaged.append(error)
    for slot in sorted(slots, key=lambda n: (n != known, keys.cost(slots[n]), n)):
        try:
            found = keys.unwrap(slots[slot], secret, f"keys/{slot}")
        except DamageError as error:
            damaged.append(error)
            continue
        if found:
            return found, slot
    if not names and next(store.list("config/"), None) is None:
        raise NotFoundError(f"there is no repository at {store.url}", "make one with 'vmbackup init'")
    if not names:
        damaged.append(DamageError(f"{store.url} has no key slot left", object_key="keys/"))
    elif known and known not in names:
        damaged.append(
            DamageError(f"keys/{known}, which this host used before, is missing", object_key=f"keys/{known}")
        )
    newer = [error for error in damaged if isinstance(error, RepositoryError)]
    if newer and not slots:
        raise newer[0]
    if damaged:
        first = damaged[0]
        raise DamageError(
            f"{first.message}, and no other slot opens with this passphrase",
            "if it was removed or changed, use the new passphrase; the recovery key opens it too",
            object_key=first.object_key if isinstance(first, DamageError) else None,
        )
    raise AccessError(
        f"the passphrase does not open the repository at {store.url}",
        "check passphrase_file of this repository; the recovery key opens it too",
    )


def settle(
    store: Store, secret: Secret, config: RepositoryConfig, found: tuple[ReaderKeys, str]
) -> tuple[ReaderKeys, str]:
    """The keys of a slot in force that has those of the newest epoch, else of any in force; `found` was opened first.

    A slot that was removed, and that the store has yet, opens nothing. Raises AccessError, DamageError.
    """
    keys_found, slot = found
    in_force = not config.slots or slot in config.slots
    if in_force and config.epoch in keys_found.epochs:
        return found
    best = found if in_force else None
    left = set(config.slots) - {slot}
    while left:
        try:
            other = unlock(store, secret, "", left)
        except (AccessError, DamageError):
            if best is None:
                raise
            break
        if config.epoch in other[0].epochs:
            return other
        best = best or other
        left.discard(other[1])
    if best is None:
        raise AccessError("this passphrase was removed from the repository", "use another one, or the recovery key")
    return best


def read_first(store: Store, identity: Identity) -> RepositoryConfig:
    """The config, as `read_config`; a writer's key says whether it belongs here at all. AccessError, NotFoundError."""
    try:
        return read_config(store, identity)
    except DamageError:
        if identity.reads:  # its key came out of this very store
            raise
        realms = set(_realms_told(store))
        if not realms and next(store.list("keys/"), None) is None:
            raise NotFoundError(f"there is no repository at {store.url}", "make one with 'vmbackup init'") from None
        if realms and identity.realm.hex() not in realms:
            raise AccessError(
                f"this host's writer key belongs to another repository than the one at {store.url}",
                "correct url or writer_key_file, or get a key by 'vmbackup key add-writer' of this repository",
            ) from None
        raise


def _realms_told(store: Store) -> Iterator[str]:
    """The realms that configs name, whoever signed them."""
    start = frames.PREAMBLE.size + frames.LENGTH.size
    for entry in store.list("config/"):
        with contextlib.suppress(DamageError):
            yield str(frames.parse(fetch(store, entry.key)[start : -frames.SIGNATURE], entry.key).get("realm"))


def read_config(store: Store, identity: Identity) -> RepositoryConfig:
    """The highest config with a valid signature, its copy where it is damaged. Raises DamageError, RepositoryError."""
    return ConfigReader(store, identity).read()


class ConfigReader:
    """Reads the config, again and again. What is no version of it, whoever put it there, counts for nothing.

    `occupied` are the numbers under which anything lay at the last reading: those above the version that holds by
    garbage. That is remembered as long as it is not changed, so that it is read once; its number is not bounded, or
    whoever puts more would shut the owner out.
    """

    def __init__(self, store: Store, identity: Identity, repository: bytes | None = None) -> None:
        """`repository`: which one it is; that of the oldest version there is unless told."""
        self._store, self._identity, self._repository = store, identity, repository
        self._garbage: dict[Entry, DamageError] = {}
        self.occupied: frozenset[int] = frozenset()

    def read(self) -> RepositoryConfig:
        """The version that holds. Raises DamageError, RepositoryError."""
        entries = {e.key: e for folder in ("config/", "config.copy/") for e in self._store.list(folder)}
        numbers = sorted({number_of(key) for key in entries} - {-1}, reverse=True)
        errors: list[DamageError] = []
        found = self._first(entries, numbers, errors)
        if found is not None and self._repository is None:
            first = self._first(entries, numbers[::-1], []) or found
            self._repository = first.repository
        if found is not None and found.repository != self._repository:  # another one of the realm, with the same keys
            found = self._first(entries, numbers, errors)
        self.occupied = frozenset(numbers)
        if found is None:
            if errors:
                raise errors[0]
            hint = "restore the folder 'config' or 'config.copy' of the store"
            raise DamageError(f"{self._store.url} has no config left", hint)
        if found.features["refuse"]:
            raise RepositoryError(
                f"the repository uses features of a newer vmbackup: {', '.join(found.features['refuse'])}",
                "upgrade vmbackup on this host",
            )
        return found

    def _first(
        self, entries: dict[str, Entry], numbers: Iterable[int], errors: list[DamageError]
    ) -> RepositoryConfig | None:
        """The first of these versions that is one."""
        for number in numbers:
            for folder in ("config", "config.copy"):
                entry = entries.get(f"{folder}/{number}")
                try:
                    if entry is not None:
                        return self._config(entry, number)
                except DamageError as error:
                    errors.append(error)
        return None

    def _config(self, entry: Entry, number: int) -> RepositoryConfig:
        """One version. Raises DamageError where it is none."""
        key = entry.key
        if known := self._garbage.get(entry):
            raise known
        try:
            document = frames.open_document(fetch(self._store, key), b"CONF", key, self._identity.verify_key)
            config = RepositoryConfig.from_document(document)
        except DamageError as error:
            self._garbage[entry] = error
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DamageError(f"{key} lacks what a config must have", object_key=key) from error
        if config.version != number or config.realm != self._identity.realm:
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        if self._repository not in (None, config.repository):
            raise DamageError(f"{key} is of another repository", object_key=key)
        return config
