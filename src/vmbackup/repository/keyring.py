"""The documents of an open repository, and what its key opens: config, groups, enrolments, envelopes."""

import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError
from vmbackup.repository import frames, locks, making, residency, shapes
from vmbackup.repository.catalog import fetch
from vmbackup.repository.crypto import GroupKeys, envelope_info
from vmbackup.repository.enrolments import REVOKED, Enrolments, enrolment_key, revocation_key
from vmbackup.repository.keys import Identity, ReaderKeys
from vmbackup.repository.layout import Lineage
from vmbackup.repository.objects import Objects
from vmbackup.repository.opening import ConfigReader, RepositoryConfig, number_of
from vmbackup.repository.shapes import Hex, Up
from vmbackup.repository.trust import Seen, Trust
from vmbackup.repository.writers import BY_READER, NOT_A_READER, Enrolment, WriterKey
from vmbackup.storage_backends import Entry, ObjectExists, Store

DEFAULT_GROUP = "default"
_GROUP = {"group": str, "realm": Hex(), "number": int, "epoch": int, "sealed": Hex()}
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
        self._enrolments = Enrolments(self.store, identity, config.repository)
        self._configs = ConfigReader(self.store, identity, config.repository)
        self._group_documents: dict[Entry, dict[str, Any] | DamageError] = {}

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
        """A version and its copy. Raises ObjectExists where something lies under that number, another host's or not."""
        signed = frames.sign_document(b"CONF", document, self.reader.signing)
        self.store.put(f"config/{document['version']}", signed)
        with contextlib.suppress(ObjectExists):  # garbage: whoever makes a version puts it here second
            self.store.put(f"config.copy/{document['version']}", signed)

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
                with contextlib.suppress(ObjectExists):
                    self.store.put(key, data)

    def change_config(self, change: Callable[[RepositoryConfig], dict[str, Any]], failed: str) -> None:
        """A new version with the fields that `change` gives for the one that holds; `failed` tells what if it cannot.

        It takes the first number above under which nothing lies. `change` is asked again where another version holds
        in the end; where that has the fields already, it is done. Raises RepositoryError where others are always first.
        """
        for _ in range(_TRIES):
            self.recheck()
            self._complete_config()
            config, fields = self.config, change(self.config)
            if all(name in config.document and config.document[name] == value for name, value in fields.items()):
                return
            number = next(n for n in itertools.count(config.version + 1) if n not in self._configs.occupied)
            document = {**config.document, **fields, "version": number}
            if number > config.version + 1:
                passed = [config.version + 1, number - 1]
                document["skipped"] = [*config.document.get("skipped", ()), passed]
            with contextlib.suppress(ObjectExists):  # another host was first: its version is read, and followed
                self._put_config(document)
                self.recheck()
                if self.config.document == document:
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
        self.config = config = self._configs.read()
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
        signed, damaged = self.group_documents(name)
        errors: list[DamageError | AccessError] = []
        for number in sorted(signed, reverse=True):
            try:
                return self._open_group(name, signed[number], f"groups/{name}/{number}")
            except (DamageError, AccessError) as error:  # of an epoch that began since this key was read
                errors.append(error)
        if errors:
            raise errors[0]
        if name in self._true_groups():
            if damaged:
                raise damaged[0]
            raise DamageError(f"groups/{name}, which holds the keys of group '{name}', is missing")
        raise NotFoundError(f"the repository has no group '{name}'")

    def group_documents(self, name: str) -> tuple[dict[int, dict[str, Any]], list[DamageError]]:
        """A group's documents that the realm signed, by number, and the errors of what else lies there, highest first.

        What was read once is not read again: no name is written twice. Raises RepositoryError (newer).
        """
        signed, damaged = dict[int, dict[str, Any]](), list[DamageError]()
        for entry in sorted(self.store.list(f"groups/{name}/"), key=lambda e: number_of(e.key), reverse=True):
            if entry not in self._group_documents:
                try:
                    self._group_documents[entry] = self._signed_group(name, fetch(self.store, entry.key), entry.key)
                except DamageError as error:
                    self._group_documents[entry] = error
            found = self._group_documents[entry]
            if isinstance(found, DamageError):
                damaged.append(found)
            else:
                signed[found["number"]] = found
                if found["number"] != number_of(entry.key):
                    damaged.append(DamageError(f"{entry.key} does not belong where it lies", object_key=entry.key))
        return signed, damaged

    def _signed_group(self, name: str, data: bytes, key: str) -> dict[str, Any]:
        document = frames.open_document(data, b"GRUP", key, self.verify_key)
        shapes.check(document, _GROUP, key)
        if document["group"] != name or document["realm"] != self.config.realm.hex():
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        return document

    def put_group(self, keys: GroupKeys, epoch: int) -> None:
        """A group's keys, sealed for an epoch, twice: under the first numbers above the others where nothing lies.

        Where somebody else makes the group at the same time, what was first holds for both.
        """
        signed, _ = self.group_documents(keys.group)
        number = highest = max(signed, default=0)
        left = 2
        while left:
            number += 1
            ((key, data),) = making.group_documents(self.reader, keys, epoch, (number,)).items()
            try:
                self.store.put(key, data)
                left -= 1
            except ObjectExists:
                if max(self.group_documents(keys.group)[0], default=0) > highest and left == 2:
                    return

    def make_group(self, name: str) -> None:
        """A new group."""
        self.put_group(making.new_group_keys(self.reader, name), self.config.epoch)

    def _open_group(self, name: str, document: dict[str, Any], key: str) -> GroupKeys:
        shapes.check(document, _GROUP, key)
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
        """The names of all groups that this key sees: a writer its own. Names that nobody signed are none."""
        if not self.can_read:
            return [self.home]
        true = self._true_groups()
        named = {entry.key.split("/")[1] for entry in self.store.list("groups/")}
        return sorted(true | {name for name in named - true if self.group_documents(name)[0]})

    def _true_groups(self) -> set[str]:
        """The groups that there must be: somebody is enrolled for them."""
        return {DEFAULT_GROUP} | {writer.group for writer in self.writers().values()}

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
        check = self._enrolments.revocation if REVOKED in key else self._enrolments.enrolment
        check(key, data)

    def put_enrolment(self, writer: bytes, data: bytes) -> None:
        """An enrolment that the realm signed, under the first name of that writer's where nothing lies."""
        put_first_free(self.store, (enrolment_key(writer, n) for n in itertools.count()), data)

    def revocations(self, writer: bytes) -> dict[str, bytes]:
        """The digests of the revocations of a writer that the realm signed for this repository, by their names."""
        self.forget_writers()
        self.writers()
        return self._enrolments.revocations(writer)

    def put_revocation(self, writer: bytes, data: bytes) -> None:
        """Under the first name where nothing lies; not at all where a valid one lies before that."""
        for number in itertools.count():
            key = revocation_key(writer, number)
            try:
                self.store.put(key, data)
            except ObjectExists:
                if key not in self.revocations(writer):
                    continue  # garbage
            return

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


def put_first_free(store: Store, names: Iterable[str], data: bytes) -> None:
    """Puts an object under the first of the names that nobody occupies."""
    for key in names:
        with contextlib.suppress(ObjectExists):
            store.put(key, data)
            return


def being_made(store: Store) -> RepositoryError:
    """What tells the second one of two that make a repository in one place."""
    return RepositoryError(f"{store.url} is being made a repository by somebody else", "choose another, empty place")
