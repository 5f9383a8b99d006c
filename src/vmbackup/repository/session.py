"""One session of a writer: its pin, its packs, its index, its commit (docs/repository-format.md, section 10)."""

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from vmbackup.errors import RepositoryError
from vmbackup.repository import frames, points, shapes, tombstones
from vmbackup.repository.crypto import DATA, META, envelope_info, seal, unseal
from vmbackup.repository.index import IndexWriter
from vmbackup.repository.layout import Lineage, SessionRef, new_session
from vmbackup.repository.packs import Birth, PackBuilder
from vmbackup.repository.points import PARTIAL, POINT, Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.shapes import Hex, Up
from vmbackup.storage_backends import DeleteRefused, ObjectExists, ObjectMissing

SECRET_BYTES = 32
_PIN = {"host": str, "envelope": Hex(), "epoch": Up((1 << 32) - 1), "id_key": Up(0xFFFF)}


class Session:
    """An open session. Packs may be begun and put by several threads; the rest is for one.

    `number` is its number in the session table; `stored_bytes` counts objects put so far;
    `hooks` are those of its packs, once the index is closed.
    """

    def __init__(
        self, repository: Repository, lineage: Lineage, number: int, host: str, name: Callable[[], bytes] = new_session
    ) -> None:
        self.repository, self.lineage, self.number, self.host = repository, lineage, number, host
        self.id = name()
        self.keys = repository.group(lineage.group)
        self.secret = os.urandom(SECRET_BYTES)
        config = repository.config
        self.epoch = config.epoch
        info = envelope_info(config.realm, self.epoch, lineage.group, self.id)
        self.envelope = config.public_keys[self.epoch].seal(info, self.secret)
        self.stored_bytes = 0
        self.pending = 0
        self._numbers = {DATA: 0, META: 0}
        self._lock = threading.Lock()
        self._births = {
            DATA: Birth(self.id, lineage.id, self.epoch, self.keys.current, self.envelope),
            META: Birth(self.id, lineage.id, 0, self.keys.current, b""),
        }
        self._index: IndexWriter | None = IndexWriter(self.keys, self._births[DATA], self._put_index)
        self.index_ref: SessionRef | None = None
        self.hooks: dict[int, bytes] = {}

    def pin(self, **more: object) -> None:
        """Rule W1: nothing is read that the run relies on before this has returned. `more` stands in the pin."""
        head = frames.preamble(b"PINS", self.keys.current)
        body = {
            "host": self.host,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "envelope": self.envelope.hex(),
            "epoch": self.epoch,
            "id_key": self.keys.current,
            **more,
        }
        key = self.keys.derive(self.keys.current, "pin", self.id)
        self.repository.store.put(self.lineage.pin(self.id), head + seal(key, head, frames.canonical(body)))

    def pinned_at(self) -> float:
        """When it was pinned, by the store's clock: seconds since 1970."""
        return self.repository.store.stat(self.lineage.pin(self.id)).modified

    def unpin(self) -> None:
        """Rule W10: only after the commit or "aborted"."""
        drop_pin(self.repository, self.lineage, self.id)

    def give_up(self) -> None:
        """Ends a session that has stored nothing and will never commit."""
        if not drop_pin(self.repository, self.lineage, self.id):  # a collector would wait for it
            create_point(self.repository, self.lineage, self.id, frames.preamble(b"ABRT"))

    def begin_pack(self, builder: PackBuilder, kind: str) -> None:
        """Gives a builder the next number of its kind."""
        with self._lock:
            number = self._numbers[kind]
            self._numbers[kind] += 1
            self.pending += 1
        builder.begin(kind, self.keys, self._births[kind], self.secret, number)

    def put_pack(self, builder: PackBuilder) -> int:
        """Stores a finished pack durably and indexes it; gives the object's size."""
        data, sealed = builder.finish()
        self.repository.store.put(self.lineage.pack(builder.kind, self.id, builder.number), data)
        with self._lock:
            if self._index is None:
                raise RuntimeError("the session's index is closed")
            self._index.add(
                builder.kind, builder.number, len(data), len(builder), sealed, builder.births, builder.ids()
            )
            self.pending -= 1
            self.stored_bytes += len(data)
        return len(data)

    def drop_pack(self) -> None:
        """A pack that was begun got no slot: its number stays unused."""
        with self._lock:
            self.pending -= 1

    def _put_index(self, number: int, data: bytes) -> None:
        self.repository.store.put(self.lineage.index(self.id, number), data)
        self.stored_bytes += len(data)

    def close_index(self) -> SessionRef:
        """Writes the index root, once; all packs are stored by then."""
        if self.index_ref is None:
            if self._index is None:
                raise RuntimeError("the session's index was not finished")
            number, digest = self._index.finish()
            self.hooks = self._index.hooks
            self._index = None  # a long run has many sessions: what is written is not held
            self.index_ref = SessionRef(self.number, self.id, self.lineage.id, number, digest)
        return self.index_ref

    def _public(self, public: dict[str, Any]) -> dict[str, Any]:
        ref = self.close_index()
        return {
            "host": self.host,
            **public,
            "epoch": self.epoch,
            "envelope": self.envelope.hex(),
            "index": {"number": ref.root, "digest": ref.digest.hex()},
        }

    def draft(self, public: dict[str, Any], table: bytes) -> Point:
        """What `commit` would create: not stored, not signed."""
        return points.draft(self.lineage, self.id, self._public(public), table)

    def commit_partial(self) -> None:
        """Keeps the chunks so far: the session ends as a partial."""
        ref = self.close_index()
        put_partial(self.repository, self.lineage, self.id, ref, self.host, self.epoch, self.envelope)
        self.unpin()

    def commit(
        self,
        public: dict[str, Any],
        table: bytes,
        documents: points.Documents,
        kind: int = POINT,
        original: bytes = b"",
    ) -> Point:
        """Creates the restore point, and reads it back; `original` is the object that a COPY is one of.

        Raises RepositoryError if the session was aborted.
        """
        public, repository = self._public(public), self.repository
        data = points.encode(
            kind, self.keys, repository.writer, self.lineage, self.id, self.secret, public, table, documents, original
        )
        create_point(repository, self.lineage, self.id, data)
        return points.decode(data, self.keys, self.lineage, self.id, repository.writers())


