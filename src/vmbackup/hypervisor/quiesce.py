"""Freeze and thaw by the guest agent: the guest stands still for the begin of the job and no longer.

A frozen guest that nobody thaws is the worst this program can do, so the thaw is in a `finally`, is tried again
for minutes, is done by a watchdog process if this one dies or is late, and is done by the next run if all else
failed (the intent says `frozen`).
"""

import contextlib
import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from vmbackup.errors import HypervisorError, NotFoundError, QuiesceError, VmbackupError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import RUNNING, handle
from vmbackup.hypervisor.source import Consistency, DomainInfo, QuiescePolicy
from vmbackup.hypervisor.xmltree import parse

# Seconds the agent has for an answer; without a limit libvirt waits for ever.
AGENT_TIMEOUT = 10
# Seconds after the freeze at which the watchdog thaws: Windows' own limit, and far more than a begin takes.
WATCHDOG_SECONDS = 10.0
# Seconds the watchdog process has to start.
_WATCHDOG_START = 10.0
# Waits between attempts to thaw, in seconds: about five minutes in all.
_THAW_WAITS = (1, 2, 4, 8, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16, 16)
_AGENT_CHANNEL = "org.qemu.guest_agent.0"
_BLOCK_FOR_EVER = -2  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, libvirt's own setting


@dataclass(frozen=True)
class Quiesced:
    """What came of it: the consistency, how long the guest was frozen (None: not at all), and a note."""

    consistency: Consistency
    seconds: float | None
    note: str | None


def agent_trouble(domain: Any) -> str | None:
    """Why the guest agent cannot freeze this domain now; None where it is connected."""
    state = domain.state()[0]
    if state != RUNNING:
        return "the guest is paused, so its agent cannot answer" if state == 3 else "the guest is not running"
    for channel in parse(domain.XMLDesc(0)).findall("./devices/channel/target"):
        if channel.get("name") == _AGENT_CHANNEL:
            return None if channel.get("state") == "connected" else "the guest agent is not connected"
    return "the domain has no guest agent channel"


class Freezer:
    """A context around the begin: frozen inside, thawed outside. `outcome` afterwards.

    Raises QuiesceError on entering where the policy is `required` and the guest cannot be frozen; the guest
    has been told to thaw before that, whatever the agent said.
    """

    def __init__(self, connection: Connection, info: DomainInfo, policy: QuiescePolicy) -> None:
        self._connection, self._info, self._policy = connection, info, policy
        self._watchdog: Watchdog | None = None
        self._frozen = 0
        self._since = 0.0
        self._windows = False
        self.thaw_failed = False
        self.outcome = Quiesced("crash", None, "quiesce is off" if policy == "never" else None)

    def eligible(self) -> bool:
        """Whether there is a freeze to try; says why not in `outcome`. Raises QuiesceError where required."""
        if self._policy == "never":
            return False
        trouble = self._call("look for the guest agent", agent_trouble)
        if trouble is None:
            return True
        self._give_up(trouble)
        return False

    def __enter__(self) -> Self:
        if self._policy == "never" or self.outcome.note:
            return self
        try:
            self._watchdog = Watchdog(self._connection.uri, self._info.uuid)
            self._call("set the agent's time limit", lambda d: d.agentSetResponseTimeout(AGENT_TIMEOUT, 0))
            self._windows = self._call("ask for the guest's system", _is_windows)
            self._since = time.monotonic()
            self._watchdog.arm()
            self._frozen = int(self._call("freeze the guest", lambda d: d.fsFreeze()))
        except VmbackupError as error:
            # A freeze that failed or timed out may still happen.
            self.__exit__(None, None, None)
            self.outcome = Quiesced("crash", None, None)
            self._give_up(str(error))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        if not self._since:
            watchdog.stop()
            return
        thawed: int | None = None
        try:
            thawed = self._thaw()
        finally:
            seconds = time.monotonic() - self._since
            barked = watchdog.stop() if thawed is not None else watchdog.leave()
        self.outcome = self._judge(thawed, seconds, watchdog_barked=barked)

    def _judge(self, thawed: int | None, seconds: float, *, watchdog_barked: bool) -> Quiesced:
        self.thaw_failed = thawed is None and not watchdog_barked
        if self.thaw_failed:
            return Quiesced("crash", seconds, f"the guest could not be thawed: look at {self._info.name} now")
        if self._frozen == 0:
            return Quiesced("crash", seconds, "the agent froze no file system")
        if watchdog_barked or thawed != self._frozen:
            return Quiesced(
                "crash", seconds, f"the guest thawed early ({self._frozen} file systems frozen, {thawed or 0} thawed)"
            )
        return Quiesced("application" if self._windows else "filesystem", seconds, None)

    def _thaw(self) -> int | None:
        """The number of file systems thawed; None where it failed, for minutes if the guest is known to be frozen.

        After a freeze that failed it is tried once: the watchdog goes on, for that freeze may still happen.
        """
        for wait in (*_THAW_WAITS, None) if self._frozen else (None,):
            try:
                thawed = int(self._call("thaw the guest", lambda d: d.fsThaw()))
                self._quietly(lambda d: d.agentSetResponseTimeout(_BLOCK_FOR_EVER, 0))
                return thawed
            except NotFoundError:
                return 0
            except VmbackupError:
                if self._gone():
                    return 0
            if wait is not None:
                time.sleep(wait)
        return None

    def _gone(self) -> bool:
        try:
            return not self._call("look at the domain", lambda d: d.isActive())
        except VmbackupError as error:
            return isinstance(error, NotFoundError)

    def _quietly(self, function: Any) -> None:
        with contextlib.suppress(VmbackupError):
            self._call("reset the agent's time limit", function)

    def _give_up(self, why: str) -> None:
        if self._policy == "required":
            raise QuiesceError(
                f"domain {self._info.name} could not be frozen: {why}",
                "start qemu-guest-agent in the guest, or use --quiesce auto",
            )
        self.outcome = Quiesced("crash", None, why)

    def _call(self, doing: str, function: Any) -> Any:
        return self._connection.call(doing, lambda raw: function(handle(raw, self._info)), self._info.name, again=False)


