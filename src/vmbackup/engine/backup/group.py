"""Several guests at one instant: their jobs are begun together, read one after the other, and their points tied.

What a group is worth when one of its guests fails: the others' points are made all the same. Each is good by itself,
and they are at one instant with each other; but each says who is missing, as a warning. So no point is committed
before all guests are read.

Locks: each guest's lock is asked for without waiting, in the order of their UUIDs. One that is held by another run
fails that guest (`job_conflict`), and nobody waits for anybody.
"""

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from vmbackup.engine.backup.run import BackupOptions, GuestBackup, Membership
from vmbackup.errors import DamageError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.beginning import Beginning
from vmbackup.hypervisor.off.beginning import OffBeginning
from vmbackup.hypervisor.source import DomainInfo, GuestJob
from vmbackup.progress import Progress
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository
from vmbackup.repository.summary import PointSummary

_ID_BYTES = 8
_MOST_TEXT = 500  # characters of an error that the others' points repeat


@dataclass
class Outcome:
    """What became of one guest, by the name that was asked for: its point, or the error."""

    name: str
    point: PointSummary | None = None
    error: Exception | None = None

    def result(self) -> PointSummary:
        """The point. Raises the error."""
        if self.error is not None:
            raise self.error
        assert self.point
        return self.point


def backup_group(
    host: Host,
    repository: Repository,
    job: str,
    names: Sequence[str],
    options: BackupOptions,
    progress: Progress,
) -> list[Outcome]:
    """Makes a restore point of each guest, all at one instant; in the order of `names`.

    Raises VmbackupError only for what concerns all; what one guest meets is in its outcome.
    """
    repository.check_may_write()
    distrust: dict[str, DamageError] = {}
    while True:
        try:
            with ExitStack() as stack:
                group = _Group(host, repository, job, options, progress, distrust, stack)
                return group.run(names)
        except _BeginAgain as again:
            told = f"{again.error.message}; {again.name} is read whole again, with all of its group"
            progress.note(f"{told}, and nothing is built on it")
            distrust[again.uuid] = again.error


class _BeginAgain(Exception):
    """A guest's earlier points cannot be built on: the moment is over, so the whole group begins again."""

    def __init__(self, name: str, uuid: str, error: DamageError) -> None:
        super().__init__(name)
        self.name, self.uuid, self.error = name, uuid, error


@dataclass
class _Member:
    outcome: Outcome
    domain: DomainInfo
    backup: GuestBackup
    beginning: Beginning | OffBeginning | None = None
    job: GuestJob | None = None
    point: Point | None = None
    undo: ExitStack = field(default_factory=ExitStack)  # what is to be done where it fails, in any way

    @property
    def alive(self) -> bool:
        return self.outcome.error is None


class _Group:
    def __init__(
        self,
        host: Host,
        repository: Repository,
        job: str,
        options: BackupOptions,
        progress: Progress,
        distrust: dict[str, DamageError],
        stack: ExitStack,
    ) -> None:
        self._host, self._repository, self._job = host, repository, job
        self._options, self._progress, self._distrust, self._stack = options, progress, distrust, stack
        self._members: list[_Member] = []

    def run(self, names: Sequence[str]) -> list[Outcome]:
        outcomes = [self._found(name) for name in names]
        self._members.sort(key=lambda member: member.domain.uuid)
        for step in (self._open, self._prepare):
            self._each(step)
        self._begin()
        self._each(self._transfer)
        group = self._membership(outcomes)
        self._each(lambda member: self._commit(member, group))
        self._each(self._finish)
        return outcomes

    def _found(self, name: str) -> Outcome:
        """A guest that is there becomes a member; one that is named twice is one."""
        outcome = Outcome(name)
        try:
            domain = self._host.domain(name)
        except VmbackupError as error:
            outcome.error = error
            return outcome
        for member in self._members:
            if member.domain.uuid == domain.uuid:
                return member.outcome
        distrust = self._distrust.get(domain.uuid)
        backup = GuestBackup(self._host, self._repository, domain, self._options, self._progress, distrust)
        member = _Member(outcome, domain, backup)
        self._stack.enter_context(member.undo)
        self._members.append(member)
        return outcome

    def _each(self, step: Callable[[_Member], None]) -> None:
        """One step of all that have not failed; who fails is undone at once, and the others go on."""
        for member in [member for member in self._members if member.alive]:
            try:
                step(member)
            except Exception as error:
                self._fail(member, error)

    def _fail(self, member: _Member, error: Exception) -> None:
        told = isinstance(error, DamageError) and error.object_key is not None
        if told and member.domain.uuid not in self._distrust and member.point is None:
            raise _BeginAgain(member.domain.name, member.domain.uuid, error) from error  # type: ignore[arg-type]
        member.outcome.error = error
        member.undo.close()

    def _open(self, member: _Member) -> None:
        member.backup.open(self._host.reserve(member.domain))
        member.undo.callback(member.backup.abandon)

    def _prepare(self, member: _Member) -> None:
        member.beginning = self._host.prepare(member.domain, **member.backup.wanted())
        member.undo.callback(member.beginning.give_up)

    def _begin(self) -> None:
        members = [member for member in self._members if member.alive]
        beginnings = [member.beginning for member in members if member.beginning]
        for member in members:  # from here on it is the host's
            member.undo.pop_all()
            member.undo.callback(member.backup.abandon)
        for member, begun in zip(members, self._host.begin_together(beginnings), strict=True):
            if isinstance(begun, Exception):
                self._fail(member, begun)
            else:
                member.job = begun
                member.undo.push(begun)

    def _transfer(self, member: _Member) -> None:
        assert member.job
        member.backup.transfer(member.job)

    def _membership(self, outcomes: Sequence[Outcome]) -> Membership:
        """What each point says of the group: who is of it, by session, and who failed."""
        alive = [member for member in self._members if member.alive]
        stirred = [member.domain.name for member in alive if member.job and not member.job.stood_still]
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        domains = {member.outcome.name: member.domain for member in self._members}
        record = {
            "id": secrets.token_hex(_ID_BYTES),
            "job": self._job,
            "instant": not stirred,
            "members": [_member(m.domain, m.backup.session) for m in sorted(alive, key=lambda m: m.domain.name)],
            "failed": [_failed(outcome, domains.get(outcome.name)) for outcome in failed],
        }
        warnings = [f"the group is not whole: {outcome.name} failed: {_short(outcome)}" for outcome in failed]
        warnings += [f"the group is not at one instant: {name} did not stand still" for name in stirred]
        return Membership(record, warnings)

    def _commit(self, member: _Member, group: Membership) -> None:
        assert member.job
        member.point = member.backup.commit(member.job, group)
        member.job.finish(committed=True)
        member.undo.pop_all()

    def _finish(self, member: _Member) -> None:
        assert member.point
        member.outcome.point = member.backup.finished(member.point)


def _member(domain: DomainInfo, session: bytes) -> dict[str, str]:
    return {"name": domain.name, "uuid": domain.uuid, "session": session.hex()}


def _failed(outcome: Outcome, domain: DomainInfo | None) -> dict[str, str | None]:
    """`domain` is None where libvirt knows none of that name."""
    name, uuid = (domain.name, domain.uuid) if domain else (outcome.name, None)
    return {"name": name, "uuid": uuid, "error": _short(outcome)}


def _short(outcome: Outcome) -> str:
    return str(outcome.error)[:_MOST_TEXT]
