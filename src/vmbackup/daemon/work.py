"""What the service does: pieces of work, requests for them, runs of them, and how runs end."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

STOPPED = "the service stopped"  # the error of a run that ended because of that
DIED = "the service died"
SUPERSEDED = "a newer request took its place"


class Kind(StrEnum):
    """What is done."""

    BACKUP = "backup"  # a restore point of one domain
    COPY = "copy"  # the domain's restore points to one repository of copy_to
    PRUNE = "prune"  # the keep of each job of the repository, then prune
    VERIFY = "verify"  # of a repository
    DRILL = "drill"  # of one domain


class Trigger(StrEnum):
    """Why it is done now."""

    SCHEDULE = "schedule"
    CATCH_UP = "catch-up"  # it came due while the service was down
    RETRY = "retry"
    FOLLOW = "follow"  # a copy, after the backup
    MANUAL = "manual"


class Status(StrEnum):
    """How a run ended."""

    SUCCESS = "success"
    WARNING = "warning"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Skip(StrEnum):
    """Why a firing made no run: labels of vmbackup_runs_skipped_total."""

    RUNNING = "still_running"  # the domain's former run goes on
    QUEUED = "still_queued"  # the former request has not had its turn yet
    VANISHED = "domain_vanished"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Work:
    """A piece of work: asked for again while it waits or runs, it is skipped.

    Two that have one of their `keys` in common never run at once.

    `job` and `domain` (a name) are None for a repository's own work; `target` is where a copy goes. `members` are the
    guests of a backup of several at one instant, which has no `domain` (group.py).
    """

    kind: Kind
    repository: str
    job: str | None = None
    domain: str | None = None
    target: str | None = None
    members: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[tuple[str, ...]]:
        """What may run only once at a time: a domain's backup, whatever the job; prune and verify of a repository."""
        if self.kind is Kind.BACKUP:
            return frozenset((self.kind, domain) for domain in self.members or (self.domain or "",))
        return frozenset(((self.kind, self.repository, self.domain or "", self.target or ""),))


@dataclass(frozen=True)
class Request:
    """Work that is asked for. Times are seconds since the epoch.

    `due`: when the schedule meant it (without the domain's offset); `not_before`: when it may start; `promise`: when
    the domain's promise breaks (the smaller, the more urgent), None without one. `firing` is shared by all requests of
    one firing of a schedule, for the dead-man ping. `deadline`: seconds that the run may take.
    """

    work: Work
    trigger: Trigger
    due: float
    not_before: float
    promise: float | None = None
    attempt: int = 1
    deadline: float | None = None
    retries: int = 0
    retry_after: float = 300.0
    full: bool = False
    firing: str | None = None
    id: str = field(default_factory=lambda: secrets.token_hex(4))


@dataclass(frozen=True)
class Progress:
    """How far a run is. `total_bytes` is None where it cannot be known; `task` is a domain's or an object's name."""

    task: str = ""
    done_bytes: int = 0
    total_bytes: int | None = None
    bytes_per_second: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `document` is the JSON of its command, {} where there is none."""

    status: Status
    exit_code: int | None = None
    error: str | None = None
    hint: str | None = None
    kind: str | None = None  # of the error, as in errors.py
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retriable(self) -> bool:
        """Whether trying again may help: not after a cancel, wrong usage, wrong keys, a domain that is gone."""
        return self.status is Status.FAILED and self.exit_code not in (2, 5, 6)


@dataclass(frozen=True)
class Run:
    """A request whose process was started, and what is known of it. Times are seconds since the epoch.

    `id` is its request's.
    """

    id: str
    request: Request
    started: float
    pid: int | None = None
    progress: Progress = Progress()
    cancelling: str | None = None  # why
    finished: float | None = None
    outcome: Outcome | None = None


def moment(seconds: float | None) -> str | None:
    """Seconds since the epoch as ISO 8601 in this machine's zone; None for None and for 0, which is never."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else None
