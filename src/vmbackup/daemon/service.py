"""The service: puts scheduler, queue, runs, outlook, history, metrics and control together, and keeps them going."""

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmbackup.config.mistakes import did_you_mean
from vmbackup.config.models import Config, Job
from vmbackup.daemon import plan
from vmbackup.daemon.board import About, Board
from vmbackup.daemon.catchup import missed
from vmbackup.daemon.clockwork import Clockwork, Entry
from vmbackup.daemon.commands import commands
from vmbackup.daemon.dispatcher import Dispatcher
from vmbackup.daemon.domains import known_domains
from vmbackup.daemon.follow import Follower
from vmbackup.daemon.group import grouped, parts_of_request, whole
from vmbackup.daemon.history import History
from vmbackup.daemon.inforce import InForce
from vmbackup.daemon.looker import Looker
from vmbackup.daemon.outlook import LookError, Outlook, run_json
from vmbackup.daemon.plan import Firing, Guest
from vmbackup.daemon.process import ProcessRunner
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.daemon.tell import Teller
from vmbackup.daemon.work import Kind, Request, Skip, Trigger
from vmbackup.errors import NotFoundError, TargetError, UsageError, VmbackupError

RECOVER_SECONDS = 300.0  # thawing comes first in it; what takes longer waits for the next run of that guest
STOP_SECONDS = 45.0  # of the 60 that a stop may take; the rest is for thawing what had to be killed
_THAW_SECONDS = 10.0
_LOOK_SECONDS = 3.0  # a usual look takes one
_ALIVE_SECONDS = 60.0  # how often is noted that the service lives
_STALE_SECONDS = 1.0  # a snapshot serves all who ask within this time
_STUCK_SECONDS = 180.0  # without a sign of life from the scheduler, which gives one a minute
_log = logging.getLogger("vmbackup.daemon")


