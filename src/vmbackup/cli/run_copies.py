"""The copies that follow the backups of `run --wait`: waited for as the backups are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

Entry = Mapping[str, Any]  # a run or a guest, as the service tells it
Copy = tuple[str, str, str, str]  # job, domain, repository, target


@dataclass
class FollowingCopies:
    """Copies of ended backups, until each has ended: {copy: when its backup had ended}.

    A copy has ended once the history tells of one that began after its backup, and none goes on at the look after that:
    one that went on as the backup ended lacks its restore point, and another follows it.
    """

    wanted: Mapping[Copy, datetime]
    patience: int  # looks at which nothing is known of a copy before it counts as skipped
    ended: dict[Copy, dict[str, Any]] = field(default_factory=dict)
    _seen: dict[Copy, str] = field(default_factory=dict)  # the id of the run that seems to be its last
    _missing: dict[Copy, int] = field(default_factory=dict)  # looks

    @classmethod
    def of(cls, backups: Iterable[Entry], guests: Iterable[Entry], patience: int) -> "FollowingCopies":
        """Those that follow these backups, which were good, to where the service says their guests are copied."""
        targets = {
            (guest["job"], guest["domain"], guest["repository"]): [copy["repository"] for copy in guest["copies"]]
            for guest in guests
        }
        wanted = {}
        for run in backups:
            place = (run["job"], run["domain"], run["repository"])
            for target in targets.get(place, ()):
                wanted[(*place, target)] = datetime.fromisoformat(run["finished"])
        return cls(wanted, patience)

    def open(self) -> list[Copy]:
        """Those that are waited for yet."""
        return [copy for copy in self.wanted if copy not in self.ended]

    def look(self, runs: Sequence[Entry], history: Callable[[], Sequence[Entry]]) -> None:
        """Take in what the service tells of what goes on, and, where that is not all, of what has ended."""
        busy = {copy_of(run) for run in runs if not _is_waiting_retry(run)}
        gone = [copy for copy in self.open() if copy not in busy]
        past = history() if gone else ()
        for copy in gone:
            last = next((run for run in past if copy_of(run) == copy and self._follows(copy, run)), None)
            if last is None:
                self._miss(copy)
            elif self._seen.get(copy) == last["id"]:
                self.ended[copy] = dict(last)
            else:
                self._seen[copy] = last["id"]

    def _follows(self, copy: Copy, run: Entry) -> bool:
        return datetime.fromisoformat(run["started"]) >= self.wanted[copy]

    def _miss(self, copy: Copy) -> None:
        self._missing[copy] = self._missing.get(copy, 0) + 1
        if self._missing[copy] > self.patience:
            job, domain, repository, target = copy
            self.ended[copy] = {
                "id": None, "kind": "copy", "job": job, "domain": domain, "repository": repository, "target": target,
                "status": "skipped", "error": None, "hint": None, "exit_code": None,
            }  # fmt: skip


def copy_of(run: Entry) -> Copy | None:
    """Which copy a run makes; None for other work."""
    if run["kind"] != "copy":
        return None
    return run["job"], run["domain"], run["repository"], run["target"]


def _is_waiting_retry(run: Entry) -> bool:
    return bool(run["state"] == "queued" and run["trigger"] == "retry")
