"""Restore points: the commit of a session (docs/repository-format.md, section 9)."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import zstandard
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmbackup.errors import DamageError, RepositoryError
from vmbackup.repository import frames, moves, point_json, shapes
from vmbackup.repository.crypto import GroupKeys, derive, digest, seal, unseal
from vmbackup.repository.layout import ORIGIN_BYTES, SESSION_BYTES, Lineage, SessionRef, point_id
from vmbackup.repository.records import DiskRecord, FileRecord, MapRecord, check_map
from vmbackup.repository.writers import Enrolment, WriterKey

# Each with name, type, data in hex, and length where zeros follow.
Documents = Sequence[Mapping[str, str | int]]
POINT, PARTIAL, MOVES, COPY = 1, 2, 3, 4
HEAD = frames.PREAMBLE.size + 1  # bytes that tell the kind
MAX_PART = 64 << 20
# Bytes that documents may claim to have beyond what is stored of them: two of the largest there are.
MAX_ZEROS = 128 << 20
Verify = Callable[[Ed25519PublicKey, bytes, bytes], None]
"""Checks a signature of a message; raises InvalidSignature."""
KNOWN_FEATURES: frozenset[str] = frozenset()

_CONTEXT = b"vmbackup point\0"
_LENGTH = struct.Struct(">I")
_TABLE = struct.Struct(">I16s16sI32sI")
_SIGNATURE = 64
_FIRST_YEAR, _LAST_YEAR = 1970, 9998
# What a copy in a replica says itself; all else is its original's.
_PLACE = ("parent", "next_session_number", "epoch", "envelope", "index", "features")
_PLACE_OF_DISK = ("root", "stored_bytes")


@dataclass(frozen=True)
class Point:
    """A restore point, or a partial, that was read and whose signature holds.

    `rows` is the session table, read when it is needed: of hundreds of points few are; `moved` those of a table of
    moves.
    `digest` is that of the whole object; `public` the JSON of its public part. A copy in a replica is a point too, with
    its `original`, and that one's object `verbatim`; `public` then is the original's, but for what tells of places.
    """

    key: str
    kind: int
    lineage: Lineage
    session: bytes
    writer: bytes
    digest: bytes
    public: dict[str, Any] = field(repr=False)
    rows: bytes = field(repr=False)
    moved: bytes = field(repr=False)
    sealed_private: bytes = field(repr=False)
    aad: bytes = field(repr=False)
    original: "Point | None" = field(default=None, repr=False)
    verbatim: bytes = field(default=b"", repr=False)

    @cached_property
    def table(self) -> dict[int, SessionRef]:
        """Session number -> reference."""
        return {row[0]: SessionRef(*row[:5]) for row in _TABLE.iter_unpack(self.rows)}

    @cached_property
    def uses(self) -> dict[int, int]:
        """Session number -> nodes of its maps that name it."""
        return {row[0]: row[5] for row in _TABLE.iter_unpack(self.rows)}

    @cached_property
    def time(self) -> datetime:
        """The point in time, aware."""
        return datetime.fromisoformat(self.public["time"])

    @cached_property
    def id(self) -> str:
        """`<time>-<8 hex>`."""
        return point_id(self.time, self.session)

    @cached_property
    def long_id(self) -> str:
        """`<time>-<20 hex>`: it tells points of one `id` apart, as far as they are of one history."""
        return f"{self.id.rpartition('-')[0]}-{self.session[6:].hex()}"

    @property
    def origin(self) -> bytes:
        """What the point and its copies, in whatever repository, have in common."""
        return self.session[:ORIGIN_BYTES]

    @property
    def copied_from(self) -> dict[str, Any] | None:
        """Of a copy: the realm, the repository and the session of its original, in hex."""
        told: dict[str, Any] | None = self.public.get("copied_from")
        return told

    @property
    def seq(self) -> int:
        """The parent's + 1; 1 for the first. A copy has its original's."""
        return int(self.public["seq"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the backup, each as whoever restores the point is told of it. It comes back as it was stored."""
        told = map(str, self.public.get("warnings", ()))
        return tuple(f"restore point {self.id} was made with a warning: {warning}" for warning in told)

    @property
    def domain(self) -> str:
        """The guest's name at that time."""
        return str(self.public["domain"]["name"])

    @property
    def uuid(self) -> str:
        """The guest's UUID."""
        return str(self.public["domain"]["uuid"])

    @property
    def parent(self) -> bytes | None:
        """The parent's session."""
        parent = self.public["parent"]
        return bytes.fromhex(parent["session"]) if parent else None

    @property
    def locked_until(self) -> datetime | None:
        """Until when all that it needs cannot be deleted, as its writer saw it; None where nothing is locked."""
        try:
            until = datetime.fromisoformat(self.public["locked_until"])
        except (KeyError, TypeError, ValueError):
            return None
        return until if until.tzinfo else None

    @cached_property
    def disks(self) -> list[DiskRecord]:
        """The disks, in the order of the domain."""
        return [DiskRecord.from_json(d) for d in self.public["disks"]]

    @cached_property
    def files(self) -> list[FileRecord]:
        """The files of its host that the guest is started from, as far as it has them, each path once.

        None where another point's session stands beside them: who copied it did not know of them, nor copied them.
        """
        told = self.public.get("files")
        if not told or told["session"] != self.session.hex():
            return []
        return list({file["path"]: FileRecord.from_json(file) for file in told["saved"]}.values())

    @property
    def maps(self) -> list[MapRecord]:
        """All that has a map: its disks, then its files. Who walks maps walks these."""
        return [*self.disks, *self.files]

    @property
    def virtual_bytes(self) -> int:
        """The sizes of its disks together; 0 of what is no restore point."""
        return sum(disk["virtual_size"] for disk in self.public.get("disks", ()))

    @property
    def envelope(self) -> bytes:
        """The envelope of the session's secret."""
        return bytes.fromhex(self.public["envelope"])

    def move_table(self) -> moves.Table:
        """What a table of moves tells."""
        return moves.Table(self.lineage.id, self.session, self.table, self.moved)

    def own_ref(self, number: int) -> SessionRef:
        """A reference to the point's own session."""
        index = self.public["index"]
        return SessionRef(number, self.session, self.lineage.id, index["number"], bytes.fromhex(index["digest"]))


