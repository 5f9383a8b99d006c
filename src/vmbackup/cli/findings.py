"""What the stores of repositories were seen to do: kept by this host, so that a change for the worse is told."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmbackup.cli.output import warn
from vmbackup.durable import replace_file
from vmbackup.errors import RepositoryError

if TYPE_CHECKING:
    from vmbackup.storage_backends import ProbeResult, Store

_WORSE = {
    "put_if_absent": "does not keep any more what was put first",
    "versioning": "keeps no versions any more",
    "object_lock": "locks no objects any more",
}


@dataclass(frozen=True)
class Change:
    """What became worse since this host first saw the store, as the end of a sentence; the file that remembers."""

    what: str
    file: Path


def document(probe: "ProbeResult") -> dict[str, Any]:
    """What a store does, as it is kept and shown."""
    bucket = probe.bucket
    found: dict[str, Any] = {"put_if_absent": probe.put_if_absent, "ranges": probe.ranges, "lists": probe.lists}
    if bucket is not None:
        found |= {
            "settled_by": "server" if bucket.conditional else "versions",
            "versioning": bucket.versioning,
            "object_lock": bucket.object_lock,
            "not_told": list(bucket.unknown),
        }
    return found


def compare(state_dir: Path, place: str, probe: "ProbeResult") -> list[Change]:
    """What is worse than this host has seen at that place (`Store.place`); remembers what it sees where nothing is."""
    path, now = _path(state_dir, place), document(probe)
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = {}
    worse = [what for key, what in _WORSE.items() if before.get(key) is True and now.get(key) is False]
    if not worse and before != {"place": place, **now}:
        remember(state_dir, place, probe)
    return [Change(what, path) for what in worse]


def remember(state_dir: Path, place: str, probe: "ProbeResult") -> None:
    """From now on this is what the store is compared with."""
    path = _path(state_dir, place)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, json.dumps({"place": place, **document(probe)}).encode(), durable=False)


def _path(state_dir: Path, place: str) -> Path:
    return state_dir / "stores" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"


def look(state_dir: Path, store: "Store") -> bool:
    """Before a run into a bucket: try what it does. Warns of what became worse (True). RepositoryError, StoreUnfit."""
    if not store.url.startswith("s3://"):
        return False
    probe = store.probe()
    for lack in probe.lacks:
        raise RepositoryError(f"{store.url} {lack}", "use another provider")
    changes = compare(state_dir, store.place, probe)
    for change in changes:
        warn(f"{store.url} {change.what}; if that was meant, delete {change.file}")
    return bool(changes)
