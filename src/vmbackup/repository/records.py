"""What a restore point says of its disks and files, each with its map (docs/repository-format.md, section 9)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from vmbackup.errors import DamageError
from vmbackup.repository import point_json
from vmbackup.repository.nodes import Ref


class MapRecord(Protocol):
    """So many bytes that a restore point holds, disk or file. `target`: what people call it; sizes in bytes."""

    @property
    def name(self) -> str:
        """One of its own in the point."""

    @property
    def target(self) -> str:
        """For people."""

    @property
    def label(self) -> str:
        """For sentences: what it is, and its target."""

    @property
    def virtual_size(self) -> int:
        """Its length."""

    @property
    def chunk_size(self) -> int:
        """Of its map."""

    @property
    def root(self) -> Ref:
        """The root of its map."""


@dataclass(frozen=True)
class DiskRecord:
    """A disk in a restore point; sizes in bytes. `read_whole`: the time of the point that last read it whole."""

    name: str
    target: str
    format: str
    virtual_size: int
    chunk_size: int
    root: Ref
    mode: str
    reason: str | None
    read_bytes: int
    changed_bytes: int
    stored_bytes: int
    attributes: dict[str, str]
    read_whole: str | None = None

    @property
    def label(self) -> str:
        """See MapRecord."""
        return f"disk {self.target}"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the point."""
        return {**self.__dict__, "root": _root_to_json(self.root)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "DiskRecord":
        """Out of the point."""
        fields: dict[str, Any] = {k: data.get(k) for k in cls.__dataclass_fields__}
        return cls(**{**fields, "root": _root_from_json(data["root"])})


@dataclass(frozen=True)
class FileRecord:
    """A file of the host that the guest is started from. `path`: as the guest's XML has it; `mode`: its permissions.

    `state` tells the file and its last change apart from others, on one host: None where it may have changed since.
    """

    path: str
    kind: str
    size: int
    mode: int
    state: str | None
    chunk_size: int
    root: Ref
    stored_bytes: int

    @property
    def name(self) -> str:
        """See MapRecord: no disk is called so."""
        return f"file {self.path}"

    @property
    def target(self) -> str:
        """See MapRecord."""
        return self.path

    @property
    def label(self) -> str:
        """See MapRecord."""
        return f"{self.kind} {self.path}"

    @property
    def virtual_size(self) -> int:
        """See MapRecord."""
        return self.size

    def to_json(self) -> dict[str, Any]:
        """As it stands in the point."""
        return {**self.__dict__, "root": _root_to_json(self.root)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "FileRecord":
        """Out of the point."""
        fields: dict[str, Any] = {k: data.get(k) for k in cls.__dataclass_fields__}
        return cls(**{**fields, "root": _root_from_json(data["root"])})


def files_to_json(session: bytes, files: Iterable[FileRecord]) -> dict[str, Any]:
    """The files of the point of that session: what copies it without knowing of them says another's session."""
    return {"session": session.hex(), "saved": [file.to_json() for file in files]}


def check_map(record: MapRecord, name: str) -> None:
    """Whether a map covers what it is of, no more and no less. Raises DamageError naming the object `name`."""
    least, most = point_json.CHUNK_SIZES
    if not least <= record.chunk_size <= most or record.chunk_size & (record.chunk_size - 1):
        raise DamageError(f"{name}: {record.label} has chunks of impossible size", object_key=name)
    if record.root.chunks != -(-record.virtual_size // record.chunk_size):
        raise DamageError(f"{name}: the map of {record.label} does not cover it", object_key=name)


def _root_to_json(root: Ref) -> dict[str, Any]:
    level, chunks, session, pack, slot, node = root
    return {"level": level, "chunks": chunks, "session": session, "pack": pack, "slot": slot, "id": node.hex()}


def _root_from_json(root: dict[str, Any]) -> Ref:
    return Ref(root["level"], root["chunks"], root["session"], root["pack"], root["slot"], bytes.fromhex(root["id"]))
