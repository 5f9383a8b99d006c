"""What a prune is asked for, and what it did."""

from dataclasses import dataclass, field

from vmbackup.repository.repack import REPACK_BELOW, RepackReport

DEAD_AFTER = 7 * 86400.0
WAIT = 600.0


@dataclass(frozen=True)
class PruneOptions:
    """Seconds: `wait` for sessions that are open; one older than `dead_after` by the store's clock is ended.

    `exclusive`: the operator promises that nothing else works on the repository, whose store overwrites objects.
    A pack of which less than `repack_below` (a share of 1; 0: none is) is in use is rewritten, by a process on `host`.
    """

    wait: float = WAIT
    dead_after: float = DEAD_AFTER
    dry_run: bool = False
    exclusive: bool = False
    repack_below: float = REPACK_BELOW
    host: str = ""


@dataclass
class PruneReport:
    """What a prune did, or with `dry_run` would do: numbers, and bytes of objects.

    `locked`: by key what no restore point needs and object lock keeps: its bytes, and until when (seconds since 1970).
    `waited_for`: the pins of sessions that had not ended in time; then `left_*` is what the next call takes.
    `repacked`: what was copied out of mostly dead packs; what came free by that counts in `bytes` (not with `dry_run`).
    """

    points: int = 0
    objects: int = 0
    bytes: int = 0
    left_objects: int = 0
    left_bytes: int = 0
    kept_bytes: int = 0
    ended_sessions: int = 0
    locked: dict[str, tuple[int, float]] = field(default_factory=dict)
    waited_for: list[str] = field(default_factory=list)
    repacked: RepackReport = field(default_factory=RepackReport)
