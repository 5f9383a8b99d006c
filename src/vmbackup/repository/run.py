"""A run of a writer over one guest's history: one or more sessions, ended by a restore point."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from vmbackup.errors import DamageError, JobConflictError, RepositoryError
from vmbackup.repository import session as sessions
from vmbackup.repository.catalog import Catalog, SessionRef
from vmbackup.repository.crypto import META
from vmbackup.repository.dedup import SparseIndex
from vmbackup.repository.layout import Lineage
from vmbackup.repository.nodes import Node, Ref
from vmbackup.repository.packs import PackBuilder
from vmbackup.repository.points import Point, encode_table
from vmbackup.repository.repository import PointList, Repository, newest
from vmbackup.repository.salvage import salvage
from vmbackup.repository.session import Session
from vmbackup.repository.stock import Lost, Stock
from vmbackup.storage_backends import ObjectMissing

# A killed run loses no more than this of its stored chunks where its host cannot salvage them.
PARTIAL_BYTES = 16 << 30
# Another host's session of the same guest that is older than this is taken for dead: both committing is harmless.
RIVAL_SECONDS = 3600.0
_META_BYTES = 4 << 20


class Run:
    """The writer's side of a backup run.

    `open` keeps the protocol's order; then the engine stores packs through `begin_pack` and the session's `put_pack`
    (any thread), nodes through `store_node`, and commits (one thread).

    `points` are the guest's restore points, `parent` the newest or None, `lost` the packs of the parent that are gone;
    `number` of a session is its place in the session table.
    """

    def __init__(self, repository: Repository, lineage: Lineage, host: str) -> None:
        self.repository, self.lineage, self.host = repository, lineage, host
        self.catalog: Catalog = repository.catalog(lineage.group)
        self.warnings: list[str] = []
        self.parent: Point | None = None
        self.points: list[Point] = []
        self._partials: list[Point] = []
        self.partial_bytes = PARTIAL_BYTES
        self.uses: Counter[int] = Counter()
        self.sparse = SparseIndex(self.catalog)
        self.lost = Lost(self.catalog, ())
        self._table: dict[int, SessionRef] = {}
        self._next = 1
        self._lock = threading.Lock()
        self._closing: list[Session] = []
        self._sessions: list[Session] = []
        self._session: Session
        self._meta: PackBuilder | None = None
        self._id_key = self.catalog.keys.chunk_id_key()

    @classmethod
    def open(cls, repository: Repository, lineage: Lineage, host: str) -> "Run":
        """Pins a session, then reads what the run relies on.

        The caller holds this host's lock of the guest, so sessions of this host are dead and are salvaged first.
        Raises JobConflictError where another host backs the guest up right now, RepositoryError, DamageError.
        """
        run = cls(repository, lineage, host)
        run._salvage()
        run._session = run._pin_session()
        try:
            found = run._read_protocol()
            run._give_way(found)
            run._adopt(found)
        except BaseException:
            run._session.unpin()  # nothing was written yet
            raise
        return run

    def _pin_session(self) -> Session:
        self.repository.recheck()
        session = Session(self.repository, self.lineage, 0, self.host)
        session.pin()
        self._sessions.append(session)
        return session

    def _read_protocol(self) -> PointList:
        """Rules W2 and W3, in this order."""
        group = self.lineage.group
        sessions.refuse_unknown(self.repository, f"condemned/{group}/")
        found = self.repository.read_points(self.lineage)
        sessions.refuse_unknown(self.repository, f"trash/{group}/")
        sessions.refuse_unknown(self.repository, f"dead/{group}/")
        return found

    def _salvage(self) -> None:
        for entry in list(self.repository.store.list(self.lineage.prefix("sessions"))):
            session = bytes.fromhex(entry.key.rsplit("/", 1)[1])
            try:
                if self._host_of(session) == self.host:
                    salvage(self.repository, self.lineage, session, self.host)
            except DamageError as error:
                self.warnings.append(f"a killed run's chunks cannot be found again: {error.message}")

    def _host_of(self, session: bytes) -> str | None:
        try:
            data = self.repository.store.get(self.lineage.pin(session))
        except ObjectMissing:
            return None
        return str(sessions.read_pin(self.repository, self.lineage, session, data)["host"])

    def _give_way(self, found: PointList) -> None:
        """Two hosts, one guest: the higher session id gives way to a live lower one."""
        for entry in self.repository.store.list(self.lineage.prefix("sessions")):
            rival = bytes.fromhex(entry.key.rsplit("/", 1)[1])
            if rival == self._session.id or rival in found.ended:
                continue
            if time.time() - entry.modified > RIVAL_SECONDS:
                self.warnings.append(f"another host began a backup of this guest and never ended it ({entry.key})")
            elif rival < self._session.id:
                raise JobConflictError(
                    "another host is backing this guest up at this moment",
                    "let it finish; a guest that runs on two hosts at once is in danger",
                )

    def _adopt(self, found: PointList) -> None:
        """The parent, its session table, and the chunks of killed runs."""
        self.warnings += [error.message for error in found.damaged]
        self.points = found.points
        self.parent = parent = newest(found.points)
        if parent:
            self._table = dict(parent.table)
            self.lost = Lost(self.catalog, self._table.values())
            self.uses = Counter(parent.uses)
            self._next = parent.public["next_session_number"]
        self._session.number = self._take_number()
        known = {ref.session for ref in self._table.values()}
        for partial in found.partials:
            if partial.session not in known:
                self._adopt_partial(partial)

    def _adopt_partial(self, partial: Point) -> None:
        ref = partial.own_ref(self._take_number())
        try:
            self.sparse.add(ref, Stock(self.catalog).lost(ref))
        except DamageError as error:
            self.warnings.append(f"a killed run's chunks cannot be found again: {error.message}")
            return
        self._table[ref.number] = ref
        self._partials.append(partial)

    def _take_number(self) -> int:
        number = self._next
        self._next += 1
        return number

    @property
    def session(self) -> Session:
        """The session that new packs belong to."""
        return self._session

    @property
    def stored_bytes(self) -> int:
        """Bytes of all objects that the run stored."""
        return sum(session.stored_bytes for session in self._sessions)

    def ref(self, number: int) -> SessionRef:
        """The session of that number in the parent's table or among the killed runs."""
        return self._table[number]

    def load_node(self, chunk_size: int) -> Callable[[Ref, int], Node]:
        """A loader of the parent's map nodes."""
        return lambda ref, first: self.catalog.node(ref, first, self._table[ref.session], chunk_size)

    # Writing

    def begin_pack(self, builder: PackBuilder, kind: str) -> Session:
        """Starts a pack in the current session; the caller hands both back to `put_pack`."""
        with self._lock:
            session = self._session
            session.begin_pack(builder, kind)
        return session

    def store_node(self, node: Node) -> Ref:
        """Puts a map node into the session's meta pack."""
        data = node.encode()
        if self._meta is None:
            self._meta = PackBuilder(_META_BYTES)
            self._meta_session = self.begin_pack(self._meta, META)
        elif len(self._meta) == 0:
            self._meta_session = self.begin_pack(self._meta, META)
        elif not self._meta.fits(len(data)):
            self.flush_meta()
            self._meta_session = self.begin_pack(self._meta, META)
        node_id = blake3(data, key=self._id_key).digest()
        slot = self._meta.add(node_id, data)
        return Ref(node.level, node.chunks, self._meta_session.number, self._meta.number, slot, node_id)

    def flush_meta(self) -> None:
        """Stores the meta pack in the making."""
        if self._meta is not None and len(self._meta):
            self._meta.check(range(len(self._meta)))
            self._meta_session.put_pack(self._meta)
            self._meta.clear()

    def keep_partial(self) -> None:
        """Called between units of work: a long run commits what it has as a partial, and goes on in a new session."""
        if self._session.stored_bytes >= self.partial_bytes:
            self.flush_meta()
            following = self._pin_session()
            with self._lock:
                following.number = self._take_number()
                self._closing.append(self._session)
                self._session = following
        for session in [s for s in self._closing if s.pending == 0]:
            self._closing.remove(session)
            session.commit_partial()
            self._check_still_valid(self._read_protocol())

    def _check_still_valid(self, found: PointList) -> None:
        """Rules W2 and W3 for the session that goes on and was pinned before: what it relies on must still stand."""
        valid = {point.session for point in found.points + found.partials}
        relied = {self.parent.session} if self.parent else set()
        relied |= {partial.session for partial in self._partials}
        relied |= {session.id for session in self._sessions if session.index_ref}
        if not relied <= valid:
            raise RepositoryError(
                "restore points that this run builds on were forgotten while it ran: nothing was committed",
                "run the backup again; its chunks are found again",
            )

    def commit(self, public: dict[str, Any], documents: list[dict[str, str]]) -> Point:
        """The restore point, with seq, parent and table put in. All packs are stored. Raises RepositoryError."""
        self.flush_meta()
        for session in self._closing:
            session.commit_partial()
        own = self._session.close_index()
        written = {s.number: s.index_ref for s in self._sessions if s.index_ref}
        table = {n: ref for n, ref in {**self._table, **written, own.number: own}.items() if self.uses[n] > 0}
        parent = self.parent
        public = {
            **public,
            "seq": parent.seq + 1 if parent else 1,
            "parent": {"session": parent.session.hex(), "digest": parent.digest.hex()} if parent else None,
            "next_session_number": self._next,
            "features": [],
        }
        point = self._session.commit(public, encode_table(table, self.uses), documents)
        self._session.unpin()
        return point

    def abandon(self) -> None:
        """The run failed: what it stored becomes a partial, for the next one to find. No thread writes any more."""
        for session in self._sessions:
            if session.stored_bytes:
                salvage(self.repository, self.lineage, session.id, self.host)
            else:
                session.unpin()  # it holds nothing and will never commit
