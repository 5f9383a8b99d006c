"""The names of things: ids, and the keys of objects (docs/repository-format.md, section 2)."""

import os
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, NamedTuple

from vmbackup.errors import UsageError

SESSION_BYTES = 16
ORIGIN_BYTES = 10  # what a restore point and its copies in other repositories share of their sessions
_GROUP = re.compile(r"[a-z0-9-]{1,64}")


def new_session() -> bytes:
    """A session's 16 bytes: 48 bits of milliseconds, then 80 random ones. Never used twice."""
    return int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10)


def copied_session(original: bytes) -> bytes:
    """A new session for a copy of the point of session `original`: the copy has its id, and its place in time."""
    return original[:ORIGIN_BYTES] + os.urandom(SESSION_BYTES - ORIGIN_BYTES)


def short_id(session: bytes) -> str:
    """The 8 hex digits by which people name a restore point: the session's first random ones."""
    return session[6:10].hex()


def point_id(when: datetime, session: bytes) -> str:
    """`<time>-<8 hex>`, for example `20261124T030000Z-1a2b3c4d`. `when` is aware."""
    return f"{when.astimezone(UTC):%Y%m%dT%H%M%SZ}-{short_id(session)}"


def check_group(name: str) -> str:
    """The name, if it can be a group's. Raises UsageError."""
    if not _GROUP.fullmatch(name):
        raise UsageError(f"'{name}' cannot name a group", "use 1 to 64 of a-z, 0-9 and '-'")
    return name


@dataclass(frozen=True)
class Lineage:
    """Where the objects of one guest's history lie: a group and 16 bytes."""

    BYTES: ClassVar[int] = 16

    group: str
    id: bytes

    def _key(self, folder: str, rest: str) -> str:
        return f"{folder}/{self.group}/{self.id.hex()}/{rest}"

    def pin(self, session: bytes) -> str:
        """The key of a session's pin."""
        return self._key("sessions", session.hex())

    def point(self, session: bytes) -> str:
        """The key of a session's commit."""
        return self._key("points", session.hex())

    def trash(self, session: bytes) -> str:
        """The key of what says that a session is forgotten."""
        return self._key("trash", session.hex())

    def pack(self, kind: str, session: bytes, number: int) -> str:
        """The key of a pack; `kind` is `data` or `meta`."""
        return self._key(kind, f"{session.hex()}-{number}")

    def index(self, session: bytes, number: int) -> str:
        """The key of an index part or root."""
        return self._key("index", f"{session.hex()}-{number}")

    def prefix(self, folder: str, session: bytes | None = None) -> str:
        """The prefix of all keys of one folder, or of one session's in it."""
        return self._key(folder, "" if session is None else f"{session.hex()}-")


class SessionRef(NamedTuple):
    """An entry of a point's session table: where a session's objects lie, and the digest of its index root."""

    number: int
    session: bytes
    lineage: bytes
    root: int
    digest: bytes