def _head(kind: int, key_number: int, lineage: Lineage, session: bytes, writer: bytes) -> bytes:
    group = lineage.group.encode()
    return frames.preamble(b"POIN", key_number) + bytes((kind, len(group))) + group + lineage.id + session + writer


def encode_table(table: dict[int, SessionRef], uses: dict[int, int]) -> bytes:
    """The session table of the public part."""
    rows = (_TABLE.pack(*ref, uses.get(number, 0)) for number, ref in sorted(table.items()))
    return _LENGTH.pack(len(table)) + b"".join(rows)


def draft(lineage: Lineage, session: bytes, public: dict[str, Any], table: bytes) -> Point:
    """A restore point as it will be, to see what it needs."""
    return Point(
        lineage.point(session), POINT, lineage, session, b"", b"", public, table[_LENGTH.size :], b"", b"", b""
    )


def encode(
    kind: int,
    keys: GroupKeys,
    writer: WriterKey,
    lineage: Lineage,
    session: bytes,
    secret: bytes,
    public: dict[str, Any],
    table: bytes,
    documents: Documents,
    original: bytes = b"",
) -> bytes:
    """The whole object, signed; of a copy with its original's."""
    head = _head(kind, keys.current, lineage, session, writer.id)
    text = frames.canonical(public)
    body = _LENGTH.pack(len(text)) + text + table
    sealed = seal(keys.derive(keys.current, "point", session), head, body)
    private = b""
    if kind == POINT:
        packed = zstandard.ZstdCompressor().compress(frames.canonical({"documents": documents}))
        private = seal(derive(secret, keys.realm, "private", session), head, packed)
    data = head + _LENGTH.pack(len(sealed)) + sealed + _LENGTH.pack(len(private)) + private
    if kind == COPY:
        data += _LENGTH.pack(len(original)) + original
    return data + writer.private.sign(_CONTEXT + keys.realm + data)


