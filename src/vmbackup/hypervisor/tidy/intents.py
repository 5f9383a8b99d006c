"""What a run is about to do to a domain, on disk before it does it: a later run puts a dead one right from it.

One file a session in state_dir/intents: a line of JSON with all of it, written and synced before the freeze and the
begin; then a line for each change, appended without a sync (replacing the file would cost one), for a lost change
only makes a later run look once more. The file goes when nothing of the run is left on the host. A run is dead when
its domain's lock is free.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from vmbackup.durable import replace_file
from vmbackup.errors import HypervisorError

_VERSION = 1


@dataclass(frozen=True)
class Intent:
    """A run's traces on the host.

    `frozen` is True while the guest may be frozen, `paused` while it may be paused by us. `phase`: `beginning` until
    backupBegin has returned (libvirtd may still be at it when the run is dead), `begun`, `committed` once the restore
    point is durable: then only `superseded` checkpoints are left to delete. `disks` are the targets of the job; `paths`
    target -> image of those with a bitmap, for its removal when the domain is off; `scratch` the files, in the order of
    `disks`; `scratch_bytes` what the run reserved.
    """

    session: str
    repository_id: str
    uri: str
    domain_uuid: str
    domain_name: str
    domain_id: int
    pid: int
    checkpoint: str | None
    disks: tuple[str, ...]
    paths: dict[str, str]
    socket: str
    scratch: tuple[str, ...]
    scratch_bytes: int
    was_running: bool
    frozen: bool
    phase: Literal["beginning", "begun", "committed"] = "beginning"
    superseded: tuple[str, ...] = field(default=())
    paused: bool = False

    @classmethod
    def load(cls, data: dict[str, Any]) -> Self:
        """From JSON's plain values. Raises ValueError, KeyError, TypeError for anything else."""
        values = dict(data)
        if values.pop("version") != _VERSION:
            raise ValueError("an intent of another version")
        for name in ("disks", "scratch", "superseded"):
            values[name] = tuple(values[name])
        return cls(**values)


class IntentStore:
    """The intents of this host."""

    def __init__(self, state_dir: str) -> None:
        self._folder = os.path.join(state_dir, "intents")

    def _path(self, session: str) -> str:
        return os.path.join(self._folder, f"{session}.json")

    def write(self, intent: Intent) -> None:
        """Makes it durable, whole or not at all. Raises HypervisorError where it cannot be kept."""
        path = self._path(intent.session)
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            replace_file(Path(path), json.dumps({"version": _VERSION, **asdict(intent)}).encode() + b"\n")
        except OSError as error:
            raise HypervisorError(
                f"the intent of the run cannot be written to {self._folder}: {error.strerror}",
                "set [daemon] state_dir to a writable folder",
            ) from error

    def update(self, intent: Intent, **changes: Any) -> Intent:
        """The intent, changed; the change is kept if that is possible, and is not synced."""
        with contextlib.suppress(OSError), open(self._path(intent.session), "a", encoding="utf-8") as file:
            file.write(json.dumps(changes) + "\n")
        return replace(intent, **changes)

    def remove(self, session: str) -> None:
        """Forgets it; one that is gone already is fine."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(session))

    def all(self) -> Iterator[Intent]:
        """Every intent, oldest session first. A file that is none is skipped: it is never deleted unread."""
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return
        for name in names:
            if not name.endswith(".json"):
                continue
            try:
                yield _read(os.path.join(self._folder, name))
            except (OSError, ValueError, KeyError, TypeError, IndexError):
                continue

    def of_domain(self, uuid: str) -> list[Intent]:
        """The intents of one domain, oldest first."""
        return [intent for intent in self.all() if intent.domain_uuid == uuid]


def _read(path: str) -> Intent:
    """The first line with the changes of the others; a last line that is cut counts nothing."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    data: dict[str, Any] = json.loads(lines[0])
    for line in lines[1:-1]:
        data |= json.loads(line)
    return Intent.load(data)