# Watchdogs that go on after their run: kept so that they are not reported as forgotten.
_left_alone: list[subprocess.Popen[bytes]] = []


class Watchdog:
    """The process that thaws if this one does not: see watchdog.py. Raises HypervisorError if it cannot start."""

    def __init__(self, uri: str, uuid: str) -> None:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, uri, uuid, str(WATCHDOG_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._read(_WATCHDOG_START) != b"ready":
            self.stop()
            raise HypervisorError("the watchdog that thaws the guest did not start, so nothing was frozen")

    def arm(self) -> None:
        """Its time runs from here."""
        assert self._process.stdin
        self._process.stdin.write(b"arm\n")
        self._process.stdin.flush()

    def leave(self) -> bool:
        """Lets it go on by itself, to thaw at once and again. True where it had done so already."""
        barked = self._read(0) == b"thawed"
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        _left_alone.append(self._process)
        return barked

    def stop(self) -> bool:
        """Ends it. True where it has thawed, or was about to."""
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(b"done\n")
            self._process.stdin.close()
        except OSError:
            pass  # it has ended already
        barked = self._read(1.0) == b"thawed"
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            barked = True  # it is in the middle of a thaw: let it
        self._process.stdout.close()
        return barked

    def _read(self, timeout: float) -> bytes:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return b""
        return self._process.stdout.readline().strip()


def thaw_after_death(domain: Any) -> bool:
    """Thaws a guest that a dead run may have left frozen. True where it is not frozen any more."""
    libvirt = lv.binding()
    if domain.state()[0] != RUNNING:
        return True
    try:
        domain.agentSetResponseTimeout(AGENT_TIMEOUT, 0)
        domain.fsThaw()
        domain.agentSetResponseTimeout(_BLOCK_FOR_EVER, 0)
        return True
    except libvirt.libvirtError:
        return False


def _is_windows(domain: Any) -> bool:
    """Windows freezes through VSS, whose writers bring databases to rest: an application-consistent point."""
    kind = lv.constant("VIR_DOMAIN_GUEST_INFO_OS")
    try:
        return kind is not None and domain.guestInfo(kind, 0).get("os.id") == "mswindows"
    except lv.binding().libvirtError:
        return False