def drop_pin(repository: Repository, lineage: Lineage, session: bytes) -> bool:
    """Deletes a pin; False where the host's key to the store may not: a prune does, once the session has ended."""
    try:
        repository.store.delete(lineage.pin(session))
    except DeleteRefused:
        return False
    return True


def create_point(repository: Repository, lineage: Lineage, session: bytes, data: bytes) -> None:
    """Rules W8 and W9: create once, read back, look at the dead lists. Raises RepositoryError."""
    store, key = repository.store, lineage.point(session)
    repository.recheck()
    try:
        store.put(key, data)
    except ObjectExists:
        raise RepositoryError(
            "this session was ended by a collector or another host while it ran: nothing was committed",
            "run the backup again; its chunks are found again",
        ) from None
    try:
        same = store.get(key) == data
    except ObjectMissing:
        same = False
    if not same:
        raise RepositoryError(
            f"{key} does not read back as it was written", "check the store, then run the backup again"
        )
    if session in tombstones.dead(repository, lineage.group):  # rule W9
        raise RepositoryError("this session was ended and cleaned up while it ran", "run the backup again")


def put_partial(
    repository: Repository, lineage: Lineage, session: bytes, ref: SessionRef, host: str, epoch: int, envelope: bytes
) -> None:
    """Commits a partial of a session whose index is written."""
    public = {
        "host": host,
        "epoch": epoch,
        "envelope": envelope.hex(),
        "index": {"number": ref.root, "digest": ref.digest.hex()},
        "features": [],
    }
    data = points.encode(
        PARTIAL,
        repository.group(lineage.group),
        repository.writer,
        lineage,
        session,
        b"",
        public,
        points.encode_table({}, {}),
        [],
    )
    create_point(repository, lineage, session, data)


def read_pin(repository: Repository, lineage: Lineage, session: bytes, data: bytes) -> dict[str, Any]:
    """What a pin says. Raises DamageError."""
    name = lineage.pin(session)
    number = frames.check_preamble(data, b"PINS", name)
    key = repository.group(lineage.group).derive(number, "pin", session, name=name)
    pin = frames.parse(unseal(key, data[: frames.PREAMBLE.size], data[frames.PREAMBLE.size :], name), name)
    shapes.check(pin, _PIN, name)
    return pin