def is_abort(data: bytes) -> bool:
    """Whether the object says that its session can never commit."""
    return data[8:12] == b"ABRT"


def signer(data: bytes, lineage: Lineage) -> bytes:
    """Who says to have signed the commit, 8 bytes."""
    end = len(_head(0, 0, lineage, bytes(SESSION_BYTES), bytes(8)))
    return data[end - 8 : end]


def kind_of(head: bytes) -> int:
    """The kind that the first HEAD bytes of a commit tell; 0 for "aborted"."""
    return head[frames.PREAMBLE.size] if len(head) >= HEAD and head[8:12] == b"POIN" else 0


def verify_signature(public: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    """Raises InvalidSignature."""
    public.verify(signature, message)


def decode(
    data: bytes,
    keys: GroupKeys,
    lineage: Lineage,
    session: bytes,
    writers: dict[bytes, Enrolment],
    verify: Verify = verify_signature,
) -> Point:
    """A point whose place and signature hold. Raises DamageError, RepositoryError (newer)."""
    name = lineage.point(session)
    number = frames.check_preamble(data, b"POIN", name)
    kind = data[frames.PREAMBLE.size] if len(data) > frames.PREAMBLE.size else 0
    head_size = len(_head(0, 0, lineage, session, bytes(8)))
    writer = data[head_size - 8 : head_size]
    if data[:head_size] != _head(kind, number, lineage, session, writer):
        raise DamageError(f"{name} does not belong where it lies", object_key=name)
    if kind not in (POINT, PARTIAL, MOVES, COPY):
        raise RepositoryError(f"{name} is of a kind that only a newer vmbackup knows", "upgrade vmbackup on this host")
    if not _is_entitled(writers.get(writer), kind, lineage.group):
        raise DamageError(f"{name} was signed by a writer that is not enrolled for its group", object_key=name)
    try:
        verify(writers[writer].public, data[-_SIGNATURE:], _CONTEXT + keys.realm + data[:-_SIGNATURE])
    except InvalidSignature as error:
        raise DamageError(f"{name} is damaged: its signature does not hold", object_key=name) from error
    try:
        (length,) = _LENGTH.unpack_from(data, head_size)
        at = head_size + _LENGTH.size
        sealed, at = data[at : at + length], at + length
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        private, verbatim = data[at : at + length], data[at + length + _LENGTH.size : -_SIGNATURE]
        if kind == COPY and _LENGTH.unpack_from(data, at + length)[0] != len(verbatim):
            raise DamageError(f"{name} is malformed", object_key=name)
        body = unseal(keys.derive(number, "point", session, name=name), data[:head_size], sealed, name)
        (length,) = _LENGTH.unpack_from(body)
        public = frames.parse(body[_LENGTH.size : _LENGTH.size + length], name)
        at = _LENGTH.size + length
        (count,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        rows, rest = body[at : at + count * _TABLE.size], body[at + count * _TABLE.size :]
        if len(rows) != count * _TABLE.size or (rest and kind != MOVES):
            raise DamageError(f"{name} is malformed", object_key=name)
        moved = moves.split(rest, name) if kind == MOVES else b""
    except struct.error as error:
        raise DamageError(f"{name} is malformed", object_key=name) from error
    shapes.check(public, point_json.POINT if kind == POINT else point_json.ANY, name)
    if unknown := set(public.get("features", ())) - KNOWN_FEATURES:
        raise RepositoryError(
            f"{name} needs features that this version lacks: {', '.join(sorted(unknown))}",
            "upgrade vmbackup on this host",
        )
    point = Point(name, kind, lineage, session, writer, digest(data), public, rows, moved, private, data[:head_size])
    if kind == COPY:
        point = _of_original(point, verbatim, keys, writers, verify)
    if point.kind == POINT:
        _check(point, name)
    return point


def _of_original(
    copy: Point, verbatim: bytes, keys: GroupKeys, writers: dict[bytes, Enrolment], verify: Verify
) -> Point:
    """The point that a copy in a replica is: what its original says, at the copy's places. Raises DamageError."""
    malformed = DamageError(f"{copy.key} contradicts the restore point that it is a copy of", object_key=copy.key)
    own = copy.public
    try:
        session = bytes.fromhex(own["original"]["session"])
        if kind_of(verbatim[:HEAD]) != POINT or session[:ORIGIN_BYTES] != copy.origin:
            raise malformed
        original = decode(verbatim, keys, copy.lineage, session, writers, verify)
        places = {disk["name"]: disk for disk in own["disks"]}
        if original.digest.hex() != own["original"]["digest"] or len(places) != len(original.public["disks"]):
            raise malformed
        disks = [
            {**disk, **{field: places[disk["name"]][field] for field in _PLACE_OF_DISK}}
            for disk in original.public["disks"]
        ]
        placed = {field: own[field] for field in _PLACE}
        files = _placed_files(original, own)
    except DamageError as error:
        message = error.message.replace(f"{copy.lineage.point(session)} ", f"the original in {copy.key} ")
        raise DamageError(message, object_key=copy.key) from error
    except (KeyError, TypeError, ValueError) as error:
        raise malformed from error
    public = {**original.public, **placed, "disks": disks, "anchor": None, "copied_from": own["original"]}
    public["files"] = files
    public["warnings"] = [*original.public["warnings"], *own.get("warnings", ())]
    public["locked_until"] = own.get("locked_until")  # of the copy's objects
    return replace(copy, kind=POINT, public=public, original=original, verbatim=verbatim)


def _placed_files(original: Point, own: dict[str, Any]) -> dict[str, Any] | None:
    """The original's files at the copy's places; none where who made it did not know of them. Raises KeyError."""
    told = own.get("files")
    if not told:
        return None
    shapes.check(told, point_json.FILES, original.key)
    places = {file["path"]: file for file in told["saved"]}
    known = {file.path: file.to_json() for file in original.files}
    saved = [{**file, **{name: places[path][name] for name in _PLACE_OF_DISK}} for path, file in known.items()]
    return {"session": told["session"], "saved": saved}


def _is_entitled(writer: Enrolment | None, kind: int, group: str) -> bool:
    """Whether it may sign that. Moves of one who may only write are read, for they are no damage, and count not."""
    if writer is None:
        return False
    return writer.may_write(group) or (kind == MOVES and writer.may_collect(group))


def _check(point: Point, name: str) -> None:
    """What a signature does not vouch for: a time that can be reckoned with, maps as large as their disks."""
    try:
        sound = point.time.tzinfo is not None and _FIRST_YEAR <= point.time.year <= _LAST_YEAR
    except (ValueError, TypeError) as error:
        raise DamageError(f"{name} has no time", object_key=name) from error
    if not sound:
        raise DamageError(f"{name} has no time that can be", object_key=name)
    for record in point.maps:
        check_map(record, name)


def open_documents(point: Point, secret: bytes, realm: bytes) -> dict[str, bytes]:
    """The private documents of a point, by name. Raises DamageError."""
    packed = unseal(derive(secret, realm, "private", point.session), point.aad, point.sealed_private, point.key)
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= MAX_PART:
            raise DamageError(f"{point.key} is malformed", object_key=point.key)
        text = zstandard.ZstdDecompressor().decompress(packed, max_output_size=MAX_PART)
    except zstandard.ZstdError as error:
        raise DamageError(f"{point.key} is malformed", object_key=point.key) from error
    private = frames.parse(text, point.key)
    shapes.check(private, point_json.PRIVATE, point.key)
    documents = private["documents"]
    if sum(d.get("length", 0) for d in documents) > MAX_ZEROS:
        raise DamageError(f"{point.key} is malformed", object_key=point.key)
    return {d["name"]: bytes.fromhex(d["data"]).ljust(d.get("length", 0), b"\0") for d in documents}
