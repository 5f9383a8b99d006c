"""What doctor finds of a guest's agent: it is asked as a backup asks it, and nothing is frozen."""

from vmbackup.errors import VmbackupError
from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.live.agent import GuestAgent
from vmbackup.hypervisor.live.probe import Probe
from vmbackup.hypervisor.source import DomainInfo

_SECONDS = 5
_FREEZE = ("guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-fsfreeze-status")
_EXEC = ("guest-exec", "guest-exec-status")
_ALLOW = (
    "in the guest: take them off the agent's list of blocked RPCs (/etc/qemu/qemu-ga.conf or /etc/sysconfig/qemu-ga), "
    "systemctl restart qemu-guest-agent"
)


def agent_check(connection: Connection, info: DomainInfo) -> Check:
    """Of a domain that runs, under its lock. Raises HypervisorError where libvirt cannot be asked."""
    agent = GuestAgent(connection, info.uuid)
    trouble = Probe(connection, info, agent).trouble
    if trouble is not None:
        why = trouble.why.partition(", and was left so")[0]
        return Check("guest-agent", info.name, "warn", f"{why}: restore points are crash consistent", trouble.cure)
    blocked = _blocked(agent)
    if barred := [name for name in _FREEZE if name in blocked]:
        message = f"the guest agent may not {', '.join(barred)}: restore points are crash consistent"
        return Check("guest-agent", info.name, "warn", message, _ALLOW)
    message = "it answers: restore points are file-system consistent"
    if any(name in blocked for name in _EXEC):
        message += "; it may not guest-exec: hooks and a drill's checks inside it cannot run"
    return Check("guest-agent", info.name, "ok", message)


def _blocked(agent: GuestAgent) -> set[str]:
    """Commands that it knows and may not do; none where it does not tell."""
    try:
        told = agent.call("guest-info", _SECONDS)["supported_commands"]
        return {str(each["name"]) for each in told if each["enabled"] is False}
    except (VmbackupError, KeyError, TypeError):
        return set()
