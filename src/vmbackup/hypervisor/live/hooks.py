"""The operator's own commands around the begin: on this host, and inside the guest through its agent."""

import base64
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vmbackup.errors import QuiesceError, VmbackupError
from vmbackup.hypervisor.live.agent import GuestAgent
from vmbackup.hypervisor.source import DomainInfo, Hooks
from vmbackup.hypervisor.started.console import clean

_ANSWER_SECONDS = 10  # for an answer of the agent, which only starts the command or tells how it is
_POLL_SECONDS = 0.1
_MOST_TEXT = 200  # characters of what a command said
_MOST_OUTPUT = 65536  # bytes of it that are looked at


class GuestHooks:
    """The hooks of one guest's begin.

    `held`: those before have brought the guest to rest; `owes`: some before were begun, so that those after are due.
    """

    def __init__(self, hooks: Hooks, info: DomainInfo, agent: GuestAgent) -> None:
        self._hooks, self._info, self._agent = hooks, info, agent
        self.held = self.owes = False

    def __bool__(self) -> bool:
        hooks = self._hooks
        return bool(hooks.before or hooks.after or hooks.guest_before or hooks.guest_after)

    def owed(self) -> dict[str, Any]:
        """What the watchdog is to run if this process dies before `after`; empty where that is nothing."""
        hooks = self._hooks
        if not (hooks.after or hooks.guest_after):
            return {}
        environment = self._environment("after")
        return {"guest": hooks.guest_after, "host": hooks.after, "environment": environment, "seconds": hooks.seconds}

    def before(self, *, required: bool) -> list[str]:
        """Runs those before, the host's first. What went wrong; where all is `required` that raises QuiesceError."""
        self.owes = True
        hooks = self._hooks
        trouble = self._on_host(hooks.before, "before") or self._inside(hooks.guest_before, "before")
        self.held = bool(hooks.before or hooks.guest_before) and trouble is None
        if trouble and required:
            raise QuiesceError(
                f"domain {self._info.name} could not be brought to rest: {trouble}",
                "put the hook right, or use --quiesce auto",
            )
        return [trouble] if trouble else []

    def after(self) -> list[str]:
        """Runs those after, where they are due, each whatever becomes of the other. What went wrong."""
        if not self.owes:
            return []
        self.owes = False
        told = self._inside(self._hooks.guest_after, "after"), self._on_host(self._hooks.after, "after")
        return [trouble for trouble in told if trouble is not None]

    def _on_host(self, command: tuple[str, ...], when: str) -> str | None:
        if not command:
            return None
        trouble = run_on_host(command, self._environment(when), self._hooks.seconds)
        return f"the hook {command[0]} {when} the begin failed: {trouble}" if trouble else None

    def _inside(self, command: tuple[str, ...], when: str) -> str | None:
        trouble = run_in_guest(self._agent, command, self._hooks.seconds) if command else None
        return f"the hook {command[0]} in the guest {when} the begin failed: {trouble}" if trouble else None

    def _environment(self, when: str) -> dict[str, str]:
        names = {"VMBACKUP_DOMAIN": self._info.name, "VMBACKUP_UUID": self._info.uuid, "VMBACKUP_PHASE": when}
        return {**self._hooks.environment, **names}


def run_on_host(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str | None:
    """Runs it without a shell. None where it ended well, else what went wrong, in a few words."""
    try:
        done = subprocess.run(
            list(command),
            env={**os.environ, **environment},
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        return f"it was ended after {seconds:.0f} s"
    except OSError as error:
        return f"it could not be started: {error.strerror}"
    return _verdict(done.returncode, done.stderr or done.stdout)


def run_in_guest(agent: GuestAgent, command: Sequence[str], seconds: float) -> str | None:
    """Runs it inside, as the agent's user, without a shell. As `run_on_host`, but that nothing inside can be ended."""
    deadline = time.monotonic() + seconds
    try:
        options = {"path": command[0], "arg": list(command[1:]), "capture_output": True}
        pid = agent.call("guest-exec", _ANSWER_SECONDS, **options)["pid"]
        while not (status := agent.call("guest-exec-status", _ANSWER_SECONDS, pid=pid))["exited"]:
            if time.monotonic() > deadline:
                return f"it has not ended after {seconds:.0f} s"
            time.sleep(_POLL_SECONDS)
        code = int(status.get("exitcode", -int(status.get("signal", 1))))
        told = str(status.get("err-data") or status.get("out-data") or "")
        return _verdict(code, base64.b64decode(told[: _MOST_OUTPUT // 4 * 4], validate=True))
    except VmbackupError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError):
        return "the guest agent's answer makes no sense"


def _verdict(code: int, said: bytes) -> str | None:
    if code == 0:
        return None
    lines = map(clean, said[-_MOST_OUTPUT:].decode("utf-8", "replace").splitlines())
    last = next(filter(None, reversed(list(lines))), "")[:_MOST_TEXT]
    how = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    return f"{how}: {last}" if last else how
