"""The front door: a hypervisor host, its domains, and the runs on them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.checks.host import check_domain, check_host, version_text
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.define.define import DefineOptions, Definition, define, plan_definition, start
from vmbackup.hypervisor.disk_users import DiskUser, disk_users
from vmbackup.hypervisor.domains import MIGRATED_AWAY, describe, find_domain, handle, list_domains
from vmbackup.hypervisor.live.begin import Beginner, Wanted
from vmbackup.hypervisor.live.beginning import Beginning
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.live.together import FREEZE_SECONDS, begin_together
from vmbackup.hypervisor.names import CheckpointName, session_tag
from vmbackup.hypervisor.off.begin import OffBeginner
from vmbackup.hypervisor.off.beginning import OffBeginning
from vmbackup.hypervisor.off.hooks import OffHooks
from vmbackup.hypervisor.off.job import OffJob
from vmbackup.hypervisor.places import Places, domain_folders_of
from vmbackup.hypervisor.plan import Committed, Plan, Request, make_plan
from vmbackup.hypervisor.rebuild.wishes import NewDisk
from vmbackup.hypervisor.remote.remote import Reach, host_of, require_here
from vmbackup.hypervisor.shown import Shown, show
from vmbackup.hypervisor.source import Anchor, DiskInfo, DomainInfo, FreezeOptions
from vmbackup.hypervisor.started.aside import set_aside
from vmbackup.hypervisor.tidy.half_done import HalfDoneStore
from vmbackup.hypervisor.tidy.intents import Intent, IntentStore
from vmbackup.hypervisor.tidy.locks import DomainLock
from vmbackup.hypervisor.tidy.purge import PurgeReport, purge_domain
from vmbackup.hypervisor.tidy.recovery import Leftover, recover_domain, thaw_domain


class Host:
    """A libvirt host. A context manager; may be used from several threads, one run a domain at a time."""

    def __init__(self, connection: Connection, places: Places) -> None:
        self.connection, self.places = connection, places
        self._store = IntentStore(places.state_dir)
        self.half_done = HalfDoneStore(places.state_dir)

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        scratch_dir: str,
        state_dir: str,
        domain_folders: str = "",
        keep: int = 1,
        reach: Reach | None = None,
    ) -> Self:
        """Connects. `keep` is how many of our checkpoints stay on a domain after a commit, the new one included.

        `domain_folders`: where libvirt has those of its domains, if not where the URI says. `reach` is how another
        machine's disks are read; without it none of them is.

        Raises HypervisorError with one sentence and a hint where there is no libvirt, or no access to it.
        """
        if keep < 1:
            raise ValueError("at least the newest checkpoint must be kept")
        if host := host_of(uri):
            reach = reach or Reach(host, None)
        places = Places(
            os.path.abspath(scratch_dir),
            os.path.abspath(state_dir),
            domain_folders or domain_folders_of(uri),
            keep,
            reach if host else None,
        )
        return cls(Connection(uri), places)

    def close(self) -> None:
        """Ends the connection. Never raises."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def versions(self) -> dict[str, str]:
        """Versions of libvirt's daemon and of QEMU: {"libvirt": "9.0.0", "qemu": "7.2.22"}."""
        numbers = self.connection.call("ask for versions", lambda raw: (raw.getLibVersion(), raw.getVersion()))
        return dict(zip(("libvirt", "qemu"), map(version_text, numbers), strict=True))

    def domains(self) -> list[DomainInfo]:
        """All domains, by name."""
        return list_domains(self.connection)

    def own_domains(self) -> list[DomainInfo]:
        """Those that jobs back up: not those that hang on a repository (aside.py), or run on another host now."""
        aside = set_aside(self.places.state_dir)
        return [each for each in self.domains() if each.uuid not in aside and each.state != MIGRATED_AWAY]

    def domain(self, name_or_uuid: str) -> DomainInfo:
        """One domain. Raises DomainNotFound, whose hint names near ones."""
        return find_domain(self.connection, name_or_uuid)

    def plan(
        self,
        domain: DomainInfo,
        repository_id: str,
        parent: Anchor | None,
        *,
        full: bool = False,
        earlier: Mapping[str, DiskInfo] | None = None,
        reread: Mapping[str, str] | None = None,
        committed: Committed | None = None,
    ) -> Plan:
        """What `begin` would do now; changes nothing. Arguments as for `begin`.

        Raises JobConflictError while a run works on the domain: its checkpoints must not be looked at meanwhile.
        """
        half_done = self.half_done.of(domain.uuid)
        request = Request(repository_id, parent, full, earlier or {}, reread or {}, committed, half_done)
        info = self.connection.call("look at the domain", lambda raw: describe(handle(raw, domain)), domain.name)
        lock = self.reserve(info)
        try:
            return self.connection.call(
                "plan the backup",
                lambda raw: make_plan(raw, handle(raw, info), info, request, apply=False),
                info.name,
            )
        finally:
            lock.release()

    def reserve(self, domain: DomainInfo) -> DomainLock:
        """The lock of a domain on this host: held, it keeps other runs off. Pass it to `begin`, or release it.

        Raises JobConflictError.
        """
        return DomainLock(self.places.state_dir, domain.uuid, domain.name)

    def begin(self, domain: DomainInfo, **wanted: Unpack[Wanted]) -> LiveJob | OffJob:
        """Fixes a point in time of a domain, running or off. Dead runs on it are put right first (`job.recovered`).

        `session` is the run's id, 32 hex digits, used for no other begin. `parent` is the anchor of the newest
        restore point, `earlier` all that point's disks by target (also raw ones). `reread` has reasons to
        read disks whole, by target. `committed` tells of a checkpoint's name whether the repository holds, or held
        and forgot, the restore point that its session wrote: True, False, or None for another repository's.
        It decides three things: an unfinished run's checkpoint is kept or deleted; ours that are superseded
        go after the commit; one of ours that is newer than the parent and has no restore point shows that
        the repository is older than this host: then all is read whole and that checkpoint is left alone.
        Without it, the checkpoint of `parent` is taken to be the only one that counts.

        `elsewhere` is the host that made the newest restore point, if not this one: what is off here may run there.
        `readers` is how many the caller will open of each disk at a time: their connections are made here.
        `lock` is what `reserve` gave; it is the job's from here on. Raises JobConflictError (another run, a
        foreign job), ScratchFullError, QuiesceError, HypervisorError; then nothing is left behind.
        """
        lock = wanted.get("lock") or self.reserve(domain)
        try:
            info, request, recovered = self._ready(domain, wanted)
            if not info.active:
                return self._off(info, request, wanted, lock, recovered).run()
            return self._on(request, wanted).begin(info, lock, recovered)
        except BaseException:
            lock.release()
            raise

    def prepare(self, domain: DomainInfo, **wanted: Unpack[Wanted]) -> Beginning | OffBeginning:
        """All of `begin` that is slow, with nothing frozen: the rest is for `begin_together`, or `give_up` of it.

        Arguments and errors as of `begin`.
        """
        lock = wanted.get("lock") or self.reserve(domain)
        wanted["freezing"] = _hurried(wanted.get("freezing"))
        try:
            info, request, recovered = self._ready(domain, wanted)
            if not info.active:
                return self._off(info, request, wanted, lock, recovered)
            return self._on(request, wanted).prepare(info, lock, recovered)
        except BaseException:
            lock.release()
            raise

    def begin_together(self, beginnings: Sequence[Beginning | OffBeginning]) -> list[LiveJob | OffJob | Exception]:
        """The job of each, all at one instant, or why it has none: see together.py."""
        return begin_together(beginnings)

    def _ready(self, domain: DomainInfo, wanted: Wanted) -> tuple[DomainInfo, Request, list[Leftover]]:
        """The domain as it is now, what is wanted of it, and what dead runs had left there."""
        repository_id, parent, committed = wanted["repository_id"], wanted["parent"], wanted.get("committed")
        session_tag(wanted["session"])
        request = Request(
            repository_id,
            parent,
            wanted.get("full", False),
            wanted.get("earlier") or {},
            wanted.get("reread") or {},
            committed,
            self.half_done.of(domain.uuid),
            wanted.get("elsewhere"),
        )
        recovered = self._recover_locked(domain.uuid, committed or _only(parent, repository_id))
        info = self.connection.call("look at the domain", lambda raw: describe(handle(raw, domain)), domain.name)
        if not info.active:
            self.require_here(f"backing up {info.name}, which is {info.state},", "start it")
        return info, request, recovered

    def _on(self, request: Request, wanted: Wanted) -> Beginner:
        common = self.connection, self._store, self.places, request, wanted["session"], wanted.get("quiesce", "auto")
        return Beginner(*common, wanted.get("freezing") or FreezeOptions(), wanted.get("readers", 1))

    def _off(
        self, info: DomainInfo, request: Request, wanted: Wanted, lock: DomainLock, recovered: Sequence[Leftover]
    ) -> OffBeginning:
        policy, freezing = wanted.get("quiesce", "auto"), wanted.get("freezing") or FreezeOptions()
        hooks = OffHooks(self.connection, info, policy, freezing.hooks)
        common = self.connection, self._store, self.places, request, wanted["session"], policy
        beginner = OffBeginner(*common, hooks, wanted.get("readers", 1))
        return OffBeginning(lambda: beginner.begin(info, lock, recovered), hooks, lock)

    def recover(self, domain: DomainInfo | Intent, committed: Committed) -> list[Leftover]:
        """Puts right what dead runs left on a domain (also one that is off or gone: pass an intent of `stale`).

        Raises JobConflictError while a run works on it: then nothing is dead there.
        """
        with self._dead_on(domain) as uuid:
            return self._recover_locked(uuid, committed)

    def thaw(self, domain: DomainInfo | Intent) -> list[Leftover]:
        """Only thaws the guest, where a dead run may have left it frozen: what cannot wait of `recover`."""
        with self._dead_on(domain) as uuid:
            return thaw_domain(self.connection, self._store, self._intents_on(uuid))

    def intents(self) -> list[Intent]:
        """The intents of this host's runs, running or dead; `recover` takes one."""
        return [intent for intent in self._store.all() if intent.uri == self.connection.uri]

    def purge(
        self, domain: DomainInfo, repository_id: str | None = None, *, lock: DomainLock | None = None
    ) -> PurgeReport:
        """Takes our checkpoints, bitmaps, stale jobs and files off a domain; restore points stay.

        Of one repository, or (None) of all: then also the mark of a restore in place that was not finished, for
        nothing is left that it warns of, unless `lock`, the domain's, is held by who made the mark.
        Raises JobConflictError while a run works on it.
        """
        held = lock or self.reserve(domain)
        try:
            self._recover_locked(domain.uuid, lambda _name: None)
            report = purge_domain(self.connection, self._store, domain, repository_id)
            if lock is None and repository_id is None and not report.trouble:
                self.half_done.clear(domain.uuid)
            return report
        finally:
            if lock is None:
                held.release()

    def show(self, domain: DomainInfo, backup: Shown) -> bool:
        """Lets the domain's XML tell of its newest restore point. False where another job holds the domain.

        Raises HypervisorError.
        """
        return self.connection.call("show the backup", lambda raw: show(handle(raw, domain), backup), domain.name)

    def disk_users(self, path: Path) -> list[DiskUser]:
        """The guests with that file or device as a disk, running or not. Raises HypervisorError."""
        if self.places.reach:  # its paths are another machine's
            return []
        return disk_users(self.connection, path)

    def plan_definition(
        self, documents: Mapping[str, bytes], disks: Mapping[str, NewDisk], options: DefineOptions
    ) -> Definition:
        """A restore point's guest as it would be defined here, with its disks at `disks`; changes nothing.

        Raises HypervisorError (name or UUID taken, something lacking), TargetError, UsageError, NotFoundError.
        """
        self.require_here("defining a restored guest", "restore it without --define")
        return plan_definition(self.connection, self.places.domain_folders, documents, disks, options)

    def define(self, definition: Definition) -> None:
        """Defines it. Raises HypervisorError, TargetError: then nothing is left of it."""
        define(self.connection, self.places.domain_folders, definition)

    def start(self, name: str) -> None:
        """Starts a domain that was defined. Raises HypervisorError."""
        start(self.connection, name)

    def checks(self, domains: list[DomainInfo]) -> list[Check]:
        """What doctor shows: the host, then each of the domains."""
        found = check_host(self.connection, self.places)
        for domain in domains:
            found += check_domain(self.connection, self.places, self._store, domain)
        return found

    def require_here(self, doing: str, instead: str) -> None:
        """Raises HypervisorError where the host is another machine: for what needs its files."""
        require_here(self.places.reach, doing, instead)

    @contextmanager
    def _dead_on(self, domain: DomainInfo | Intent) -> Iterator[str]:
        """The domain's lock, held: every run of it is dead. Gives its UUID."""
        uuid, name = (
            (domain.domain_uuid, domain.domain_name) if isinstance(domain, Intent) else (domain.uuid, domain.name)
        )
        lock = DomainLock(self.places.state_dir, uuid, name)
        try:
            yield uuid
        finally:
            lock.release()

    def _intents_on(self, uuid: str) -> list[Intent]:
        return [intent for intent in self._store.of_domain(uuid) if intent.uri == self.connection.uri]

    def _recover_locked(self, uuid: str, committed: Committed) -> list[Leftover]:
        return recover_domain(self.connection, self._store, self._intents_on(uuid), committed)


def _hurried(freezing: FreezeOptions | None) -> FreezeOptions:
    """As told, but with less patience where nothing is told of that: others stand still meanwhile."""
    freezing = freezing or FreezeOptions()
    return freezing if freezing.seconds else replace(freezing, seconds=FREEZE_SECONDS)


def _only(parent: Anchor | None, repository_id: str) -> Committed:
    """The judgement of a caller that gave none: the newest restore point's checkpoint is the one that counts."""

    def committed(name: CheckpointName) -> bool | None:
        if name.repository_id != repository_id:
            return None
        return parent is not None and str(name) == parent.checkpoint

    return committed


__all__ = ["Host", "HypervisorError"]
