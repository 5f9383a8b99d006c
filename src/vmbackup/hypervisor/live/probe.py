"""What can be known of a guest's agent before anything is asked of it that would hold the guest up."""

import contextlib
import shlex
from typing import Any, NamedTuple

from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.domains import PAUSED, RUNNING, SLEEPING, handle
from vmbackup.hypervisor.failures import code_of
from vmbackup.hypervisor.live.agent import AgentRefusedError, GuestAgent
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.hypervisor.xmltree import Element, parse

# Seconds for an answer that costs the agent nothing.
_PROBE_SECONDS = 5
NO_LIMIT = -2  # VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, libvirt's own setting
_AGENT_CHANNEL = "org.qemu.guest_agent.0"
_PLUG = f"""echo "<channel type='unix'><target type='virtio' name='{_AGENT_CHANNEL}'/></channel>\""""
_XML_INACTIVE = 2
_RESTART = "in the guest: systemctl restart qemu-guest-agent"
_START = "in the guest: apt install qemu-guest-agent (or dnf), systemctl start qemu-guest-agent"


class Trouble(NamedTuple):
    """Why an agent cannot freeze its guest, and what mends it: a command of the host, or of the guest."""

    why: str
    cure: str


def agent_trouble(domain: Any) -> Trouble | None:
    """Why the guest agent cannot freeze this domain now; None where it is connected."""
    state, name = domain.state()[0], shlex.quote(domain.name())
    if state == PAUSED:
        return Trouble("the guest is paused, so its agent cannot answer", f"virsh resume {name}")
    if state == SLEEPING:
        return Trouble("the guest sleeps, so its agent cannot answer", f"virsh dompmwakeup {name}")
    if state != RUNNING:  # its system has crashed, or it is on its way out
        return Trouble("the guest is not running", f"virsh reset {name} && virsh resume {name}")
    channel = _channel(domain, 0)
    if channel is not None:
        return None if channel.get("state") == "connected" else Trouble("the guest agent is not connected", _START)
    why = "the domain has no guest agent channel"
    if not domain.isPersistent():
        return Trouble(why, f"{_PLUG} | virsh attach-device {name} /dev/stdin --live   # then {_START}")
    if _channel(domain, _XML_INACTIVE) is not None:
        return Trouble(f"{why} before its next start", f"virsh shutdown {name}   # when it is off: virsh start {name}")
    # Not --live: that needs a controller, which few guests without a channel have.
    plug = f"{_PLUG} | virsh attach-device {name} /dev/stdin --config"
    return Trouble(why, f"{plug}   # there from its next start on; then {_START}")


def _channel(domain: Any, flags: int) -> Element | None:
    return parse(domain.XMLDesc(flags)).find(f"./devices/channel/target[@name='{_AGENT_CHANNEL}']")


class Probe:
    """The agent of one guest, asked once. `trouble`: why it cannot freeze, None where it can. `windows`: what it runs.

    Raises HypervisorError where libvirt cannot be asked.
    """

    def __init__(self, connection: Connection, info: DomainInfo, agent: GuestAgent) -> None:
        self._connection, self._info, self._agent = connection, info, agent
        self.windows = False
        self.trouble = self._call("look for the guest agent", agent_trouble) or self._silent_or_frozen()

    def _silent_or_frozen(self) -> Trouble | None:
        """Why an agent that is connected cannot freeze all the same."""
        self._call("set the agent's time limit", lambda d: d.agentSetResponseTimeout(_PROBE_SECONDS, 0))
        try:
            answered = self._call("ask for the guest's system", _system)
        finally:
            with contextlib.suppress(VmbackupError):
                self._call("reset the agent's time limit", lambda d: d.agentSetResponseTimeout(NO_LIMIT, 0))
        if answered is None:
            return Trouble("the guest agent does not answer", _RESTART)
        self.windows = answered == "mswindows"
        return None if answered else self._frozen_already()

    def _frozen_already(self) -> Trouble | None:
        """Whether someone else has frozen it: a freeze that is not ours is not ours to thaw."""
        try:
            frozen = self._agent.call("guest-fsfreeze-status", _PROBE_SECONDS) == "frozen"
        except AgentRefusedError:
            return None
        except VmbackupError as error:
            return Trouble(str(error), _RESTART)
        if not frozen:
            return None
        thaw = f"virsh domfsthaw {shlex.quote(self._info.name)}"
        why = f"the guest is frozen already, by someone else, and was left so ('{thaw}' thaws it if nobody needs that)"
        return Trouble(why, thaw)

    def _call(self, doing: str, function: Any) -> Any:
        return self._connection.call(doing, lambda raw: function(handle(raw, self._info)), self._info.name, again=False)


def _system(domain: Any) -> str | None:
    """The guest's kind of system: Windows freezes through VSS, whose writers bring databases to rest.

    "" where its agent does not tell, as one does that is frozen; None where it does not answer at all.
    """
    kind = lv.constant("VIR_DOMAIN_GUEST_INFO_OS")
    try:
        return str(domain.guestInfo(kind, 0).get("os.id", "")) if kind is not None else ""
    except lv.binding().libvirtError as error:
        silent = code_of(error) in (lv.AGENT_UNRESPONSIVE, lv.AGENT_COMMAND_TIMEOUT, lv.OPERATION_TIMEOUT)
        return None if silent else ""
