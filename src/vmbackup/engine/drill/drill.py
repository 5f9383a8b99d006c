"""A drill: a restore point is booted in a throw-away guest without a network, looked at, and thrown away.

Neither the original guest nor anything of its own is touched: the drill's guest has another name and UUID, disks that
lie above what is served, and reaches nothing (hypervisor/rebuild/isolate.py).
"""

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from vmbackup.engine.drill.bench import Bench, left_over
from vmbackup.engine.drill.checks import ANSWER_SECONDS, Check, Checked, Checker
from vmbackup.engine.drill.guest import DrillGuest, UnreadableError, running, with_cause
from vmbackup.engine.drill.picture import to_png
from vmbackup.errors import DamageError, HypervisorError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.agent import AgentRefusedError, AgentSilentError
from vmbackup.hypervisor.tidy.owners import image_owner
from vmbackup.progress import Progress
from vmbackup.repository import drills
from vmbackup.repository.drills import Seen
from vmbackup.repository.points import Point
from vmbackup.repository.repository import Repository

_PAUSE = 0.5  # seconds between two looks at a guest that boots
_CONSOLE_LINES = 15  # of its console that are shown
_HINT_LINES = 3  # of them in a hint
_NO_AGENT = "the guest has no channel for a guest agent, so nothing tells when it has booted"


class DrillFailedError(VmbackupError):
    """The guest did not boot, or a check does not hold: the restore point may be of no use. `report` tells more."""

    kind = "drill"

    def __init__(self, message: str, hint: str, report: "DrillReport") -> None:
        super().__init__(message, hint)
        self.report = report


@dataclass(frozen=True)
class DrillOptions:
    """What is waited for, and what must hold then; `memory` in bytes, `host` as this machine calls itself.

    `console`: a regular expression that a line of the console fits, instead of an answer of the agent.
    """

    host: str = ""
    boot_seconds: float = 600.0
    checks_seconds: float = 300.0
    memory: int | None = None
    console: str | None = None
    checks: tuple[Check, ...] = ()


@dataclass
class DrillReport:
    """What a drill saw. `console`: its last lines; `picture`: of the screen, as PNG; `left_out`: see Isolated.

    `advice`: what to do about a problem, "" where nothing is known to help.
    """

    point: str
    domain: str
    domain_uuid: str
    seen: Seen
    checks: list[Checked] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    picture: bytes | None = None
    left_out: tuple[str, ...] = ()
    advice: str = ""


