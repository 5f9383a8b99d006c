"""Names that say whose they are: checkpoints, scratch files, sockets. No name is ever used twice."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

PREFIX = "vmbackup-"
_CHECKPOINT = re.compile(r"vmbackup-([0-9a-f]{8})-(\d{8}T\d{6}Z)-([0-9a-f]{8})([0-9a-f]{4})")
_SESSION = re.compile(r"[0-9a-f]{32}")
_THROWAWAY = re.compile(r"vmbackup-drill-[0-9a-f]{12}")
_REPOSITORY = re.compile(r"[0-9a-f]{8}")
_TIME = "%Y%m%dT%H%M%SZ"
# The unix socket path limit of Linux (sun_path, without the final zero).
SOCKET_PATH_MAX = 107


@dataclass(frozen=True)
class CheckpointName:
    """`vmbackup-<repository id>-<UTC time>-<session><chance>`.

    `session` is the first 8 random hex digits of the session that made it: those of its restore point's id,
    so that a checkpoint names its restore point. `chance` (4 hex digits) makes a second attempt of the same
    session a new name.
    """

    repository_id: str
    time: datetime
    session: str
    chance: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository_id}-{self.time.strftime(_TIME)}-{self.session}{self.chance}"

    @classmethod
    def make(cls, repository_id: str, session: str, time: datetime) -> "CheckpointName":
        """A new name for a run. `session` is the whole session id, 32 hex digits."""
        if not _REPOSITORY.fullmatch(repository_id):
            raise ValueError(f"a repository id is 8 hex digits, not {repository_id!r}")
        second = time.astimezone(UTC).replace(microsecond=0)
        return cls(repository_id, second, session_tag(session), secrets.token_hex(2))

    @classmethod
    def parse(cls, text: str) -> "CheckpointName | None":
        """The parts of a name of ours, or None for anybody else's."""
        match = _CHECKPOINT.fullmatch(text)
        if not match:
            return None
        try:
            time = datetime.strptime(match[2], _TIME).replace(tzinfo=UTC)
        except ValueError:
            return None
        return cls(match[1], time, match[3], match[4])


def throwaway_name(stable: str) -> str:
    """The name of the throw-away domain of a guest's drills: always the same, so that one that was left is found."""
    return f"{PREFIX}drill-{hashlib.sha256(stable.encode()).hexdigest()[:12]}"


def is_throwaway(name: str, *, persistent: bool) -> bool:
    """Whether a domain is one of a drill: a domain of such a name that somebody defined is his own."""
    return not persistent and _THROWAWAY.fullmatch(name) is not None


def session_tag(session: str) -> str:
    """The first 8 random hex digits of a session id (12 digits of milliseconds stand before them)."""
    if not _SESSION.fullmatch(session):
        raise ValueError(f"a session id is 32 hex digits, not {session!r}")
    return session[12:20]


def file_tag(session: str) -> str:
    """The part of the names of a run's socket and scratch files that no other run has."""
    return f"{session_tag(session)}{secrets.token_hex(2)}"


def socket_name(tag: str) -> str:
    """The socket's file name; in the domain's own folder it stays under SOCKET_PATH_MAX."""
    return f"{PREFIX}{tag}.sock"


def scratch_name(tag: str, target: str) -> str:
    """The scratch file's name for a disk."""
    return f"{PREFIX}{tag}.{target}.qcow2"
