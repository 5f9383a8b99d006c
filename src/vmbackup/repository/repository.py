"""A repository: made, opened with a secret, its restore points read."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial

from vmbackup.errors import DamageError, NotFoundError, RepositoryError, UsageError
from vmbackup.repository import keys, locks, making, points, residency, tables, tombstones, twins
from vmbackup.repository.cache import Cache
from vmbackup.repository.catalog import Catalog
from vmbackup.repository.keyring import DEFAULT_GROUP, Keyring, being_made
from vmbackup.repository.keys import Identity, ReaderKeys, Secret
from vmbackup.repository.layout import ORIGIN_BYTES, Lineage
from vmbackup.repository.objects import Objects
from vmbackup.repository.opening import RepositoryConfig, read_first, settle, unlock
from vmbackup.repository.pointcache import PointCache
from vmbackup.repository.points import MOVES, PARTIAL, POINT, Point
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import ObjectExists, ObjectMissing, ObjectTruncated, Store, occupants

DEFAULT_CHUNK_SIZE = 64 << 10  # QEMU's bitmap granularity: an incremental reads and stores exactly the dirty clusters
MIN_CHUNK_SIZE, MAX_CHUNK_SIZE = 4 << 10, 16 << 20


@dataclass(frozen=True)
class PointList:
    """What lies below `points/` and is not forgotten: restore points newest first, partials, errors of unreadable ones.

    `moves`: the tables of moves that count, for their signers may collect. `ended`: the sessions that can never commit
    any more, by their histories; `dead`: others that cannot, in whatever history. `forgotten`: sessions that are.
    `twins`: further copies of a point that is listed, made by two hosts at once; `twin_of`: by a twin's key that point.
    `copied`: whose restore points stand here as proved copies: history and origin.
    `quarantined`: what revoked writers committed since, of any kind. `backdated`: points that claim to be older than
    the key that signed them.
    """

    points: list[Point]
    partials: list[Point]
    damaged: list[DamageError]
    ended: set[tuple[Lineage, bytes]]
    dead: set[bytes] = field(default_factory=set)
    forgotten: set[bytes] = field(default_factory=set)
    moves: list[Point] = field(default_factory=list)
    twins: list[Point] = field(default_factory=list)
    quarantined: list[Point] = field(default_factory=list)
    twin_of: dict[str, Point] = field(default_factory=dict)
    copied: set[tuple[Lineage, bytes]] = field(default_factory=set)
    backdated: list[Point] = field(default_factory=list)

    def has_ended(self, lineage: Lineage, session: bytes) -> bool:
        """Whether that session can never commit any more, forgotten ones too."""
        return (lineage, session) in self.ended or session in self.dead

    @cached_property
    def doubtful(self) -> list[list[Point]]:
        """Points of one history that claim one origin: at most one of each is genuine, whoever signed it."""
        return twins.doubtful(self.points)

    def name(self, point: Point) -> str:
        """The shortest name that means this point and no other that is listed or in quarantine."""
        same = self._by_id.get(point.id, [point])
        if len(same) < 2:
            return point.id
        if sum(other.long_id == point.long_id for other in same) < 2:
            return point.long_id
        return point.key

    @cached_property
    def _by_id(self) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = defaultdict(list)
        for point in (*self.points, *(p for p in self.quarantined if p.kind == POINT)):
            found[point.id].append(point)
        return found

    @property
    def committed(self) -> list[Point]:
        """What needs objects: restore points, twins, partials, and what is in quarantine."""
        return [*self.points, *self.twins, *self.partials, *self.quarantined]


class Repository(Keyring):
    """An open repository. Safe to share between threads.

    `cache`: what this host remembers of it; one that remembers nothing unless it is set.
    """

    def __init__(self, store: Store, identity: Identity, config: RepositoryConfig, trust: Trust) -> None:
        super().__init__(store, identity, config, trust)
        self.cache = Cache()
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
        object_lock_days: int | None = None,
        allowed_endpoints: Iterable[str] | None = None,
        label: str = "init",
        keep_recovery: Callable[[str, str], None] = lambda _id, _key: None,
    ) -> tuple["Repository", str]:
        """Makes a repository in an empty place; gives it and its recovery key. Raises RepositoryError, UsageError.

        With `object_lock_days` every object that a restore point needs is locked for so long and a generation.
        `allowed_endpoints`: the hosts where it may lie, this place among them (`residency`).
        `keep_recovery(id, key)` is called while there is no repository yet: one whose key nobody has is never made.
        """
        if not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE or chunk_size & (chunk_size - 1):
            raise UsageError(f"a chunk size of {chunk_size} bytes is not possible", "use a power of two, 4K to 16M")
        if object_lock_days is not None and not 1 <= object_lock_days <= locks.MOST_DAYS:
            raise UsageError(f"objects cannot be locked for {object_lock_days} days", f"use 1 to {locks.MOST_DAYS}")
        allowed = residency.first(allowed_endpoints, store.place)
        refuse_occupied(store)
        realm, repository = os.urandom(16), os.urandom(16)
        reader = ReaderKeys.generate(realm, DEFAULT_GROUP)
        recovery = os.urandom(32)
        slots = (
            keys.wrap(reader, secret, label),
            keys.wrap(reader, Secret(recovery, "recovery", random=True), "recovery key of init"),
        )
        config = {
            **making.first_config(reader, repository, chunk_size, [slot for slot, _ in slots], object_lock_days),
            "allowed_endpoints": allowed,
        }
        made = cls(store, reader, RepositoryConfig.from_document(config), trust)
        put_first(made.store, making.new_group(reader, DEFAULT_GROUP, 1))
        for slot, data in slots:
            made.store.put(f"keys/{slot}", data)
        made.store.put(*making.enrolment(reader, reader.writer))
        keep_recovery(made.id, keys.format_recovery(recovery))
        made.start(config, slots[0][0])
        return made, keys.format_recovery(recovery)

    @classmethod
    def open(cls, store: Store, key: Secret | WriterKeys, trust: Trust) -> "Repository":
        """Opens with a secret or a writer's key. Raises NotFoundError, AccessError, DamageError, RepositoryError."""
        before = trust.recall(store.place)
        known = before.slot if before else ""
        identity, slot = (key, known) if isinstance(key, WriterKeys) else unlock(Objects(store), key, known)
        config = read_first(Objects(store), identity)
        if isinstance(key, Secret) and isinstance(identity, ReaderKeys):
            identity, slot = settle(Objects(store), key, config, (identity, slot))
        residency.check(config.allowed_endpoints, store.place)
        repository = cls(store, identity, config, trust)
        repository.slot = slot
        trust.check(store.place, repository._seen())
        return repository

    # Restore points

    def catalog(self, group: str | None = None) -> Catalog:
        """The headers and maps of a group, of the own one unless told."""
        group = group or self.home
        if group not in self._catalogs:
            self._catalogs[group] = self.new_catalog(group)
        return self._catalogs[group]

    def new_catalog(self, group: str) -> Catalog:
        """The same, with nothing cached yet."""
        return Catalog(self.store, self.group(group), lambda lineage, known: tables.read(self, lineage, known))

    def survey(self, *, live: bool = False) -> PointList:
        """All restore points, as `read_points`; among the damaged ones also those that are gone.

        A session writes its index before its commit and deletes its pin after it: one that has an index and neither
        has lost its commit. Of a copy that does not matter where another copy of the same point stands.
        """
        found = self.read_points(live=live)
        copied = found.copied
        indexed: dict[tuple[str, str, str], None] = {}
        for entry in self.store.list(self.seen("index")):
            _, group, lineage, name = entry.key.split("/")
            indexed[group, lineage, name.partition("-")[0]] = None
        for group, lineage, name in indexed:
            place, session = Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(name)
            if found.has_ended(place, session) or (place, session[:ORIGIN_BYTES]) in copied:
                continue
            if self.exists(place.pin(session)) or self.exists(place.point(session)):
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

    def read_points(
        self, lineage: Lineage | None = None, *, group: str | None = None, live: bool = False
    ) -> PointList:
        """All restore points, or those of a lineage or group; damaged ones as their errors, forgotten ones left out.

        What there is, and what is forgotten, is read from the store; `live`: each point too, though this host knows it.
        """
        found: list[Point] = []
        damaged: list[tuple[Lineage, bytes, DamageError]] = []
        ended: set[tuple[Lineage, bytes]] = set()
        stored: dict[str, float] = {}
        prefix = lineage.prefix("points") if lineage else f"points/{group}/" if group else self.seen("points")
        known, listed = PointCache(Cache() if live else self.cache, self.identity.writer.private), set()
        for entry in self.store.list(prefix):
            place, session = point_place(entry.key)
            ended.add((place, session))
            stored[entry.key] = entry.modified
            listed.add(entry.key)
            try:
                point = known.get(entry, self.store.get, partial(self._decode, lineage=place, session=session))
                if point is not None:
                    found.append(point)
            except ObjectMissing:
                continue  # forgotten and collected since it was listed
            except (DamageError, ObjectTruncated) as error:
                damage = error if isinstance(error, DamageError) else DamageError(error.message, object_key=entry.key)
                damaged.append((place, session, damage))
        known.close(prefix, listed)
        groups = {lineage.group} if lineage else {group} if group else {p.group for p, _ in ended} | {*self.groups()}
        trash, dead = self._forgotten(groups, lineage)  # after the points: rule W3
        kept = [p for p in found if p.session not in dead and (p.lineage, p.session) not in trash]
        valid = [p for p in kept if self.stands(p)]
        moves = [p for p in valid if p.kind == MOVES and self.writers()[p.writer].may_collect(p.lineage.group)]
        for table in moves:
            self.catalog(table.lineage.group).use([table.move_table()])
        newest_first = sorted((p for p in valid if p.kind == POINT), key=lambda p: (p.time, p.session), reverse=True)
        behind = twins.find(newest_first, stored, self.writers())
        return PointList(
            [p for p in newest_first if p.key not in behind],
            [p for p in valid if p.kind == PARTIAL],
            [error for place, session, error in damaged if session not in dead and (place, session) not in trash],
            ended | trash,
            dead,
            (dead | {session for _, session in trash}) - {p.session for p in kept},
            moves,
            [p for p in newest_first if p.key in behind],
            [p for p in kept if not self.stands(p)],
            behind,
            {(p.lineage, p.origin) for p in newest_first if twins.is_copy(p, self.writers())},
            [p for p in newest_first if twins.is_backdated(p, self.writers())],
        )

    def _forgotten(
        self, groups: Iterable[str], lineage: Lineage | None
    ) -> tuple[set[tuple[Lineage, bytes]], set[bytes]]:
        """Trash first, then dead lists: what moves from one to the other meanwhile is seen."""
        trash: set[tuple[Lineage, bytes]] = set()
        dead: set[bytes] = set()
        for name in sorted(groups):
            trash |= tombstones.trashed(self, name, lineage)
            dead |= tombstones.dead(self, name)
        return trash, dead

    def read_point(self, lineage: Lineage, session: bytes) -> Point | None:
        """One point or partial; None where there is none or "aborted". Raises DamageError."""
        try:
            data = self.store.get(lineage.point(session))
        except ObjectMissing:
            return None
        return self._decode(data, lineage=lineage, session=session)

    def _decode(
        self, data: bytes, verify: points.Verify = points.verify_signature, *, lineage: Lineage, session: bytes
    ) -> Point | None:
        if points.is_abort(data):
            return None
        writers = self.writers_with(points.signer(data, lineage))
        try:
            group = self.group(lineage.group)
        except NotFoundError as error:
            key = lineage.point(session)
            raise DamageError(f"{key} is of a group that there is not", object_key=key) from error
        return points.decode(data, group, lineage, session, writers, verify)

    def stands(self, point: Point) -> bool:
        """Whether its writer was not revoked, or had committed it by then."""
        writer = self.writers().get(point.writer)
        return writer is not None and writer.stands(point.lineage.id, point.session)

    def origin_of(self, point: Point, *, believed: bool = False) -> tuple[str, str]:
        """Realm and session, in hex, of what a point is a copy of; its own where it is not proved one.

        `believed`: what calls itself a copy of another realm's point is one, whoever signed it.
        """
        realm = self.config.realm.hex()
        if point.original is not None:
            return realm, point.original.session.hex()
        told = point.copied_from
        if told is not None and (believed or twins.is_copy(point, self.writers())):
            return told["realm"], told["session"]
        return realm, point.session.hex()

    def documents(self, point: Point) -> dict[str, bytes]:
        """A point's private documents by name. Raises AccessError, DamageError."""
        point = point.original or point
        epoch = point.public["epoch"]
        secret = self.open_envelope(point.lineage.group, point.session, epoch, point.envelope, point.key)
        return points.open_documents(point, secret, self.config.realm)


def refuse_occupied(store: Store) -> None:
    """Raises RepositoryError where a place holds something."""
    if held := next(iter(occupants(store)), None):
        what = "a repository" if next(store.list("config/"), None) else f"other things, such as '{held}'"
        raise RepositoryError(f"{store.url} already holds {what}", "choose another, empty place")


def put_first(store: Store, documents: dict[str, bytes]) -> None:
    """What is put first has fixed names: of two that race for the place one fails here. Raises RepositoryError."""
    try:
        for key, document in documents.items():
            store.put(key, document)
    except ObjectExists:
        raise being_made(store) from None


def newest(found: list[Point]) -> Point | None:
    """The point with the highest seq, then the highest session: the parent of the next."""
    return max(found, key=lambda p: (p.seq, p.session), default=None)


def point_place(key: str) -> tuple[Lineage, bytes]:
    """History and session of a commit, out of its name."""
    _, group, lineage, session = key.split("/")
    return Lineage(group, bytes.fromhex(lineage)), bytes.fromhex(session)
