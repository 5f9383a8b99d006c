"""The guest agent of a domain: one command of its protocol at a time, each with a limit.

What a guest answers is hostile: its types are checked by who asks.
"""

import json
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.connection import Connection
from vmbackup.hypervisor.failures import code_of, text_of, translate
from vmbackup.hypervisor.started.console import clean

_MOST_TEXT = 300  # characters of what a guest says of an error


class AgentSilentError(HypervisorError):
    """There is no answer: the agent is not there, not yet, or hangs. It may be asked again."""


class AgentRefusedError(HypervisorError):
    """The agent answered that it cannot, or may not."""


class GuestAgent:
    """The agent of the domain of that UUID."""

    def __init__(self, connection: Connection, uuid: str) -> None:
        self._connection, self._uuid = connection, uuid

    def call(self, command: str, seconds: int, **arguments: Any) -> Any:
        """What the agent returns. Raises AgentSilentError, AgentRefusedError, NotFoundError (the domain is gone)."""
        libvirt = lv.binding()
        import libvirt_qemu

        request = json.dumps({"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}})
        try:
            domain = self._connection.live().lookupByUUIDString(self._uuid)
            answer = libvirt_qemu.qemuAgentCommand(domain, request, seconds, 0)
        except libvirt.libvirtError as error:
            raise self._told(error, command) from error
        try:
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AgentRefusedError(f"the guest agent's answer to {command} makes no sense") from None

    @staticmethod
    def _told(error: Exception, command: str) -> Exception:
        code, text = code_of(error), clean(text_of(error))[:_MOST_TEXT]
        if code in (lv.AGENT_UNRESPONSIVE, lv.AGENT_COMMAND_TIMEOUT, lv.OPERATION_TIMEOUT, lv.AGENT_UNSUPPORTED):
            return AgentSilentError(f"the guest agent does not answer: {text}")
        if code in (lv.INTERNAL_ERROR, lv.AGENT_COMMAND_FAILED, lv.OPERATION_UNSUPPORTED):
            return AgentRefusedError(text.partition(f"agent command '{command}': ")[2] or text)
        return translate(error, f"ask the guest agent for {command}")