@dataclass(frozen=True)
class Clocks:
    """Time as a drill takes it."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


def drill(
    host: Host, repository: Repository, point: Point, options: DrillOptions, progress: Progress, clocks: Clocks
) -> DrillReport:
    """Boots the point, and records in the repository what came of it, also where that is nothing good.

    Raises DrillFailedError with what was seen. Where there was no drill nothing is recorded: AccessError,
    JobConflictError (another one of that guest), TargetError (no space for one), StoreError.
    """
    host.require_here("a drill", "let drills be made on a hypervisor")
    repository.check_may_read()
    for guest, what in left_over(host):
        progress.note(f"{guest}: {what}")
    owner = image_owner(host.connection)
    with Bench.taken(host, f"{repository.id}/{point.uuid}", point.domain, point.uuid) as bench:
        report, problem = _Drill(host, repository, point, options, clocks).carry_out(bench, owner)
    drills.record(repository, point, report.seen)
    if problem is not None:
        report.advice = problem.hint
        raise DrillFailedError(problem.message, problem.hint or _shown(report), report)
    return report


class _Drill:
    def __init__(
        self, host: Host, repository: Repository, point: Point, options: DrillOptions, clocks: Clocks
    ) -> None:
        self._host, self._repository, self._point = host, repository, point
        self._options, self._clocks = options, clocks
        nothing = Seen(clocks.now(), False, None, 0.0, options.host)
        self._report = DrillReport(point.id, point.domain, point.uuid, nothing)

    def carry_out(self, bench: Bench, owner: tuple[int, int]) -> tuple[DrillReport, VmbackupError | None]:
        """What was seen; and the problem, where there was one."""
        report, clocks, problem = self._report, self._clocks, None
        began, boot_seconds = clocks.monotonic(), None
        try:
            with running(self._host, self._repository, self._point, bench, self._options.memory, owner) as guest:
                report.left_out = guest.isolated.left_out
                try:
                    boot_seconds = self._booted(guest, began)
                    self._check(guest)
                except UnreadableError:
                    raise
                except HypervisorError as error:
                    raise with_cause(error, guest.unread) from error
                finally:
                    self._look(guest)
        except (HypervisorError, DamageError) as error:
            problem = error
        report.seen = replace(
            report.seen,
            time=clocks.now(),
            success=problem is None,
            boot_seconds=None if boot_seconds is None else round(boot_seconds, 1),
            duration_seconds=round(clocks.monotonic() - began, 1),
            checks=tuple((checked.check.name, checked.problem is None) for checked in report.checks),
            problem=None if problem is None else problem.message,
        )
        return report, problem

    def _booted(self, guest: DrillGuest, began: float) -> float:
        """Waits for the sign that it has; the seconds that it took."""
        options, clocks = self._options, self._clocks
        sign = re.compile(options.console) if options.console else None
        if sign is None and not guest.isolated.has_agent:
            raise HypervisorError(_NO_AGENT, "name what its serial console shows then: console in [jobs.NAME.drill]")
        deadline = began + options.boot_seconds
        why = f'its console showed nothing like "{options.console}"'
        while True:
            lines = guest.domain.listen()
            if sign is not None:
                if any(map(sign.search, lines)):
                    return clocks.monotonic() - began
            else:
                why = self._silence(guest) or ""
                if not why:
                    return clocks.monotonic() - began
            self._alive(guest, "before it had booted")
            if clocks.monotonic() >= deadline:
                raise HypervisorError(f"the guest had not booted after {options.boot_seconds:.0f} s: {why}")
            clocks.sleep(_PAUSE)

    @staticmethod
    def _silence(guest: DrillGuest) -> str | None:
        """Why the agent does not answer; None where it does."""
        try:
            guest.domain.agent.call("guest-ping", ANSWER_SECONDS)
        except AgentSilentError as error:
            return error.message
        except AgentRefusedError:
            return None  # it is there
        return None

    def _alive(self, guest: DrillGuest, when: str) -> None:
        """Raises HypervisorError where the guest is of no use any more.

        What it could not read it may wait for until the time is over, and could not be told from a whole restore point.
        """
        if guest.unread:
            raise UnreadableError(f"the drill was ended {when}", guest.unread)
        state = guest.domain.state()
        if state == "gone":
            raise HypervisorError(f"the guest ended {when}")
        if state == "error":
            hint = f"make space in {self._host.places.scratch_dir}"
            raise HypervisorError(f"the guest was paused {when}: what it wrote found no space", hint)

    def _check(self, guest: DrillGuest) -> None:
        """Raises HypervisorError where a check does not hold."""
        options, clocks = self._options, self._clocks

        def between() -> None:
            guest.domain.listen()
            self._alive(guest, "during the checks")

        checker = Checker(guest.domain.agent, clocks.monotonic, clocks.sleep)
        self._report.checks = checker.run(options.checks, options.checks_seconds, between)
        if failed := [f"{each.check.name}: {each.problem}" for each in self._report.checks if each.problem]:
            raise HypervisorError("; ".join(failed))
        if guest.unread:
            raise HypervisorError("it booted")

    def _look(self, guest: DrillGuest) -> None:
        """What is to be seen of it now, as far as it lets itself be looked at."""
        guest.domain.listen()
        self._report.console = guest.domain.console.last(_CONSOLE_LINES)
        with contextlib.suppress(VmbackupError, ValueError):
            self._report.picture = to_png(guest.domain.screen()[1])


def _shown(report: DrillReport) -> str:
    """The end of what the console showed: all that whoever looks later has of a guest that is gone."""
    lines = report.console[-_HINT_LINES:]
    return f"its console showed last: {' / '.join(lines)}" if lines else ""
