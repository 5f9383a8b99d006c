"""Puts together what the parts of the service know: the Snapshot that everything shown is made of."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmbackup.config.models import Config, Job
from vmbackup.daemon import plan
from vmbackup.daemon.dispatcher import Dispatcher
from vmbackup.daemon.group import parts_of_request, parts_of_run
from vmbackup.daemon.history import History
from vmbackup.daemon.outlook import Outlook
from vmbackup.daemon.plan import Guest
from vmbackup.daemon.snapshot import CopyState, DrillState, GuestState, RepositoryState, RunState, Snapshot
from vmbackup.daemon.work import Kind, Request, Run
from vmbackup.engine.drill.pictures import newest

NextFiring = Callable[[str], float | None]  # by the id of a firing
Pictures = Mapping[tuple[str, str], str]  # of drills: names, by the guest's UUID and the repository's name


@dataclass(frozen=True)
class About:
    """What the service says of itself; times are seconds since the epoch."""

    started: float
    state: str
    config_file: str | None
    config_loaded: float
    config_error: str | None


@dataclass(frozen=True)
class Board:
    """Asks the parts, and changes nothing."""

    outlook: Outlook
    history: History
    dispatcher: Dispatcher
    next_firing: NextFiring
    clock: Callable[[], float]

    def snapshot(self, config: Config, about: About) -> Snapshot:
        """All that is known now."""
        now = self.clock()
        runs = [part for run in self.dispatcher.runs() for part in parts_of_run(run)]
        waiting = [part for request in self.dispatcher.waiting() for part in parts_of_request(request)]
        domains = self.outlook.domains()
        return Snapshot(
            now,
            about.started,
            socket.gethostname(),
            about.state,
            about.config_file,
            about.config_loaded,
            about.config_error is None,
            about.config_error,
            self.outlook.libvirt_up,
            self.outlook.libvirt_error,
            _size(config.libvirt.scratch_dir),
            tuple(self._guests(config, domains, runs, waiting, now)),
            tuple(plan.unprotected(config, sorted(domains))),
            (*map(_running, runs), *map(_queued, waiting)),
            tuple(self._repository(config, name) for name in config.repositories),
        )

    def _guests(
        self, config: Config, domains: Mapping[str, str], runs: list[Run], waiting: list[Request], now: float
    ) -> list[GuestState]:
        running = {(run.request.work.kind, run.request.work.job, run.request.work.domain): run.id for run in runs}
        queued = {(request.work.kind, request.work.job, request.work.domain): request for request in waiting}
        found = plan.guests(config, sorted(domains))
        gone = [guest for guest in self.vanished(config, set(domains)) if guest not in found]
        firings, pictures = plan.firings(config), newest(config.daemon.state_dir)
        states = []
        for guest in [*found, *gone]:
            place, present = (Kind.BACKUP, guest.job, guest.domain), guest.domain in domains
            firing = firings.get(f"{Kind.BACKUP}/{guest.job}") if present else None
            soon = plan.next_start(config, guest, firing, now) if firing else 0.0
            waits = queued.get(place)
            states.append(self._guest(config, guest, present, running.get(place), waits, soon, pictures))
        return states

    def vanished(self, config: Config, present: set[str]) -> list[Guest]:
        """Guests that this host backed up, that libvirt knows no more, and that still have restore points."""
        known = [Guest(*place) for place in self.history.guests()]
        return [g for g in known if g.domain not in present and g.job in config.jobs and self._kept(g)]

    def _kept(self, guest: Guest) -> bool:
        """Whether a guest that vanished still has restore points: once they are forgotten nobody need be told."""
        seen = self.outlook.seen(guest.repository, guest.domain)
        return bool(seen and seen.times)

    def _guest(
        self,
        config: Config,
        guest: Guest,
        present: bool,
        running: str | None,
        queued: Request | None,
        soon: float,
        pictures: Pictures,
    ) -> GuestState:
        job, store = config.jobs[guest.job], self.outlook.store(guest.repository)
        seen = self.outlook.seen(guest.repository, guest.domain)
        return GuestState(
            guest.domain,
            guest.job,
            guest.repository,
            present,
            seen.last if seen else 0.0,
            seen.last_point if seen else None,
            seen.times if seen else (),
            _seconds(job.max_age),
            queued.not_before if queued else soon,
            running,
            queued is not None,
            self.history.last(Kind.BACKUP, guest.job, guest.domain, guest.repository),
            store.verified.get(guest.domain, 0.0),
            seen.freeze_seconds if seen else 0.0,
            seen.quiesce_ok if seen else False,
            self.history.totals(guest.job, guest.domain, guest.repository),
            tuple(self._copy(job, guest, target) for target in job.copy_to),
            self._drill(job, guest, pictures),
            self.history.known_since(guest.job, guest.domain, guest.repository),
        )

    def _copy(self, job: Job, guest: Guest, target: str) -> CopyState:
        seen = self.outlook.seen(target, guest.domain)
        run = self.history.last(Kind.COPY, guest.job, guest.domain, guest.repository, target)
        return CopyState(target, seen.last if seen else 0.0, _seconds(job.copy_max_age), run)

    def _drill(self, job: Job, guest: Guest, pictures: Pictures) -> DrillState | None:
        if job.drill is None:
            return None
        place = guest.job, guest.domain, guest.repository
        seen = self.outlook.seen(guest.repository, guest.domain)
        return DrillState(
            max(seen.drilled if seen else 0.0, self.history.last_success(Kind.DRILL, *place)),
            _seconds(job.drill.max_age),
            self.next_firing(f"{Kind.DRILL}/{guest.job}") or 0.0,
            self.history.last(Kind.DRILL, *place),
            pictures.get((seen.uuid, guest.repository)) if seen else None,
            seen.boot_seconds if seen else None,
            seen.checks if seen else (),
        )

    def _repository(self, config: Config, name: str) -> RepositoryState:
        store, settings = self.outlook.store(name), config.repositories[name]
        pruned = self.history.last(Kind.PRUNE, None, None, name)
        return RepositoryState(
            name,
            settings.url,
            bool(store.up),
            store.error,
            store.looked,
            store.bytes,
            store.objects,
            store.damaged_objects,
            store.points,
            self.history.last_success(Kind.PRUNE, None, None, name),
            store.last_verified,
            _seconds(settings.prune.max_age) if settings.prune else None,
            _seconds(settings.verify.max_age) if settings.verify else None,
            self.next_firing(f"{Kind.PRUNE}/{name}") or 0.0,
            self.next_firing(f"{Kind.VERIFY}/{name}") or 0.0,
            pruned,
            self.history.last(Kind.VERIFY, None, None, name),
            self.history.known_since(None, None, name),
        )


def _seconds(duration: object) -> float | None:
    total = getattr(duration, "total_seconds", None)
    return total() if total else None


def _running(run: Run) -> RunState:
    work, request = run.request.work, run.request
    state = "cancelling" if run.cancelling else "running"
    return RunState(
        run.id, work.kind, state, work.repository, work.job, work.domain, work.target, request.trigger,
        request.attempt, request.due, request.not_before, run.started, run.progress,
    )  # fmt: skip


def _queued(request: Request) -> RunState:
    work = request.work
    return RunState(
        request.id, work.kind, "queued", work.repository, work.job, work.domain, work.target, request.trigger,
        request.attempt, request.due, request.not_before,
    )  # fmt: skip


def _size(folder: Path) -> int:
    """Bytes on disk of the scratch files of running backups."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_blocks * 512
            except OSError:  # gone meanwhile
                continue
    return total
