"""Puts right what dead runs left on this host: killed at any instant, with the service or with the whole machine."""

from collections.abc import Iterator
from dataclasses import dataclass

from vmbackup.engine.chain import SOURCE, committed_in
from vmbackup.errors import JobConflictError, NotFoundError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.intents import Intent
from vmbackup.hypervisor.plan import Committed
from vmbackup.repository.repository import Repository


@dataclass(frozen=True)
class Recovered:
    """What came of a guest's dead runs: sentences of what was done, and of what could not be done and waits."""

    domain: str
    done: tuple[str, ...]
    trouble: tuple[str, ...]


class Recovery:
    """The dead runs of some domains (names or UUIDs), of all for none. Runs that live are left alone."""

    def __init__(self, host: Host, domains: tuple[str, ...] = ()) -> None:
        self._host, self._domains = host, domains
        self._live: set[str] = set()  # UUIDs

    def free(self) -> Iterator[Recovered]:
        """What needs no repository, of all guests first: they are thawed, jobs ended, scratch and sockets removed."""
        for intent in self._one_each(self.waiting()):
            yield from self._recover(intent, lambda _name: None)

    def judge(self, repository: Repository) -> Iterator[Recovered]:
        """The rest, of those whose runs were into this repository: it knows which of their checkpoints count."""
        for intent in self._one_each(self.waiting()):
            if intent.repository_id == repository.id:
                found = repository.read_points(repository.lineage(SOURCE, intent.domain_uuid))
                yield from self._recover(intent, committed_in(repository, found.points, found.forgotten))

    def waiting(self) -> list[Intent]:
        """The dead runs that are not put right yet."""
        return [i for i in self._host.intents() if self._is_meant(i) and i.domain_uuid not in self._live]

    def _is_meant(self, intent: Intent) -> bool:
        return not self._domains or intent.domain_name in self._domains or intent.domain_uuid in self._domains

    @staticmethod
    def _one_each(intents: list[Intent]) -> list[Intent]:
        """One of each domain and repository: all of the domain are put right together."""
        return list({(intent.domain_uuid, intent.repository_id): intent for intent in intents}.values())

    def _recover(self, intent: Intent, committed: Committed) -> Iterator[Recovered]:
        try:
            left = self._host.recover(intent, committed)
        except JobConflictError:  # a run that lives: nothing is dead there
            self._live.add(intent.domain_uuid)
        except NotFoundError:
            return
        except VmbackupError as error:
            yield Recovered(intent.domain_name, (), (error.message,))
        else:
            done = tuple(text for one in left for text in one.done)
            trouble = tuple(text for one in left for text in one.trouble)
            if done or trouble:
                yield Recovered(intent.domain_name, done, trouble)
