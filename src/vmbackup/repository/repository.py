"""A repository: made, opened with a secret, its restore points read."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmbackup.errors import AccessError, DamageError, NotFoundError, RepositoryError, UsageError
from vmbackup.repository import frames, keys, making, points, tables, tombstones
from vmbackup.repository.catalog import Catalog, fetch
from vmbackup.repository.crypto import GroupKeys, envelope_info
from vmbackup.repository.keys import Enrolment, ReaderKeys, Secret, SlotInfo
from vmbackup.repository.layout import Lineage
from vmbackup.repository.objects import Objects
from vmbackup.repository.opening import RepositoryConfig, number_of, read_config, unlock
from vmbackup.repository.points import MOVES, PARTIAL, POINT, Point
from vmbackup.repository.trust import Seen, Trust
from vmbackup.storage_backends import ObjectExists, ObjectMissing, ObjectTruncated, Store, occupants

DEFAULT_CHUNK_SIZE = 64 << 10  # QEMU's bitmap granularity: an incremental reads and stores exactly the dirty clusters
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 4 << 10, 16 << 20
DEFAULT_GROUP = "default"
# A config version is made by one host at a time; this many others may be first.
_TRIES = 8


@dataclass(frozen=True)
class PointList:
    """What lies below `points/` and is not forgotten: restore points newest first, partials, errors of unreadable ones.

    `moves`: the tables of moves that count, for their signers may collect. `ended`: the sessions that can never commit
    any more, forgotten ones too.
    """

    points: list[Point]
    partials: list[Point]
    damaged: list[DamageError]
    ended: set[bytes]
    forgotten: set[bytes] = field(default_factory=set)
    moves: list[Point] = field(default_factory=list)


class Repository:
    """An open repository, with a reader's keys. Safe to share between threads."""

    def __init__(self, store: Store, reader: ReaderKeys, config: RepositoryConfig, trust: Trust) -> None:
        self.store: Store = Objects(store)
        self.reader, self.config = reader, config
        self._trust = trust
        self._slot = ""
        self._groups: dict[str, GroupKeys] = {}
        self._writers: dict[bytes, Enrolment] | None = None
        self._catalogs: dict[str, Catalog] = {}

    # Making and opening

    @classmethod
    def create(
        cls,
        store: Store,
        secret: Secret,
        trust: Trust,
        *,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        label: str = "init",
        keep_recovery: Callable[[str, str], None] = lambda _id, _key: None,
    ) -> tuple["Repository", str]:
        """Makes a repository in an empty place; gives it and its recovery key. Raises RepositoryError, UsageError.

        `keep_recovery(id, key)` is called while there is no repository yet: one whose key nobody has is never made.
        """
        if not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
            raise UsageError(f"a chunk size of {chunk_size} bytes is not possible", "use a power of two, 4K to 16M")
        if held := next(iter(occupants(store)), None):
            what = "a repository" if next(store.list("config/"), None) else f"other things, such as '{held}'"
            raise RepositoryError(f"{store.url} already holds {what}", "choose another, empty place")
        realm, repository = os.urandom(16), os.urandom(16)
        reader = ReaderKeys.generate(realm, DEFAULT_GROUP)
        recovery = os.urandom(32)
        slots = (
            keys.wrap(reader, secret, label),
            keys.wrap(reader, Secret(recovery, "recovery", random=True), "recovery key of init"),
        )
        config = making.first_config(reader, repository, chunk_size, [slot for slot, _ in slots])
        made = cls(store, reader, RepositoryConfig.from_document(config), trust)
        made._slot = slots[0][0]
        try:  # first, under fixed names: of two that race for the place one fails here
            for key, document in making.new_group(reader, DEFAULT_GROUP, 1).items():
                store.put(key, document)
        except ObjectExists:
            raise RepositoryError(
                f"{store.url} is being made a repository by somebody else", "choose another, empty place"
            ) from None
        for slot, data in slots:
            store.put(f"keys/{slot}", data)
        store.put(*making.own_enrolment(reader))
        keep_recovery(made.id, keys.format_recovery(recovery))
        made._put_config(config)
        trust.forget(store.place)
        trust.check(store.place, made._seen())
        return made, keys.format_recovery(recovery)

    def _put_config(self, document: dict[str, Any]) -> None:
        """A version and its copy. Raises ObjectExists where another host made that version."""
        signed = frames.sign_document(b"CONF", document, self.reader.signing)
        for folder in ("config", "config.copy"):
            self.store.put(f"{folder}/{document['version']}", signed)

    @classmethod
    def open(cls, store: Store, secret: Secret, trust: Trust) -> "Repository":
        """Opens with a secret. Raises NotFoundError, AccessError, DamageError, RepositoryError."""
        before = trust.recall(store.place)
        reader, slot = unlock(Objects(store), secret, before.slot if before else "")
        config = read_config(Objects(store), reader)
        repository = cls(store, reader, config, trust)
        repository._slot = slot
        trust.check(store.place, repository._seen())
        return repository

    def _seen(self) -> Seen:
        config = self.config
        verify = self.reader.verify_key.public_bytes_raw().hex()
        return Seen(config.repository.hex(), config.realm.hex(), verify, config.version, self._slot)

    def recheck(self) -> None:
        """Reads the config again, as before each commit. Raises RepositoryError where a newer one forbids writing."""
        self.config = config = read_config(self.store, self.reader)
        self._trust.check(self.store.place, self._seen())
        if config.features["read_only"]:
            raise RepositoryError(
                f"the repository uses features of a newer vmbackup: {', '.join(config.features['read_only'])}",
                "this version may only read it; upgrade vmbackup on this host",
            )

    # Keys

    @property
    def id(self) -> str:
        """The 8 hex digits that stand in the names of its checkpoints."""
        return self.config.repository.hex()[:8]

    def group(self, name: str = DEFAULT_GROUP) -> GroupKeys:
        """The keys of a group. Raises NotFoundError, DamageError."""
        if name not in self._groups:
            self._groups[name] = self._read_group(name)
        return self._groups[name]

    def _read_group(self, name: str) -> GroupKeys:
        """The highest number that can be read: init writes two, so that damage to one costs nothing."""
        errors: list[DamageError] = []
        for entry in sorted(self.store.list(f"groups/{name}/"), key=lambda e: number_of(e.key), reverse=True):
            try:
                data = fetch(self.store, entry.key)
                document = frames.open_document(data, b"GRUP", entry.key, self.reader.verify_key)
                return self._open_group(name, document, entry.key)
            except DamageError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if name == DEFAULT_GROUP or next(self.store.list(f"points/{name}/"), None):
            raise DamageError(f"groups/{name}, which holds the keys of group '{name}', is missing")
        raise NotFoundError(f"the repository has no group '{name}'")

    def _open_group(self, name: str, document: dict[str, Any], key: str) -> GroupKeys:
        if document["group"] != name or document["realm"] != self.config.realm.hex():
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        epoch = document["epoch"]
        private = self.reader.epochs.get(epoch)
        if private is None:
            raise AccessError(f"this key cannot open epoch {epoch} of the repository")
        opened = private.open(making.group_info(self.config.realm, name, epoch), bytes.fromhex(document["sealed"]), key)
        body = frames.parse(opened, key)
        id_keys = {k["number"]: bytes.fromhex(k["key"]) for k in body["id_keys"]}
        return GroupKeys(self.config.realm, name, id_keys, bytes.fromhex(body["lineage_key"]))

    def groups(self) -> list[str]:
        """The names of all groups."""
        return sorted({entry.key.split("/")[1] for entry in self.store.list("groups/")})

    def writers(self) -> dict[bytes, Enrolment]:
        """The enrolled writers, by id; this reader's own is known without the store."""
        if self._writers is None:
            own = self.reader.writer
            found = {own.id: Enrolment(own.id, own.role, own.group, own.private.public_key())}
            for entry in self.store.list("writers/"):
                with contextlib.suppress(DamageError):  # verify tells of it; its points tell who signed them
                    writer = self.read_writer(entry.key)
                    found[writer.id] = writer
            self._writers = found
        return self._writers

    def read_writer(self, key: str) -> Enrolment:
        """An enrolment. Raises DamageError, RepositoryError."""
        if key.endswith(".revoked"):
            raise RepositoryError(
                "the repository knows revoked writers, which only a newer vmbackup judges",
                "upgrade vmbackup on this host",
            )
        document = frames.open_document(fetch(self.store, key), b"WRTR", key, self.reader.verify_key)
        if document["realm"] != self.config.realm.hex() or key != f"writers/{document['writer']}":
            raise DamageError(f"{key} does not belong where it lies", object_key=key)
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(document["public_key"]))
        return Enrolment(bytes.fromhex(document["writer"]), document["role"], document["group"], public)

    def lineage(self, kind: str, stable_id: str, group: str = DEFAULT_GROUP) -> Lineage:
        """Where the history of a guest lies."""
        return Lineage(group, self.group(group).lineage(kind, stable_id))

    def catalog(self, group: str = DEFAULT_GROUP) -> Catalog:
        """The headers and maps of a group."""
        if group not in self._catalogs:
            self._catalogs[group] = self.new_catalog(group)
        return self._catalogs[group]

    def new_catalog(self, group: str) -> Catalog:
        """The same, with nothing cached yet."""
        return Catalog(self.store, self.group(group), lambda lineage, known: tables.read(self, lineage, known))

    def open_envelope(self, group: str, session: bytes, epoch: int, envelope: bytes, name: str) -> bytes:
        """A session's secret. Raises AccessError."""
        private = self.reader.epochs.get(epoch)
        if private is None:
            raise AccessError(f"this key cannot open epoch {epoch} of the repository")
        return private.open(envelope_info(self.config.realm, epoch, group, session), envelope, name)

    def slots(self) -> Iterator[SlotInfo | DamageError]:
        """The key slots, damaged ones as their errors."""
        for entry in self.store.list("keys/"):
            try:
                yield keys.slot_info(keys.read_slot(fetch(self.store, entry.key), entry.key))
            except DamageError as error:
                yield error

    def add_slot(self, secret: Secret, label: str) -> str:
        """A further passphrase or recovery key; gives the slot's id."""
        slot, data = keys.wrap(self.reader, secret, label)
        self.store.put(f"keys/{slot}", data)
        self._list_slot(slot)
        return slot

    def _list_slot(self, slot: str) -> None:
        """Puts a slot into a new version of the config: the signed list tells of one that is taken away."""
        for _ in range(_TRIES):
            self.recheck()
            config = self.config
            slots = sorted({*config.slots, slot})
            with contextlib.suppress(ObjectExists):  # another host was first: its version is read, and followed
                self._put_config({**config.document, "version": config.version + 1, "slots": slots})
                self.recheck()
                return
        raise RepositoryError(
            f"key {slot} was added, but other hosts change the config at the same time: it is not listed there",
            "run the command again",
        )

    def add_recovery(self, label: str) -> str:
        """A new recovery key, as people write it."""
        recovery = os.urandom(32)
        self.add_slot(Secret(recovery, "recovery", random=True), label)
        return keys.format_recovery(recovery)

    # Restore points

    def survey(self) -> PointList:
        """All restore points, as `read_points`; among the damaged ones also those that are gone.

        A session writes its index before its commit and deletes its pin after it: one that has an index and neither
        has lost its commit.
        """
        found = self.read_points()
        indexed: dict[tuple[str, str, str], None] = {}
        for entry in self.store.list("index/"):
            _, group, lineage, name = entry.key.split("/")
            indexed[group, lineage, name.partition("-")[0]] = None
        for group, lineage, name in indexed:
            place, session = Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(name)
            if session in found.ended or self.exists(place.pin(session)) or self.exists(place.point(session)):
                continue
            key = place.point(session)
            found.damaged.append(DamageError(f"{key} is missing: its index is there", object_key=key))
        return found

    def exists(self, key: str) -> bool:
        """Whether the store has the object now."""
        try:
            self.store.stat(key)
        except ObjectMissing:
            return False
        return True

    def read_points(self, lineage: Lineage | None = None, *, group: str | None = None) -> PointList:
        """All restore points, or those of a lineage or group; damaged ones as their errors, forgotten ones left out."""
        found: list[Point] = []
        damaged: list[tuple[bytes, DamageError]] = []
        ended: set[bytes] = set()
        prefix = lineage.prefix("points") if lineage else f"points/{group}/" if group else "points/"
        for entry in self.store.list(prefix):
            place, session = _point_place(entry.key)
            ended.add(session)
            try:
                data = self.store.get(entry.key)
                if not points.is_abort(data):
                    found.append(points.decode(data, self.group(place.group), place, session, self.writers()))
            except ObjectMissing:
                continue  # forgotten and collected since it was listed
            except (DamageError, ObjectTruncated) as error:
                damage = error if isinstance(error, DamageError) else DamageError(error.message, object_key=entry.key)
                damaged.append((session, damage))
        gone = self._forgotten(lineage, group)  # after the points: rule W3
        valid = [p for p in found if p.session not in gone]
        newest_first = sorted((p for p in valid if p.kind == POINT), key=lambda p: (p.time, p.session), reverse=True)
        return PointList(
            newest_first,
            [p for p in valid if p.kind == PARTIAL],
            [error for session, error in damaged if session not in gone],
            ended | gone,
            gone,
            [p for p in valid if p.kind == MOVES and self.writers()[p.writer].may_collect(p.lineage.group)],
        )

    def _forgotten(self, lineage: Lineage | None, group: str | None) -> set[bytes]:
        """Trash first, then dead lists: what moves from one to the other meanwhile is seen."""
        groups = [lineage.group] if lineage else [group] if group else self.groups()
        found: set[bytes] = set()
        for name in groups:
            found |= tombstones.trashed(self, name, lineage).keys()
            found |= tombstones.dead(self, name)
        return found

    def read_point(self, lineage: Lineage, session: bytes) -> Point | None:
        """One point or partial; None where there is none or "aborted". Raises DamageError."""
        try:
            data = self.store.get(lineage.point(session))
        except ObjectMissing:
            return None
        if points.is_abort(data):
            return None
        return points.decode(data, self.group(lineage.group), lineage, session, self.writers())

    def documents(self, point: Point) -> dict[str, bytes]:
        """A point's private documents by name. Raises AccessError, DamageError."""
        epoch = point.public["epoch"]
        secret = self.open_envelope(point.lineage.group, point.session, epoch, point.envelope, point.key)
        return points.open_documents(point, secret, self.config.realm)


def newest(found: list[Point]) -> Point | None:
    """The point with the highest seq, then the highest session: the parent of the next."""
    return max(found, key=lambda p: (p.seq, p.session), default=None)


def _point_place(key: str) -> tuple[Lineage, bytes]:
    _, group, lineage, session = key.split("/")
    return Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(session)
