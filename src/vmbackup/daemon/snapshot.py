"""All that the service knows at one instant: what metrics, the control socket, `status` and the page are made of.

Times are seconds since the epoch; 0 is never. `document` gives the JSON of the control socket's GET /status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vmbackup import __version__
from vmbackup.daemon.work import Progress, moment


@dataclass(frozen=True)
class LastRun:
    """The last ended run of something."""

    id: str
    status: str  # of Status
    trigger: str
    attempt: int
    started: float
    finished: float
    error: str | None = None
    hint: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)  # seconds: "total", "freeze", "seal", as far as known


@dataclass(frozen=True)
class Totals:
    """Counters, since the state was made."""

    runs: Mapping[str, int] = field(default_factory=dict)  # by Status
    skipped: Mapping[str, int] = field(default_factory=dict)  # by Skip
    read_bytes: int = 0
    changed_bytes: int = 0
    stored_bytes: int = 0
    full_reads: Mapping[str, int] = field(default_factory=dict)  # by reason


@dataclass(frozen=True)
class CopyState:
    """How the copies of a domain in another repository are. `last`: the point in time of the newest one there."""

    repository: str
    last: float = 0.0
    max_age: float | None = None
    last_run: LastRun | None = None


@dataclass(frozen=True)
class DrillState:
    """How the drills of a domain went.

    `picture` is a name for GET /pictures/NAME, `boot_seconds` what the last good one took to boot; None where there is
    none. `checks`: what held in that one.
    """

    last_success: float = 0.0
    max_age: float | None = None
    next_run: float = 0.0
    last_run: LastRun | None = None
    picture: str | None = None
    boot_seconds: float | None = None
    checks: tuple[str, ...] = ()


@dataclass(frozen=True)
class GuestState:
    """A domain under one job. `present`: libvirt knows it now."""

    domain: str
    job: str
    repository: str
    present: bool = True
    last_success: float = 0.0  # the point in time of the newest good restore point
    last_point: str | None = None
    point_times: tuple[float, ...] = ()  # of all restore points, newest first
    max_age: float | None = None
    next_run: float = 0.0
    running: str | None = None  # a run's id
    queued: bool = False
    last_run: LastRun | None = None
    last_verified: float = 0.0
    freeze_seconds: float = 0.0  # of the newest restore point
    quiesce_ok: bool = False
    totals: Totals = Totals()
    copies: tuple[CopyState, ...] = ()
    drill: DrillState | None = None
    known_since: float = 0.0  # when this host first saw it under the job: how long a promise could be kept

    def promise(self, now: float) -> str:
        """`none` without max_age, `never` where there is no restore point, else `kept` or `broken`."""
        if self.max_age is None:
            return "none"
        if not self.last_success:
            return "never"
        return "kept" if now - self.last_success <= self.max_age else "broken"


@dataclass(frozen=True)
class RunState:
    """A run that goes on, or a request that waits for its turn (`state` running, cancelling, queued)."""

    id: str
    kind: str
    state: str
    repository: str
    job: str | None
    domain: str | None
    target: str | None
    trigger: str
    attempt: int
    due: float
    not_before: float
    started: float = 0.0
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class RepositoryState:
    """A repository as it was when last looked at (`looked`); None where it is not known."""

    name: str
    url: str
    up: bool = False
    error: str | None = None
    looked: float = 0.0
    bytes: int | None = None
    objects: int | None = None
    damaged_objects: int = 0
    points: int = 0
    last_prune: float = 0.0
    last_verified: float = 0.0
    prune_max_age: float | None = None
    verify_max_age: float | None = None
    next_prune: float = 0.0
    next_verify: float = 0.0
    last_prune_run: LastRun | None = None
    last_verify_run: LastRun | None = None
    known_since: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """Everything."""

    now: float
    started: float
    host: str
    state: str  # starting, running, stopping
    config_file: str | None
    config_loaded: float
    config_ok: bool = True  # whether the last reload was good
    config_error: str | None = None
    libvirt_up: bool = False
    libvirt_error: str | None = None
    scratch_bytes: int = 0
    guests: tuple[GuestState, ...] = ()
    unprotected: tuple[str, ...] = ()  # domains that libvirt knows and no job with a schedule means
    runs: tuple[RunState, ...] = ()
    repositories: tuple[RepositoryState, ...] = ()

    def document(self) -> dict[str, Any]:
        """The JSON: names as here, times ISO 8601 or null, and of each guest its age in seconds and its promise."""
        plain: dict[str, Any] = _json(self)
        for guest, state in zip(plain["guests"], self.guests, strict=True):
            guest["age_seconds"] = self.now - state.last_success if state.last_success else None
            guest["promise"] = state.promise(self.now)
        return {"version": __version__, **plain}


_TIMES = frozenset(
    ("now", "started", "finished", "config_loaded", "last_success", "next_run", "last_verified", "last", "due")
) | frozenset(("not_before", "looked", "last_prune", "next_prune", "next_verify", "point_times", "known_since"))
_moment = lru_cache(maxsize=1 << 17)(moment)  # the same restore points are told again and again


def _json(value: Any, key: str = "") -> Any:
    """Not by `asdict`, which copies all that it finds: a status of 300 guests would take a third of a second."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, float | int):
        return _moment(value) if key in _TIMES else value
    if isinstance(value, tuple | list):
        return [_moment(inner) for inner in value] if key in _TIMES else [_json(inner) for inner in value]
    if isinstance(value, Mapping):
        return {name: _json(inner) for name, inner in value.items()}
    return {name: _json(getattr(value, name), name) for name in value.__dataclass_fields__}
