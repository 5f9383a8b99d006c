"""Disks that a restore in place has begun to change and has not finished: no backup may believe their bitmaps.

One file a domain in state_dir/in-place: written and synced before the first change, gone when the last disk is whole.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vmbackup.durable import replace_file, sync_folder
from vmbackup.errors import HypervisorError

_VERSION = 1
_UNKNOWN = "an unknown restore point"


@dataclass(frozen=True)
class HalfDone:
    """`disks`: target -> id of the restore point that it was being brought to; `kept`: that of the state before.

    `unreadable`: something is marked, and it is not known which disks.
    """

    domain_name: str
    disks: dict[str, str] = field(default_factory=dict)
    kept: str | None = None
    unreadable: bool = False

    def point_of(self, target: str) -> str | None:
        """The restore point that a disk may hold a part of; None where it holds none."""
        return _UNKNOWN if self.unreadable else self.disks.get(target)


class HalfDoneStore:
    """The marks of this host's domains."""

    def __init__(self, state_dir: str) -> None:
        self._folder = os.path.join(state_dir, "in-place")

    def of(self, uuid: str) -> HalfDone:
        """What is marked of a domain; a mark that cannot be read counts for all its disks."""
        try:
            with open(self._path(uuid), encoding="utf-8") as file:
                data = json.load(file)
            disks = {str(target): str(point) for target, point in data["disks"].items()}
            if data["version"] != _VERSION:
                return HalfDone("", unreadable=True)
            return HalfDone(str(data["domain_name"]), disks, data["kept"])
        except FileNotFoundError:
            return HalfDone("")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return HalfDone("", unreadable=True)

    def mark(self, uuid: str, name: str, targets: Iterable[str], point: str, kept: str | None) -> None:
        """Marks disks, beside those that are; durable when this returns. Raises HypervisorError."""
        disks = {**self.of(uuid).disks, **dict.fromkeys(targets, point)}
        self._write(uuid, HalfDone(name, disks, kept))

    def clear(self, uuid: str, targets: Iterable[str] | None = None) -> None:
        """These disks (None: all) are whole. Raises HypervisorError."""
        found = self.of(uuid)
        whole = set(found.disks if targets is None else targets)
        left = {target: point for target, point in found.disks.items() if target not in whole}
        if left:
            self._write(uuid, HalfDone(found.domain_name, left, found.kept))
            return
        with self._told(), contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(uuid))
            sync_folder(Path(self._folder))

    def _path(self, uuid: str) -> str:
        return os.path.join(self._folder, f"{uuid}.json")

    def _write(self, uuid: str, mark: HalfDone) -> None:
        path = self._path(uuid)
        document = {"version": _VERSION, **asdict(mark)}
        del document["unreadable"]
        with self._told():
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            replace_file(Path(path), json.dumps(document).encode() + b"\n")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HypervisorError(
                f"what a restore changes cannot be written down in {self._folder}: {error.strerror}",
                "set [daemon] state_dir to a writable folder",
            ) from error
