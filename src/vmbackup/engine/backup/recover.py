"""Puts right what dead runs left on this host's domains: guests thawed first, then jobs and files, then checkpoints.

Whether a checkpoint that nobody finished stays is for its repository to say; all else is done without one.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from vmbackup.engine.chain import SOURCE, committed_in
from vmbackup.errors import JobConflictError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.tidy.intents import Intent
from vmbackup.hypervisor.tidy.recovery import Leftover
from vmbackup.repository.repository import Repository
from vmbackup.storage_backends import StoreError

Opener = Callable[[], AbstractContextManager[Repository]]


@dataclass(frozen=True)
class Candidate:
    """A repository of the configuration. `id`: what this host remembers of it, None where it never opened it."""

    name: str
    id: str | None
    open: Opener


@dataclass(frozen=True)
class Trouble:
    """What could not be put right on a domain, and stays for another try."""

    domain: str
    message: str
    hint: str = "run 'vmbackup recover' again; the domain's next backup tries too"


@dataclass
class Recovery:
    """What was put right: (domain, sentence); what was not; the domains that a live run works on, left alone."""

    done: list[tuple[str, str]] = field(default_factory=list)
    failed: list[Trouble] = field(default_factory=list)
    running: list[str] = field(default_factory=list)


def recover(host: Host, intents: Iterable[Intent], candidates: Iterable[Candidate]) -> Recovery:
    """Recovers the domains of these intents. Repositories are opened only if one is asked for its word.

    Raises HypervisorError where libvirt cannot be asked.
    """
    work = _Work(host)
    first = {intent.domain_uuid: intent for intent in sorted(intents, key=lambda intent: not intent.frozen)}
    dead = [intent for intent in first.values() if work.thaw(intent)]
    waiting = {intent.domain_uuid: (intent, needed) for intent in dead if (needed := work.put_right(intent))}
    for candidate in candidates if waiting else ():
        missing = set().union(*(needed for _, needed in waiting.values()))
        if missing and (candidate.id is None or candidate.id in missing):
            work.ask(candidate, waiting)
    work.leave(waiting)
    return work.found


class _Work:
    def __init__(self, host: Host) -> None:
        self._host = host
        self.found = Recovery()
        self._closed: dict[str | None, str] = {}  # id of a repository that could not be opened -> why

    def thaw(self, intent: Intent) -> bool:
        """Thaws the guest where a dead run may have left it frozen. False where a live run works on the domain."""
        return self._try(intent, lambda: self._host.thaw(intent)) is not None

    def put_right(self, intent: Intent) -> set[str]:
        """All that needs no repository; gives the ids of those that have to tell about a checkpoint."""
        left = self._try(intent, lambda: self._host.recover(intent, lambda _name: None)) or []
        self._tell_trouble(left)
        return {each.repository_id for each in left if each.committed is None and not each.trouble}

    def ask(self, candidate: Candidate, waiting: dict[str, tuple[Intent, set[str]]]) -> None:
        """Opens a repository, and does what waits for its word."""
        try:
            with candidate.open() as repository:
                for uuid, (intent, needed) in list(waiting.items()):
                    if repository.id in needed:
                        self._by_its_word(repository, intent)
                        needed.remove(repository.id)
                        if not needed:
                            del waiting[uuid]
        except (VmbackupError, StoreError) as error:
            self._closed[candidate.id] = f"repository {candidate.name} cannot be asked: {error.message}"

    def _by_its_word(self, repository: Repository, intent: Intent) -> None:
        found = repository.read_points(repository.lineage(SOURCE, intent.domain_uuid))
        committed = committed_in(repository, found.points, found.forgotten)
        self._tell_trouble(self._try(intent, lambda: self._host.recover(intent, committed)) or [])

    def leave(self, waiting: dict[str, tuple[Intent, set[str]]]) -> None:
        """Tells of what no repository has decided on."""
        for intent, needed in waiting.values():
            for repository in sorted(needed):
                unknown = f"the configuration has no repository {repository}"
                why = self._closed.get(repository) or "; ".join(self._closed.values()) or unknown
                told = f"a checkpoint of a run that died waits for repository {repository} to tell whether it counts"
                self.found.failed.append(Trouble(intent.domain_name, f"{told}: {why}"))

    def _try(self, intent: Intent, function: Callable[[], list[Leftover]]) -> list[Leftover] | None:
        """What it did, told; None where a live run works on the domain: it has put all right by itself."""
        try:
            left = function()
        except JobConflictError:
            self.found.running.append(intent.domain_name)
            return None
        self.found.done += ((each.domain, what) for each in left for what in each.done)
        return left

    def _tell_trouble(self, left: list[Leftover]) -> None:
        self.found.failed += (Trouble(each.domain, told) for each in left for told in each.trouble)