class Service:
    """The service of one configuration file. `start`, then `turn` again and again, then `stop`; thread-safe else.

    Raises VmbackupError where the configuration or the state folder cannot be used.
    """

    def __init__(self, file: Path | None) -> None:
        self.force = InForce.read(file)
        self._file = file
        self._started = self._loaded = time.time()
        self._config_error: str | None = None
        self._state = "starting"
        self._lock, self._reloading = threading.Lock(), threading.Lock()
        self._snapshot: Snapshot | None = None
        self._alive = 0.0
        self._told: set[Guest] = set()  # vanished guests
        self._stack = ExitStack()
        daemon = self.config.daemon
        self._stack.callback(os.close, _alone(daemon.state_dir))
        self.history = History(daemon.state_dir / "history.sqlite")
        self._stack.callback(self.history.close)
        self.outlook = Outlook(lambda: known_domains(self.config), lambda: self.force.text, self.history)
        self.looker = Looker(self.outlook, lambda: self.config)
        self.teller = Teller()
        self._stack.callback(self.teller.close)
        follower = Follower(
            lambda: self.config, self.history, self.outlook, self.teller, self._submit, self.looker.ask, self._changed
        )
        runner = ProcessRunner(lambda request: commands(self.config, request), lambda: self.force.text)
        self.dispatcher = Dispatcher(Queue(_limits(self.config)), runner, follower)
        self.clockwork = Clockwork(jumped=self._jumped)
        self.board = Board(self.outlook, self.history, self.dispatcher, self.clockwork.next, time.time)

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self.force.config

    # From the start to the stop.

    def prepare(self, sign: Any) -> None:
        """Puts right what a former life left, and looks at everything once; `sign(seconds)` asks for more time."""
        for name in self.history.unfinished():
            _log.warning("run=%s was going on when the service died", name)
        sign(RECOVER_SECONDS)
        self.recover(RECOVER_SECONDS)
        self.looker.all(lambda: sign(RECOVER_SECONDS * 2))

    def recover(self, within: float) -> None:
        """Thaws guests that dead runs left frozen, and puts right the rest that they left."""
        try:
            done = run_json(self.force.text, ["recover"], within)
        except LookError as error:
            _log.warning("recovery: it %s; each guest's next run does it", error)
            return
        for left in done.get("recovered", []):
            _log.warning("recovered domain=%s: %s", left["domain"], left["what"])
        for failed in done.get("failed", []):
            _log.warning("recovery of domain=%s failed: %s", failed.get("domain"), failed.get("error"))

    def start(self) -> None:
        """Schedules everything, and asks for what came due meanwhile."""
        alive = float(self.history.recall("alive") or 0.0)
        self.clockwork.set(self._entries(self.config))
        self.clockwork.start()
        now = time.time()  # after the start: what comes due just now is asked for twice rather than never
        late = missed(self.config, self.outlook, self.history, alive, now)
        for request in grouped(self.config, late, self.outlook.domains()):
            self._submit(request)
        self.looker.start()
        self._state = "running"

    def turn(self, longest: float) -> None:
        """A turn of the main loop: moves runs on, then sleeps until there is more to do, at most `longest` seconds."""
        self.dispatcher.wake.clear()
        then = self.dispatcher.tick()
        now = time.time()
        if abs(now - self._alive) >= _ALIVE_SECONDS:
            self._alive = now
            self.history.remember("alive", str(now))
        self.dispatcher.wake.wait(longest if then is None else max(0.0, min(longest, then - now)))

    def stop(self) -> None:
        """Ends all runs, guests thawed first, and everything else; the state is safe at any moment of it."""
        self._state = "stopping"
        self.clockwork.shutdown()
        self.looker.close()
        if not self.dispatcher.stop(STOP_SECONDS):
            _log.warning("runs that did not end by themselves were killed")
            self.recover(_THAW_SECONDS)
        self.looker.wait(_LOOK_SECONDS)
        self.history.remember("alive", str(time.time()))

    def close(self) -> None:
        """Lets go of everything; to be called also where it never started."""
        self._stack.close()

    def sick(self) -> str | None:
        """Why the service does not work as it should, None where it does."""
        silent = time.monotonic() - self.clockwork.beat
        if self._state == "running" and silent > _STUCK_SECONDS:
            return f"the scheduler has given no sign of life for {silent:.0f} s"
        silent = time.monotonic() - self.dispatcher.beat
        if self._state == "running" and silent > _STUCK_SECONDS:
            return f"the dispatcher has given no sign of life for {silent:.0f} s"
        if self.looker.stuck:
            return "a look at a repository does not end"
        return None

    # What others ask of it: the control socket, the page, metrics.

    def snapshot(self) -> Snapshot:
        """All that is known now, or was a moment ago."""
        with self._lock:
            kept = self._snapshot
            if kept is None or not 0 <= time.time() - kept.now < _STALE_SECONDS:
                about = About(self._started, self._state, self._named(), self._loaded, self._config_error)
                kept = self._snapshot = self.board.snapshot(self.config, about)
            return kept

    def _changed(self) -> None:
        """The next who asks sees it."""
        self._snapshot = None

    def _jumped(self, _seconds: float) -> None:
        """The clock was set, or the machine slept: what was seen may be older than it says."""
        for name in self.config.repositories:
            self.looker.ask(name)

    def _named(self) -> str | None:
        return str(self._file) if self._file else None

    def run_job(self, name: str, domains: Sequence[str], full: bool) -> list[str]:
        """Asks for a backup of a job's domains, or those named, now; ids of the runs to come."""
        job = self.config.jobs.get(name)
        if job is None:
            hint = did_you_mean(name, self.config.jobs) or _known(self.config)
            raise NotFoundError(f'there is no job "{name}"', hint)
        self.outlook.look_at_libvirt()
        repository = self.config.repository_of(job)
        meant = self._meant(name, job, domains)
        asked = grouped(self.config, [self._manual(Guest(d, name, repository), full) for d in meant])
        self.teller.expects(asked)
        taken = [part.id for r in asked if self._submit(r) is None for part in parts_of_request(r)]
        if not taken:
            which = f'domain "{meant[0]}" runs or waits' if len(meant) == 1 else "all of them run or wait"
            raise UsageError(f"{which} already", "'vmbackup status' shows it")
        return taken

    def _meant(self, name: str, job: Job, domains: Sequence[str]) -> list[str]:
        """The domains named, or all that the job means. NotFoundError, UsageError."""
        known = self.outlook.domains()
        for domain in domains:
            if domain not in known:
                raise NotFoundError(f'libvirt knows no domain "{domain}"', did_you_mean(domain, known))
            if not job.means(domain):
                raise UsageError(f'job "{name}" does not mean domain "{domain}"', f"it means {', '.join(job.domains)}")
        wanted = list(dict.fromkeys(domains)) or sorted(filter(job.means, known))
        if not wanted:
            raise NotFoundError(f'libvirt knows no domain of job "{name}"', "'virsh list --all' names the domains")
        return wanted

    def _manual(self, guest: Guest, full: bool) -> Request:
        return plan.backup_request(self.config, guest, Trigger.MANUAL, time.time(), full=full)

    def cancel(self, run_id: str) -> None:
        """Ends a run, or takes it out of the queue."""
        if not self.dispatcher.cancel(whole(run_id), "an operator ended it"):
            raise NotFoundError(f'there is no run "{run_id}" going on or waiting', "'vmbackup status' shows the runs")
        self._changed()

    def recent(self, limit: int, domain: str | None) -> list[dict[str, Any]]:
        """Runs that ended, newest first."""
        return self.history.recent(limit, domain)

    def reload(self) -> None:
        """Reads the configuration again. What runs goes on with the old; a bad one changes nothing, and is raised."""
        with self._reloading:
            try:
                new = InForce.read(self._file)
            except VmbackupError as error:
                self._config_error = error.message
                self._changed()
                _log.error("the configuration was not reloaded, the old one stays in force: %s", error.message)
                raise
            self._adopt(new)

    def _adopt(self, new: InForce) -> None:
        entries = self._entries(new.config)
        old, self.force = self.force, new
        self._config_error, self._loaded = None, time.time()
        self.dispatcher.set_limits(_limits(new.config))
        self.clockwork.set(entries)
        self._rehome(old.config)
        self._changed()
        for name in new.config.repositories.keys() - old.config.repositories.keys():
            self.looker.ask(name)
        _log.info(
            "the configuration was reloaded: %d jobs, %d repositories",
            len(new.config.jobs),
            len(new.config.repositories),
        )
        for key in ("listen", "socket", "socket_group", "state_dir", "web", "web_token_file"):
            if getattr(old.config.daemon, key) != getattr(new.config.daemon, key):
                _log.warning("daemon.%s takes effect when the service is restarted", key)

    def _rehome(self, old: Config) -> None:
        """What waits for a job that is gone, or no longer means its guest, goes to the job that has taken its place."""
        for request in self.dispatcher.waiting():
            work, jobs = request.work, self.config.jobs
            if work.members:
                self._regroup(request)
                continue
            if work.job is None or work.domain is None or (work.job in jobs and jobs[work.job].means(work.domain)):
                continue
            self.dispatcher.cancel(request.id, f"job {work.job} of the configuration does not ask for it any more")
            heirs = [g for g in plan.guests(self.config, [work.domain]) if g.repository == work.repository]
            for heir in [heir for heir in heirs if heir.job not in old.jobs and work.kind is Kind.BACKUP][:1]:
                again = plan.backup_request(self.config, heir, request.trigger, request.due)
                self._submit(replace(again, not_before=request.not_before))

    def _regroup(self, request: Request) -> None:
        """A group that waits is of the guests that its job means now; one whose job is no group any more is dropped."""
        work, job = request.work, self.config.jobs.get(request.work.job or "")
        names = [name for name in work.members if job and job.consistency_group and job.means(name)]
        if len(names) == len(work.members):
            return
        self.dispatcher.cancel(request.id, f"job {work.job} of the configuration does not ask for it any more")
        if len(names) > 1:
            self._submit(replace(request, work=replace(work, members=tuple(names)), id=secrets.token_hex(4)))

    # What schedules do.

    def _entries(self, config: Config) -> dict[str, Entry]:
        return {firing.id: self._entry(firing) for firing in plan.firings(config).values()}

    def _entry(self, firing: Firing) -> Entry:
        return Entry(firing.schedule, firing.zone, lambda due: self._fire(firing, due))

    def _fire(self, firing: Firing, due: float) -> None:
        """A schedule has come due."""
        if firing.kind in (Kind.PRUNE, Kind.VERIFY):
            self._submit(plan.repository_request(firing.kind, firing.name, Trigger.SCHEDULE, due))
            return
        self.outlook.look_at_libvirt()
        guests = [g for g in plan.guests(self.config, sorted(self.outlook.domains())) if g.job == firing.name]
        if firing.kind is Kind.BACKUP:
            self._tell_vanished(firing.name, {guest.domain for guest in guests})
        if firing.kind is Kind.DRILL:  # one without a restore point has nothing to boot, which its backups tell
            guests = [guest for guest in guests if self.outlook.last_point(guest.repository, guest.domain)]
        name = secrets.token_hex(4)
        requests = grouped(self.config, [self._request(firing, guest, due, name) for guest in guests])
        self.teller.expects(requests)
        for request in requests:
            self._submit(request)

    def _request(self, firing: Firing, guest: Guest, due: float, name: str) -> Request:
        if firing.kind is Kind.DRILL:
            return plan.drill_request(self.config, guest, Trigger.SCHEDULE, due)
        last = self.outlook.last_point(guest.repository, guest.domain)
        return plan.backup_request(self.config, guest, Trigger.SCHEDULE, due, last_success=last, firing=name)

    def _tell_vanished(self, job: str, present: set[str]) -> None:
        for guest in self.board.vanished(self.config, set(self.outlook.domains())):
            if guest.job != job or guest.domain in present:
                continue
            self.history.skip(plan.backup_work(guest), Skip.VANISHED)
            if guest not in self._told:
                text = "domain=%s of job=%s is not known to libvirt any more: it is not backed up"
                _log.warning(text, guest.domain, job)
        self._told = {guest for guest in self._told if guest.domain not in present}
        self._told |= set(self.board.vanished(self.config, set(self.outlook.domains())))

    def _submit(self, request: Request) -> Skip | None:
        skip = self.dispatcher.submit(request)
        self._changed()
        return skip


def _alone(folder: Path) -> int:
    """The lock of the state folder, as a descriptor; made with the folder. TargetError, VmbackupError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TargetError(f"cannot use the state folder {folder}: {error.strerror}", "run this as root") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        hint = "'vmbackup status' shows it; give another one a state_dir, socket and listen of its own"
        raise VmbackupError(f"another vmbackup daemon works with {folder}", hint) from None
    return lock


def _limits(config: Config) -> Limits:
    own = {name: r.max_parallel_domains for name, r in config.repositories.items() if r.max_parallel_domains}
    return Limits(config.daemon.max_parallel_domains, own)


def _known(config: Config) -> str:
    return f"the jobs are {', '.join(config.jobs)}" if config.jobs else "the configuration has no [jobs.NAME]"
