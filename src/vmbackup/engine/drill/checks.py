"""What must hold inside a guest that has booted: asked of its agent until it does, or until the time is over."""

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vmbackup.hypervisor.live.agent import AgentRefusedError, AgentSilentError
from vmbackup.hypervisor.started.console import clean

ANSWER_SECONDS = 10  # for one answer of the agent; a guest that has just booted is slow
_PAUSE = 1.0  # seconds between two looks
_SHOWN = 200  # characters of what a command printed
_MOST_OUTPUT = 16 << 20  # bytes that an agent gives, in base64
_WINDOWS = "mswindows"


class Agent(Protocol):
    """A guest's agent (hypervisor/live/agent.py)."""

    def call(self, command: str, seconds: int, **arguments: Any) -> Any:
        """What it returns. Raises AgentSilentError, AgentRefusedError."""


@dataclass(frozen=True)
class Check:
    """A service that is active, a file that is there, or a command (program and arguments) that ends with 0."""

    kind: Literal["service", "file", "command"]
    subject: tuple[str, ...]

    @property
    def name(self) -> str:
        """As it is told."""
        return f"{self.kind} {' '.join(self.subject)}"


@dataclass(frozen=True)
class Checked:
    """What came of a check. `problem`: why it does not hold, in words; None where it does."""

    check: Check
    problem: str | None


class Checker:
    """Makes checks through an agent. `clock` and `sleep` are of monotonic seconds."""

    def __init__(
        self,
        agent: Agent,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._agent, self._clock, self._sleep = agent, clock, sleep
        self._windows: bool | None = None

    def run(self, checks: Sequence[Check], seconds: float, between: Callable[[], None]) -> list[Checked]:
        """All of them, those that do not hold again and again until they do, or `seconds` are over for all together.

        `between` is called before each look, and may raise where the guest is gone.
        """
        deadline = self._clock() + seconds
        problems = {check: self._look(check, deadline, between) for check in checks}
        while any(problems.values()) and self._clock() < deadline:
            self._sleep(_PAUSE)
            again = [check for check, problem in problems.items() if problem]
            problems |= {check: self._look(check, deadline, between) for check in again}
        return [Checked(check, problems[check]) for check in checks]

    def _look(self, check: Check, deadline: float, between: Callable[[], None]) -> str | None:
        """Why it does not hold now; None where it does."""
        look = {"service": self._service, "file": self._file, "command": self._command}[check.kind]
        between()
        try:
            return look(check.subject, deadline, between)
        except (AgentSilentError, AgentRefusedError) as error:
            return error.message
        except (KeyError, TypeError, ValueError, AttributeError):
            return "the guest agent's answer makes no sense"

    def _service(self, subject: Sequence[str], deadline: float, between: Callable[[], None]) -> str | None:
        if self._windows is None:
            answer = self._agent.call("guest-get-osinfo", ANSWER_SECONDS)
            self._windows = isinstance(answer, dict) and answer.get("id") == _WINDOWS
        if self._windows:
            said = self._output(("sc.exe", "query", *subject), deadline, between)[1]
            return None if "RUNNING" in said.split() else _last(said) or "is not running"
        asked, late = ("systemctl", "is-active", *subject), "systemctl gave no answer in time"
        said = self._output(asked, deadline, between, late)[1].strip()
        return None if said == "active" else f"is {_last(said) or 'not active'}"

    def _file(self, subject: Sequence[str], _deadline: float, _between: Callable[[], None]) -> str | None:
        handle = self._agent.call("guest-file-open", ANSWER_SECONDS, path=subject[0], mode="r")
        self._agent.call("guest-file-close", ANSWER_SECONDS, handle=int(handle))
        return None

    def _command(self, subject: Sequence[str], deadline: float, between: Callable[[], None]) -> str | None:
        code, said = self._output(subject, deadline, between)
        return None if code == 0 else f"ended with {code}{': ' if said.strip() else ''}{_last(said)}"

    def _output(
        self, command: Sequence[str], deadline: float, between: Callable[[], None], late: str = "it has not ended"
    ) -> tuple[int | str, str]:
        """How a command ended, and what it printed. Raises AgentSilentError where it does not end in time."""
        path, *rest = command
        options = {"path": path, "arg": rest, "capture_output": True}
        pid = int(self._agent.call("guest-exec", ANSWER_SECONDS, **options)["pid"])
        while True:
            answer = self._agent.call("guest-exec-status", ANSWER_SECONDS, pid=pid)
            if answer["exited"]:
                break
            if self._clock() >= deadline:
                raise AgentSilentError(late)
            between()
            self._sleep(_PAUSE / 5)
        said = "".join(_decoded(answer.get(name, "")) for name in ("out-data", "err-data"))
        signal = answer.get("signal")
        return (int(answer["exitcode"]) if signal is None else f"signal {int(signal)}"), said


def _decoded(text: object) -> str:
    data = str(text)[:_MOST_OUTPUT]
    return base64.b64decode(data[: len(data) // 4 * 4]).decode(errors="replace")


def _last(said: str) -> str:
    """The last line that says something."""
    lines = [line for line in map(clean, said[-(1 << 14) :].splitlines()) if line.strip()]
    return lines[-1].strip()[:_SHOWN] if lines else ""
