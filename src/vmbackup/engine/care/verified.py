"""What the last verification of a repository found, kept in this host's state folder."""

import contextlib
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmbackup.durable import replace_file
from vmbackup.engine.care.findings import Damage
from vmbackup.engine.care.verify import VerifySummary
from vmbackup.errors import TargetError

_FOLDER = "verified"


@dataclass(frozen=True)
class DataReading:
    """When data was last read, how (`decoded` or `checksums`), and which share of the packs, of 1."""

    time: datetime
    how: str
    share: float


@dataclass(frozen=True)
class Verified:
    """The state of a repository as this host knows it.

    `time`: of the last verification of all restore points (None: never), with its numbers and the `domains` that had
    any; `reading`: the last one that read data; `damaged`: what is known to be damaged, found whenever.
    """

    repository: str
    time: datetime | None = None
    reading: DataReading | None = None
    points: int = 0
    objects: int = 0
    bytes: int = 0
    domains: tuple[str, ...] = ()
    damaged: tuple[Damage, ...] = ()


def recall(folder: Path, name: str, repository: str | None = None) -> Verified | None:
    """What is kept of the repository that the configuration calls `name`; None where nothing is, or of another one.

    `folder`: the host's state folder; `repository`: the id that it must have (32 hex digits), any for None. A file
    that cannot be read counts for nothing: the next verification writes it anew.
    """
    try:
        kept = _from_json(json.loads(_path(folder, name).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kept if repository in (None, kept.repository) else None


def after(before: Verified | None, repository: str, found: VerifySummary, *, everything: bool = True) -> Verified:
    """What is known after a verification that ended now; one of a single point adds only damage."""
    old = before or Verified(repository)
    if not everything:
        kept = tuple(d for d in old.damaged if d.object not in found.keys)
        damaged = tuple(sorted({*kept, *found.damaged}, key=lambda d: d.object))
        return replace(old, domains=tuple(sorted({*old.domains, *found.domains})), damaged=damaged)
    now = datetime.now(UTC)
    reading = DataReading(now, found.read, found.share) if found.read and found.share else old.reading
    return Verified(
        repository, now, reading, found.points, found.objects, found.bytes, found.domains, found.damaged
    )


def keep(folder: Path, name: str, known: Verified) -> None:
    """Keeps it for `recall`, atomically. Raises TargetError."""
    with contextlib.suppress(OSError):  # told by what follows
        (folder / _FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(_path(folder, name), json.dumps(_to_json(known), indent=1), mode=0o600)


def known_damage(kept: Verified | None) -> frozenset[str]:
    """The objects to look at closely, whatever is verified."""
    return frozenset(damage.object for damage in kept.damaged) if kept else frozenset()


def write_atomically(path: Path, text: str, *, mode: int) -> None:
    """A file that is there whole or as it was before. Raises TargetError."""
    try:
        replace_file(path, text.encode(), mode=mode)
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}", "name a file in a folder that is there") from error


def _path(folder: Path, name: str) -> Path:
    return folder / _FOLDER / f"{name}.json"


def _to_json(kept: Verified) -> dict[str, Any]:
    reading = kept.reading
    return {
        "repository": kept.repository,
        "time": kept.time and kept.time.isoformat(),
        "reading": reading and {"time": reading.time.isoformat(), "how": reading.how, "share": reading.share},
        "checked": {"points": kept.points, "objects": kept.objects, "bytes": kept.bytes},
        "domains": list(kept.domains),
        "damaged": [damage.to_json() for damage in kept.damaged],
    }


def _from_json(data: dict[str, Any]) -> Verified:
    reading, checked = data["reading"], data["checked"]
    return Verified(
        str(data["repository"]),
        datetime.fromisoformat(data["time"]) if data["time"] else None,
        reading and DataReading(datetime.fromisoformat(reading["time"]), str(reading["how"]), float(reading["share"])),
        int(checked["points"]),
        int(checked["objects"]),
        int(checked["bytes"]),
        tuple(data["domains"]),
        tuple(Damage.from_json(damage) for damage in data["damaged"]),
    )
