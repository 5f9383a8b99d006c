"""The documents of an open repository, and what its key opens: config, groups, enrolments, envelopes."""

import contextlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError
from vmbackup.repository import frames, locks, making, residency, shapes
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import GroupKeys, envelope_info
from vmbackup.repository.enrolments import Enrolments
from vmbackup.repository.keys import Identity, ReaderKeys
from vmbackup.repository.layout import Lineage
from vmbackup.repository.objects import Objects
from vmbackup.repository.opening import RepositoryConfig, number_of, read_config
from vmbackup.repository.shapes import Hex, Up
from vmbackup.repository.trust import Seen, Trust
from vmbackup.repository.writers import BY_READER, NOT_A_READER, Enrolment, WriterKey
from vmbackup.storage_backends import ObjectExists, Store

DEFAULT_GROUP = "default"
# A config version is made by one host at a time; this many others may be first.
_TRIES = 8


class Keyring:
    """What the key that a repository was opened with may do and open. Safe to share between threads."""

    def __init__(self, store: Store, identity: Identity, config: RepositoryConfig, trust: Trust) -> None:
        self._objects = Objects(store, locks.seconds(config.object_lock_days))
        self.store: Store = self._objects
        self.identity, self.config = identity, config
        self._trust = trust
        self.slot = ""
        self._groups: dict[str, GroupKeys] = {}
        self._writers: dict[bytes, Enrolment] | None = None
        self._strangers: set[bytes] = set()
        self._enrolments = Enrolments(self.store, identity)

    # Who it is

    @property
    def id(self) -> str:
        """The 8 hex digits that stand in the names of its checkpoints."""
        return self.config.repository.hex()[:8]

    @property
    def can_read(self) -> bool:
        """Whether this key decodes what is stored."""
        return self.identity.reads

    @property
    def reader(self) -> ReaderKeys:
        """All keys of a reader. Raises AccessError for a writer."""
        if isinstance(self.identity, ReaderKeys):
            return self.identity
        raise AccessError("this host's key may not do that", BY_READER)

    @property
    def writer(self) -> WriterKey:
        """What signs restore points and what is forgotten here."""
        return self.identity.writer

    @property
    def verify_key(self) -> Ed25519PublicKey:
        """The realm's public signing key, from the key and never from the store."""
        return self.identity.verify_key

    def check_may_read(self) -> None:
        """Raises AccessError unless this key decodes what is stored."""
        if not self.can_read:
            raise AccessError(NOT_A_READER, BY_READER)

    def check_enrolled(self) -> None:
        """Raises AccessError for a writer that was revoked, DamageError for one whose enrolment is gone."""
        if self.can_read:
            return
        own = self.writers().get(self.writer.id)
        if own is None:
            raise DamageError(
                f"writers/{self.writer.id.hex()}, the enrolment of this host's key, is missing: nothing would count "
                "that it signs",
                "get another key by 'vmbackup key add-writer'",
                object_key=f"writers/{self.writer.id.hex()}",
            )
        if own.revoked:
            raise AccessError(
                f"the key of this host ('{own.name}') was revoked",
                "get another key by 'vmbackup key add-writer'",
            )

    def check_may_change(self) -> None:
        """Raises AccessError unless this key signs the config, as a reader's does; the config is the newest then."""
        _ = self.reader
        self.recheck()

    def check_may_write(self, group: str | None = None) -> None:
        """Raises AccessError unless restore points count that this key signs."""
        self.check_enrolled()
        if not self.writer.enrolment().may_write(group or self.writer.group):
            self._refuse("make restore points", "backup")

    def check_may_collect(self, group: str | None = None) -> None:
        """Raises AccessError unless what this key forgets is forgotten."""
        self.check_enrolled()
        if not self.writer.enrolment().may_collect(group or self.writer.group):
            self._refuse("forget or delete anything", "prune")

    def _refuse(self, what: str, role: str) -> None:
        own = self.writer
        raise AccessError(
            f"the key of this host ('{own.name}', role {own.role}, group {own.group}) may not {what}",
            f"use a key of role {role} ('vmbackup key add-writer --role {role}'), or run this with the passphrase",
        )

    # The config

    def _put_config(self, document: dict[str, Any]) -> None:
        """A version and its copy. Raises ObjectExists where another host made that version."""
        signed = frames.sign_document(b"CONF", document, self.reader.signing)
        for folder in ("config", "config.copy"):
            self.store.put(f"{folder}/{document['version']}", signed)

    def start(self, document: dict[str, Any], slot: str) -> None:
        """The first config of a repository that is just made, and that `slot` opens. Raises RepositoryError."""
        self.slot = slot
        try:
            self._put_config(document)
        except ObjectExists:
            raise being_made(self.store) from None
        self._trust.forget(self.store.place)
        self._trust.check(self.store.place, self._seen())

    def _complete_config(self) -> None:
        """Stores again what a writer of the version that holds was kept from: one of its two copies."""
        version = self.config.version
        held = {folder: f"{folder}/{version}" for folder in ("config", "config.copy")}
        present = [key for folder, key in held.items() for entry in self.store.list(f"{folder}/") if entry.key == key]
        if len(present) == 1:
            data = fetch(self.store, present[0])
            frames.open_document(data, b"CONF", present[0], self.verify_key)
            for key in held.values():
                self.store.put(key, data)

    def change_config(self, change: Callable[[RepositoryConfig], dict[str, Any]], failed: str) -> None:
        """A new version with the fields that `change` gives for the one that holds; `failed` tells what if it cannot.

        Raises RepositoryError where other hosts are always first.
        """
        for _ in range(_TRIES):
            self.recheck()
            self._complete_config()
            fields = change(self.config)
            with contextlib.suppress(ObjectExists):  # another host was first: its version is read, and followed
                self._put_config({**self.config.document, **fields, "version": self.config.version + 1})
                self.recheck()
                return
        raise RepositoryError(
            f"{failed}, but other hosts change the config at the same time: it is not listed there",
            "run the command again",
        )

    def _seen(self) -> Seen:
        config = self.config
        verify = self.verify_key.public_bytes_raw().hex()
        return Seen(config.repository.hex(), config.realm.hex(), verify, config.version, self.slot)

    def recheck(self) -> None:
        """Reads the config again, as before each commit. Raises RepositoryError where a newer one forbids writing.

        And AccessError where it lists the own key as revoked.
        """
        before = self.config.version
        self.config = config = read_config(self.store, self.identity)
        residency.check(config.allowed_endpoints, self.store.place)
        self._trust.check(self.store.place, self._seen())
        if config.version != before:
            self.forget_writers()
        self.check_enrolled()
        if config.features["read_only"]:
            raise RepositoryError(
                f"the repository uses features of a newer vmbackup: {', '.join(config.features['read_only'])}",
                "this version may only read it; upgrade vmbackup on this host",
            )

    # Groups

    @property
    def home(self) -> str:
        """The group that this key writes to unless told."""
        return self.writer.group

    def group(self, name: str | None = None) -> GroupKeys:
        """The keys of a group, of the own one unless told. Raises AccessError, NotFoundError, DamageError."""
        name = name or self.home
        if name not in self._groups:
            self._groups[name] = self._read_group(name)
        return self._groups[name]

    def _read_group(self, name: str) -> GroupKeys:
        """The highest number that can be read: init writes two, so that damage to one costs nothing."""
        if not isinstance(self.identity, ReaderKeys):
            if name == self.home:
                return self.identity.keys
            raise AccessError(f"this host's key is of group '{self.home}', not of '{name}'", BY_READER)
        errors: list[DamageError | AccessError] = []
        for entry in sorted(self.store.list(f"groups/{name}/"), key=lambda e: number_of(e.key), reverse=True):
            try:
                data = fetch(self.store, entry.key)
                document = frames.open_document(data, b"GRUP", entry.key, self.verify_key)
                return self._open_group(name, document, entry.key)
            except (DamageError, AccessError) as error:  # of an epoch that began since this key was read
                errors.append(error)
        if errors:
            raise errors[0]
        if name == DEFAULT_GROUP or next(self.store.list(f"points/{name}/"), None):
            raise DamageError(f"groups/{name}, which holds the keys of group '{name}', is missing")
        raise NotFoundError(f"the repository has no group '{name}'")

    def _open_group(self, name: str, document: dict[str, Any], key: str) -> GroupKeys:
        shapes.check(document, {"group": str, "realm": Hex(), "epoch": int, "sealed": Hex()}, key)
        if document["group"] != name or document["realm"] != self.config.realm.hex():
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        epoch = document["epoch"]
        private = self.identity.private(epoch)
        opened = private.open(making.group_info(self.config.realm, name, epoch), bytes.fromhex(document["sealed"]), key)
        body = frames.parse(opened, key)
        shapes.check(body, {"id_keys": [{"number": Up(0xFFFF), "key": Hex(32)}], "lineage_key": Hex(32)}, key)
        id_keys = {k["number"]: bytes.fromhex(k["key"]) for k in body["id_keys"]}
        if not id_keys:
            raise DamageError(f"{key} holds no id key", object_key=key)
        return GroupKeys(self.config.realm, name, id_keys, bytes.fromhex(body["lineage_key"]))

    def groups(self) -> list[str]:
        """The names of all groups that this key sees: a writer its own."""
        if not self.can_read:
            return [self.home]
        return sorted({entry.key.split("/")[1] for entry in self.store.list("groups/")})

    def seen(self, folder: str) -> str:
        """The prefix of what this key sees of `points` or `index`."""
        return f"{folder}/" if self.can_read else f"{folder}/{self.home}/"

    def lineage(self, kind: str, stable_id: str, group: str | None = None) -> Lineage:
        """Where the history of a guest lies, in the own group unless told."""
        group = group or self.home
        return Lineage(group, self.group(group).lineage(kind, stable_id))

    # Writers

    def writers(self) -> dict[bytes, Enrolment]:
        """The enrolled writers, by id; a reader's own is known without the store."""
        if self._writers is None:
            self._writers = self._enrolments.read(self.config, self.writer.enrolment() if self.can_read else None)
        return self._writers

    def writers_with(self, writer: bytes) -> dict[bytes, Enrolment]:
        """The same, listed again where that one is not known: it may have been enrolled since."""
        if writer not in self.writers() and writer not in self._strangers:
            self._strangers.add(writer)
            self.forget_writers()
        return self.writers()

    def forget_writers(self) -> None:
        """They are listed again when they are needed: others may have been enrolled or revoked."""
        self._writers = None

    def check_enrolment(self, key: str, data: bytes) -> None:
        """Whether it is an enrolment or a revocation of that name. Raises DamageError, RepositoryError."""
        check = self._enrolments.revocation if key.endswith(".revoked") else self._enrolments.enrolment
        check(key, data)

    def unjudged(self) -> list[DamageError]:
        """Revocations that the config lists and that cannot be read: what stands of those writers is not known."""
        self.writers()
        return list(self._enrolments.lost.values())

    # Envelopes

    def open_envelope(self, group: str, session: bytes, epoch: int, envelope: bytes, name: str) -> bytes:
        """A session's secret. Raises AccessError (this key lacks the epoch), DamageError (an envelope of garbage)."""
        private = self.identity.private(epoch)
        try:
            return private.open(envelope_info(self.config.realm, epoch, group, session), envelope, name)
        except AccessError as error:  # the header or point that holds it is authentic: so its writer made it
            message = f"{name} is damaged: its key was made for nobody who could read it"
            raise DamageError(message, object_key=name) from error


def being_made(store: Store) -> RepositoryError:
    """What tells the second one of two that make a repository in one place."""
    return RepositoryError(f"{store.url} is being made a repository by somebody else", "choose another, empty place")
