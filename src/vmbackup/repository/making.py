"""The first documents of a new repository (docs/repository-format.md, section 4)."""

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from vmbackup.repository import frames
from vmbackup.repository.crypto import GroupKeys
from vmbackup.repository.keys import ReaderKeys
from vmbackup.repository.layout import check_group
from vmbackup.repository.writers import WriterKey

_GROUP_INFO = b"vmbackup/1/group\0"


def first_config(
    reader: ReaderKeys, repository: bytes, chunk_size: int, slots: list[str], object_lock_days: int | None = None
) -> dict[str, Any]:
    """Version 1 of the config."""
    return {
        "realm": reader.realm.hex(),
        "repository": repository.hex(),
        "version": 1,
        "created": _now(),
        "chunk_size": chunk_size,
        "epoch": 1,
        "epochs": [{"number": n, "public_key": k.public().raw.hex()} for n, k in reader.epochs.items()],
        "features": {"ignore": [], "read_only": [], "refuse": []},
        "replica_of": None,
        "object_lock_days": object_lock_days,
        "allowed_endpoints": None,
        "slots": slots,
    }


def new_group(reader: ReaderKeys, group: str, epoch: int) -> dict[str, bytes]:
    """New keys for a group: two objects of the same content, by their names."""
    return group_documents(reader, new_group_keys(reader, group), epoch, (1, 2))


def new_group_keys(reader: ReaderKeys, group: str) -> GroupKeys:
    """Keys that nobody has yet."""
    return GroupKeys(reader.realm, check_group(group), {1: os.urandom(32)}, os.urandom(32))


def group_documents(reader: ReaderKeys, keys: GroupKeys, epoch: int, numbers: Iterable[int]) -> dict[str, bytes]:
    """The keys of a group, sealed for an epoch: objects of the same content, by their names."""
    id_keys = [{"number": number, "key": key.hex()} for number, key in sorted(keys.id_keys.items())]
    body = {"id_keys": id_keys, "lineage_key": keys.lineage_key.hex()}
    info = group_info(reader.realm, keys.group, epoch)
    sealed = reader.epochs[epoch].public().seal(info, frames.canonical(body))
    document = {"realm": reader.realm.hex(), "group": keys.group, "epoch": epoch, "sealed": sealed.hex()}
    return {
        f"groups/{keys.group}/{number}": frames.sign_document(b"GRUP", {**document, "number": number}, reader.signing)
        for number in numbers
    }


def group_info(realm: bytes, group: str, epoch: int) -> bytes:
    """What a group's keys are bound to."""
    return _GROUP_INFO + realm + epoch.to_bytes(4, "big") + group.encode()


def enrolment(reader: ReaderKeys, writer: WriterKey) -> tuple[str, bytes]:
    """A writer's: its name and the object."""
    document = {
        "realm": reader.realm.hex(),
        "writer": writer.id.hex(),
        "name": writer.name,
        "group": writer.group,
        "role": writer.role,
        "public_key": writer.private.public_key().public_bytes_raw().hex(),
        "created": _now(),
    }
    return f"writers/{writer.id.hex()}", frames.sign_document(b"WRTR", document, reader.signing)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
