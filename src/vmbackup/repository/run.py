"""A run of a writer over one guest's history: one or more sessions, ended by a restore point."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from blake3 import blake3

from vmbackup.errors import DamageError, VmbackupError
from vmbackup.repository import condemned, damage
from vmbackup.repository import session as sessions
from vmbackup.repository.condemned import TABLE, ObjectName
from vmbackup.repository.crypto import DATA, META
from vmbackup.repository.dedup import SparseIndex
from vmbackup.repository.gather import gather
from vmbackup.repository.hookcache import HookCache
from vmbackup.repository.layout import Lineage, SessionRef, new_session
from vmbackup.repository.locks import RunLocks
from vmbackup.repository.moves import PIN_FIELD
from vmbackup.repository.nodes import Node, Ref
from vmbackup.repository.others import Others
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.placing import Placing
from vmbackup.repository.points import COPY, POINT, Documents, Point, encode_table
from vmbackup.repository.processes import is_alive
from vmbackup.repository.repository import PointList, Repository, newest
from vmbackup.repository.rivals import Rivals
from vmbackup.repository.salvage import salvage
from vmbackup.repository.session import Session
from vmbackup.repository.stock import Lost
from vmbackup.storage_backends import Entry, ObjectMissing, StoreError

# A killed run loses no more than this of its stored chunks where its host cannot salvage them.
PARTIAL_BYTES = 16 << 30
_META_BYTES = 4 << 20


class Run:
    """The writer's side of a backup run.

    `open` keeps the protocol's order; then the engine stores packs through `begin_pack` and the session's `put_pack`
    (any thread), nodes through `store_node`, and commits (one thread).

    `points` are the guest's restore points, `forgotten` sessions that may have been some, `parent` the newest or None,
    `lost` the packs of the parent that nothing may be built on, `placing` leads to what was moved; `number` of a
    session is its place in the table.
    """

    def __init__(self, repository: Repository, lineage: Lineage, host: str, name: Callable[[], bytes]) -> None:
        self.repository, self.lineage, self.host, self._name = repository, lineage, host, name
        self.catalog = repository.new_catalog(lineage.group)  # what is lost since is not cached
        self.warnings: list[str] = []
        self.parent: Point | None = None
        self.points: list[Point] = []
        self.forgotten: set[bytes] = set()
        self.partial_bytes = PARTIAL_BYTES
        self.uses: Counter[int] = Counter()
        self.sparse = SparseIndex(self.catalog)
        self._hooks = HookCache(repository.cache, lineage.group)
        self.lost = Lost(self.catalog, ())
        self.reread: set[str] = set()
        self.placing: Placing
        self._table: dict[int, SessionRef] = {}
        self._next = 1
        self._lock, self._number_lock = threading.Lock(), threading.Lock()
        self._closing: list[Session] = []
        self._sessions: list[Session] = []
        self._others: Others
        self._main: Session
        self._filling: Session
        self._meta: PackBuilder | None = None
        self._locks: RunLocks | None = None
        self._id_key = self.catalog.keys.chunk_id_key()

    @classmethod
    def open(
        cls,
        repository: Repository,
        lineage: Lineage,
        host: str,
        *,
        name: Callable[[], bytes] = new_session,
        choose: Callable[[list[Point]], Point | None] = newest,
        wait: Callable[[float], None] = time.sleep,
    ) -> "Run":
        """Pins a session, then reads what the run relies on.

        The caller holds this host's lock of the guest, so sessions of this host are dead and are salvaged first.
        `name` gives the ids of sessions, each a new one; `choose` picks the parent of the points there are.
        Raises JobConflictError where another host backs the guest up right now, AccessError, RepositoryError,
        DamageError.
        """
        repository.check_may_write(lineage.group)
        run = cls(repository, lineage, host, name)
        run._salvage()
        run._main = run._filling = run._pin_session()
        if days := repository.config.object_lock_days:
            run._locks = RunLocks(repository.store, run.catalog, days, run._main.pinned_at())
        try:
            doomed, found = run._read_protocol()
            run._give_way(found, wait)
            run._adopt(found, doomed, choose)
        except BaseException:
            run._main.give_up()
            raise
        return run

    def _pin_session(self) -> Session:
        self.repository.recheck()
        session = Session(self.repository, self.lineage, 0, self.host, self._name)
        session.pin()
        self._sessions.append(session)
        return session

    def _read_protocol(self) -> tuple[set[ObjectName], PointList]:
        """Rules W2 and W3: condemned lists, then points, trash and dead lists."""
        lists = condemned.read(self.repository.store, self.lineage.group)
        return set().union(*lists.values()), self.repository.read_points(self.lineage)

    def _salvage(self) -> None:
        store = self.repository.store
        pinned = _sessions(store.list(self.lineage.prefix("sessions")))
        ended = set(_sessions(store.list(self.lineage.prefix("points")))) if pinned else set()
        may_drop = True
        for session in pinned:
            try:
                if session in ended:  # it died between commit and clean-up, or may not delete
                    may_drop = may_drop and sessions.drop_pin(self.repository, self.lineage, session)
                    continue
                pin = self._pin_of(session)
                if pin.get("host") == self.host and not is_alive(pin.get(PIN_FIELD, "")):
                    salvage(self.repository, self.lineage, session, self.host)
            except DamageError as error:
                self.warnings.append(f"a killed run's chunks cannot be found again: {error.message}")

    def _pin_of(self, session: bytes) -> dict[str, Any]:
        """What a pin says; nothing where it is gone. Raises DamageError."""
        try:
            data = self.repository.store.get(self.lineage.pin(session))
        except ObjectMissing:
            return {}
        return sessions.read_pin(self.repository, self.lineage, session, data)

    def _give_way(self, found: PointList, wait: Callable[[float], None]) -> None:
        rivals = Rivals(self.repository.store, self.lineage, self._main, self._readable_pin)
        self.warnings += rivals.give_way(found, wait)

    def _readable_pin(self, session: bytes) -> dict[str, Any]:
        try:
            return self._pin_of(session)
        except DamageError:
            return {}

    def _adopt(
        self, found: PointList, doomed: set[ObjectName], choose: Callable[[list[Point]], Point | None]
    ) -> None:
        """The parent, its session table, and the chunks of killed runs."""
        if found.damaged:
            many = f"{len(found.damaged)} restore points of this guest cannot be read, among them: "
            self.warnings.append((many if len(found.damaged) > 1 else "") + found.damaged[0].message)
        self.points, self.forgotten = found.points, found.forgotten
        damaged = set(damage.read(self.repository.store, self.lineage.group).values())
        self.parent = parent = choose(found.points)
        going = {name.session for name in doomed if name.kind == TABLE}  # rule W6 holds for what leads to a pack, too
        self.catalog.use((table.move_table() for table in found.moves), going)
        self.lost = Lost(self.catalog, (), doomed, damaged, self.lineage.id)
        self.placing = Placing(self.catalog, self.lost, self._table, self._take_number)
        if parent:
            for number, ref in parent.table.items():
                self._table[number] = ref
                self.lost.add(ref)
            for lineage in {self._table[number].lineage for number in self.lost.sessions} - {self.lineage.id}:
                self.catalog.learn(lineage)  # of a history beside our own tables are read when something is not there
            self.uses = Counter(parent.uses)
            self._next = parent.public["next_session_number"]
        self._main.number = self._take_number()
        known = {ref.session for ref in self._table.values()}
        for partial in found.partials:
            if partial.session not in known:
                self._adopt_partial(partial, doomed | damaged)
        self._others = Others(self.repository, (self.lineage, found), doomed, self.placing)

    def look_elsewhere(self) -> None:
        """Chunks of the group's other histories are found from here on, as far as this host's cache knows of them."""
        with contextlib.suppress(VmbackupError, StoreError):  # a hint less costs storage
            gather(self.repository, self.lineage)
        self.sparse.join(self._hooks, self._others)

    def _adopt_partial(self, partial: Point, unfit: set[ObjectName]) -> None:
        ref = partial.own_ref(self._take_number())
        try:
            self.sparse.add(ref, Lost(self.catalog, [ref], unfit).packs_of(ref.number))
        except DamageError as error:
            self.warnings.append(f"a killed run's chunks cannot be found again: {error.message}")
            return
        self._table[ref.number] = ref

    def _take_number(self) -> int:
        with self._number_lock:
            number = self._next
            self._next += 1
        return number

    @property
    def session(self) -> Session:
        """The session that commits the restore point: pinned first, it stays open to the end."""
        return self._main

    @property
    def stored_bytes(self) -> int:
        """Bytes of all objects that the run stored."""
        return sum(session.stored_bytes for session in self._sessions)

    def ref(self, number: int) -> SessionRef:
        """The session of that number in the parent's table or among the killed runs. Raises DamageError."""
        try:
            return self._table[number]
        except KeyError:
            key = self.parent.key if self.parent else None
            raise DamageError(f"{key} contradicts its maps", object_key=key) from None

    def load_node(self, chunk_size: int) -> Callable[[Ref, int], Node]:
        """A loader of the parent's map nodes; what they name was moved to stands in them, `sessions` is as stored."""
        locks = self._locks

        def load(ref: Ref, first: int) -> Node:
            node = self.catalog.node(ref, first, self.ref(ref.session), chunk_size)
            if locks:
                locks.read(node)
            return self.placing.of(node) if self.catalog.moves else node

        return load

    # Writing

    def begin_pack(self, builder: PackBuilder) -> Session:
        """Starts a pack of chunks in the session that is filled now; the caller hands both back to `put_pack`."""
        with self._lock:
            session = self._filling
            session.begin_pack(builder, DATA)
        return session

    def store_node(self, node: Node) -> Ref:
        """Puts a map node into the session's meta pack."""
        if self._locks:
            self._locks.stored(node)
        data = node.encode()
        if self._meta is None:
            self._meta = PackBuilder(_META_BYTES)
        elif len(self._meta) and not self._meta.fits(len(data)):
            self.flush_meta()
        if len(self._meta) == 0:
            self._main.begin_pack(self._meta, META)
        node_id = blake3(data, key=self._id_key).digest()
        slot = self._meta.add(node_id, data)
        return Ref(node.level, node.chunks, self._main.number, self._meta.number, slot, node_id)

    def flush_meta(self) -> None:
        """Stores the meta pack in the making."""
        if self._meta is not None and len(self._meta):
            self._meta.check(range(len(self._meta)))
            self._main.put_pack(self._meta)
            self._meta.clear()

    def keep_partial(self) -> None:
        """Called between units of work: a long run fills one session after the other, and commits them as partials.

        Its first session is none of them: pinned before all that the run relies on was read, it stays open, and a
        collector waits for it. So whatever is forgotten meanwhile, what the restore point names is kept.
        """
        if self._filling.stored_bytes >= self.partial_bytes:
            following = self._pin_session()
            with self._lock:
                following.number = self._take_number()
                if self._filling is not self._main:
                    self._closing.append(self._filling)
                self._filling = following
        for session in [s for s in self._closing if s.pending == 0]:
            self._closing.remove(session)
            session.commit_partial()

    def commit(self, public: dict[str, Any], documents: Documents, original: bytes = b"") -> Point:
        """The restore point, with seq, parent and table put in. All packs are stored. Raises RepositoryError.

        A `seq` and a `parent` that `public` has hold. `original`: the object that the point is a replica's copy of.
        """
        self.flush_meta()
        if self._filling is not self._main:
            self._closing.append(self._filling)
        for session in self._closing:
            session.commit_partial()
        own = self._main.close_index()
        written = {s.number: s.index_ref for s in self._sessions if s.index_ref}
        table = {n: ref for n, ref in {**self._table, **written, own.number: own}.items() if self.uses[n] > 0}
        parent = self.parent
        public = {
            "seq": parent.seq + 1 if parent else 1,
            "parent": {"session": parent.session.hex(), "digest": parent.digest.hex()} if parent else None,
            **public,
            "next_session_number": self._next,
            "features": [],
        }
        public.pop("locked_until", None)  # of the original of a copy: what is said of another store
        rows = encode_table(table, self.uses)
        if self._locks:
            public |= self._extend(self._locks, self._main.draft(public, rows))
        point = self._main.commit(public, rows, documents, COPY if original else POINT, original)
        self._main.unpin()
        new = {session.id: session.hooks for session in self._sessions if session.index_ref}
        self._hooks.put(self.lineage.id, max(new), [ref.session for ref in point.table.values()], new)
        self._hooks.merge()
        return point

    def _extend(self, locks: RunLocks, draft: Point) -> dict[str, Any]:
        """Locks what the point needs before it is made; gives what it says of that."""
        try:
            until = locks.extend(draft, self.parent, [session.id for session in self._sessions])
        except DamageError as error:
            told = f"not all that the point needs could be locked: {error.message}"
            return {"warnings": [*draft.public.get("warnings", ()), told]}
        return {"locked_until": until.isoformat()}

    def abandon(self) -> None:
        """The run failed: what it stored becomes a partial, for the next one to find. No thread writes any more."""
        for session in self._sessions:
            if session.stored_bytes:
                salvage(self.repository, self.lineage, session.id, self.host)
            else:
                session.give_up()


def _sessions(entries: Iterable[Entry]) -> list[bytes]:
    return [bytes.fromhex(entry.key.rsplit("/", 1)[1]) for entry in entries]
