"""Freeze and thaw by the guest agent: the guest stands still for the begin of the job and no longer.

A frozen guest that nobody thaws is the worst this program can do, so the thaw is in a `finally`, is tried again
for minutes, is done by a watchdog process if this one dies or is late, and is done by the next run if all else
failed (the intent says `frozen`).
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vmbackup.errors import NotFoundError, QuiesceError, VmbackupError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import ASLEEP, PAUSED_BY_USER, RUNNING, handle
from vmbackup.hypervisor.live.agent import GuestAgent
from vmbackup.hypervisor.live.guard import Watchdog
from vmbackup.hypervisor.live.hooks import GuestHooks
from vmbackup.hypervisor.live.probe import NO_LIMIT, Probe
from vmbackup.hypervisor.source import Consistency, DomainInfo, FreezeOptions, QuiescePolicy

# Seconds the agent has for an answer; without a limit libvirt waits for ever.
AGENT_TIMEOUT = 10
# Seconds for the begin, beyond those for the freeze, after which the watchdog lets the guest go on.
BEGIN_SECONDS = 5.0
# Waits between attempts to thaw, in seconds: about five minutes in all.
_THAW_WAITS = (1, 2, 4, 8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16)


@dataclass(frozen=True)
class Quiesced:
    """What came of it: the consistency, how long the guest stood still (None: not at all), and a note."""

    consistency: Consistency
    seconds: float | None
    note: str | None


class Freezer:
    """One guest around its begin: `prepare`, `ready`, `freeze`, `pause` where it must stand still without a freeze,
    `release`, `finish`. As a context: frozen inside, thawed outside. `outcome` and `warnings` afterwards.

    Whatever was begun, `release` and `finish` must be called. `ready`, `freeze` and `verdict` raise QuiesceError where
    the policy is `required` and the guest was not frozen; it was told to thaw before that, whatever its agent said.
    """  # noqa: D205

    def __init__(
        self, connection: Connection, info: DomainInfo, policy: QuiescePolicy, options: FreezeOptions | None = None
    ) -> None:
        self._connection, self._info, self._policy = connection, info, policy
        self._options = options or FreezeOptions()
        self._agent = GuestAgent(connection, info.uuid)
        self._hooks = GuestHooks(self._options.hooks, info, self._agent)
        self._limit = max(1, round(self._options.seconds or AGENT_TIMEOUT))
        self._watchdog: Watchdog | None = None
        self._domain: tuple[Any, Any] | None = None
        self._tries = self._limited = False
        self._frozen = 0
        self._since = self._paused_since = 0.0
        self._windows = self._paused = self._released = self._early = False
        self.thaw_failed = False
        self.warnings: list[str] = []
        self.outcome = Quiesced("crash", None, "quiesce is off" if policy == "never" else None)

    def domain_on(self, raw: Any) -> Any:
        """The virDomain on that connection: looked up once, before the guest stands still."""
        if self._domain is None or self._domain[0] is not raw:
            self._domain = raw, handle(raw, self._info)
        return self._domain[1]

    # Before anything stands still.

    def eligible(self) -> bool:
        """Whether there is a freeze to try; says why not in `outcome`. Raises QuiesceError where required."""
        if self._policy == "never":
            return False
        probe = Probe(self._connection, self._info, self._agent)
        self._windows, self._tries = probe.windows, probe.trouble is None
        if probe.trouble is not None:
            self._give_up(*probe.trouble)
        return self._tries

    def prepare(self) -> None:
        """Runs the hooks before. Raises QuiesceError for one that fails where the policy is `required`."""
        if not self._hooks:
            return
        if owed := self._hooks.owed():
            self._guarded().hooks(owed)
        self.warnings += self._hooks.before(required=self._policy == "required")

    def ready(self, *, pausing: bool = False) -> None:
        """What takes a while and need not wait until it stands still, or others of its group do: then `pausing`."""
        if self._tries:
            try:
                self._guarded()
                self._call("set the agent's time limit", lambda d: d.agentSetResponseTimeout(self._limit, 0))
                self._limited = True
            except VmbackupError as error:
                self._tries = False
                self._give_up(str(error))
        if pausing and (not self._tries or self._options.mounts) and self._running():
            self._guarded()

    # Standing still.

    def freeze(self) -> None:
        """Freezes it, where there is a freeze to try."""
        if not self._tries:
            return
        mounts = list(self._options.mounts) or None
        try:
            watchdog = self._guarded()
            self._since = time.monotonic()
            watchdog.arm(self._limit + BEGIN_SECONDS, "thaw")
            self._frozen = int(self._call("freeze the guest", lambda d: d.fsFreeze(mounts) if mounts else d.fsFreeze()))
        except VmbackupError as error:
            # A freeze that failed or timed out may still happen.
            self.release()
            self._released = False
            self._since = 0.0
            self.outcome = Quiesced("crash", None, None)
            self._give_up(str(error))

    @property
    def still(self) -> bool:
        """Whether nothing of the guest is written now: frozen as a whole, or paused."""
        return self._paused or (self._frozen > 0 and not self._options.mounts)

    @property
    def stood_still(self) -> bool:
        """Whether nothing was written all the while, as far as is known; after `release`."""
        return self.still and not self._early

    def pause(self, note: Callable[[], None]) -> None:
        """Stops a guest that does not stand still, until `release`: guests of a group are at one instant that way.

        `note` is called before it is stopped, so that a later run knows that it was us.
        """
        if self.still:
            return
        if not self._running():
            self._paused = True  # by its operator, who resumes it
            return
        note()
        self._guarded().arm(BEGIN_SECONDS * 2, "resume", *(("thaw",) if self._frozen else ()))
        self._paused_since = time.monotonic()
        self._call("pause the guest", lambda d: d.suspend())
        self._paused = True

    def release(self) -> None:
        """Lets it go on: resumed and thawed, tried again for minutes."""
        watchdog = self._watchdog
        if self._released or watchdog is None:
            return
        self._released = True
        if not self._since and not self._paused_since:
            return
        thawed: int | None = None
        resumed = False
        try:
            resumed = not self._paused_since or self._again(self._resume, _THAW_WAITS) is not None
            thawed = self._thaw() if self._since else 0
        except BaseException as error:  # an interrupt
            error.add_note(f"{self._told_to_look()}; a watchdog goes on trying, and 'vmbackup recover' tries too")
            raise
        finally:
            seconds = time.monotonic() - (self._since or self._paused_since)
            free = thawed is not None and resumed
            acted = self._stand_down(watchdog, free=free)
            self.thaw_failed = self.thaw_failed or not (free or acted)
        self.outcome = self._judge(thawed if resumed else None, seconds, watchdog_acted=acted)

    def _told_to_look(self) -> str:
        return f"the guest could not be thawed: look at {self._info.name} now"

    def _stand_down(self, watchdog: Watchdog, *, free: bool) -> bool:
        if free and self._hooks.owes:
            return watchdog.calm()
        self._watchdog = None
        return watchdog.stop() if free else watchdog.leave()

    def finish(self) -> None:
        """Runs the hooks after, if any before were begun; what went wrong with them is in `warnings`."""
        if self._limited and not self.thaw_failed:  # else the watchdog has set its own
            self._quietly(lambda d: d.agentSetResponseTimeout(NO_LIMIT, 0))
        self.warnings += self._hooks.after()
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stop()

    def verdict(self) -> None:
        """Raises QuiesceError where the policy is `required` and the guest was not frozen all the while."""
        if self._policy == "required" and self.outcome.consistency == "crash":
            self._give_up(self.outcome.note or "nobody knows why")

    def __enter__(self) -> Self:
        try:
            self.prepare()
            self.ready()
            self.freeze()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        finally:
            self.finish()

    def _judge(self, thawed: int | None, seconds: float, *, watchdog_acted: bool) -> Quiesced:
        failed = thawed is None and not watchdog_acted
        self._early = watchdog_acted or (thawed is not None and thawed != self._frozen)
        if failed:
            if self._frozen or self._paused_since:  # else its freeze has failed, and nobody knows
                self.warnings.append(self._told_to_look())
            return Quiesced("crash", seconds, self._told_to_look())
        if not self._since:
            return self._judge_paused(seconds, watchdog_acted=watchdog_acted)
        if self._frozen == 0:
            return Quiesced("crash", seconds, "the agent froze no file system")
        if watchdog_acted or thawed != self._frozen:
            return Quiesced(
                "crash", seconds, f"the guest thawed early ({self._frozen} file systems frozen, {thawed or 0} thawed)"
            )
        mounts = self._options.mounts
        if mounts and self._frozen < len(mounts):
            return Quiesced(
                "crash", seconds, f"only {self._frozen} of the mount points {', '.join(mounts)} were frozen"
            )
        note = f"only these mount points were frozen: {', '.join(mounts)}" if mounts else None
        return Quiesced("application" if self._windows or self._hooks.held else "filesystem", seconds, note)

    def _judge_paused(self, seconds: float, *, watchdog_acted: bool) -> Quiesced:
        why = f"{self.outcome.note}; " if self.outcome.note else ""
        if watchdog_acted:
            return Quiesced("crash", seconds, f"{why}it was paused for its group, and went on early")
        return Quiesced("crash", seconds, f"{why}it was paused, so that it is at one instant with its group")

    def _thaw(self) -> int | None:
        """The number of file systems thawed; None where it failed, for minutes if the guest is known to be frozen.

        After a freeze that failed it is tried once: the watchdog goes on, for that freeze may still happen.
        """

        def thaw() -> int:
            return int(self._call("thaw the guest", lambda d: d.fsThaw()))

        return self._again(thaw, _THAW_WAITS if self._frozen else ())

    def _resume(self) -> int:
        def resume(domain: Any) -> int:
            if tuple(domain.state()) == PAUSED_BY_USER:
                domain.resume()
            return 0

        return int(self._call("resume the guest", resume))

    def _again(self, function: Callable[[], int], waits: tuple[int, ...]) -> int | None:
        """Its result; 0 for a guest that is gone, None where it failed each time."""
        for wait in (*waits, None):
            try:
                return function()
            except NotFoundError:
                return 0
            except VmbackupError:
                if self._gone():
                    return 0
            if wait is not None:
                time.sleep(wait)
        return None

    def _guarded(self) -> Watchdog:
        """The watchdog, started where there is none."""
        self._watchdog = self._watchdog or Watchdog(self._connection.uri, self._info.uuid)
        return self._watchdog

    def _running(self) -> bool:
        return bool(self._call("look at the domain", lambda d: d.state()[0]) == RUNNING)

    def _gone(self) -> bool:
        try:
            return not self._call("look at the domain", lambda d: d.isActive())
        except VmbackupError as error:
            return isinstance(error, NotFoundError)

    def _quietly(self, function: Any) -> None:
        with contextlib.suppress(VmbackupError):
            self._call("reset the agent's time limit", function)

    def _give_up(self, why: str, cure: str = "look at qemu-guest-agent in the guest") -> None:
        if self._policy == "required":
            hint = f"{cure}; or use --quiesce auto"
            raise QuiesceError(f"domain {self._info.name} could not be frozen: {why}", hint)
        self.outcome = Quiesced("crash", None, why)

    def _call(self, doing: str, function: Any) -> Any:
        return self._connection.call(doing, lambda raw: function(self.domain_on(raw)), self._info.name, again=False)


def let_go_after_death(domain: Any, *, frozen: bool, paused: bool) -> bool:
    """Resumes and thaws a guest that a dead run may have left so. True where it stands still no more.

    False also for one that somebody else has paused: its agent cannot answer, and what is frozen in it stays so.
    """
    libvirt = lv.binding()
    try:
        if paused and tuple(domain.state()) == PAUSED_BY_USER:
            domain.resume()
        state = domain.state()[0]
        if not frozen or state != RUNNING:
            return not (frozen and state in ASLEEP)
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        domain.fsThaw()
        domain.agentSetResponseTimeout(NO_LIMIT, 0)
        return True
    except libvirt.libvirtError:
        return False
