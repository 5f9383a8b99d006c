"""The operator's commands around the begin: how they end, in a few words."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from vmbackup.hypervisor.live.agent import AgentSilentError
from vmbackup.hypervisor.live.hooks import run_in_guest, run_on_host


@pytest.mark.parametrize(
    ("script", "trouble"),
    [
        ("exit 0", None),
        ("echo no room >&2; echo out; exit 3", "exit code 3: no room"),
        ("echo only this; exit 1", "exit code 1: only this"),
        ("exit 9", "exit code 9"),
        ("kill -9 $$", "killed by signal 9"),
        (r"printf 'a\033[2Jb\n' >&2; exit 1", "exit code 1: ab"),
        ("sleep 30", "it was ended after 0 s"),
        ('test "$VMBACKUP_DOMAIN" = web1', None),
    ],
)
def test_on_this_host(script: str, trouble: str | None) -> None:
    """Its exit code, and its last words; what a terminal would obey is left out."""
    seconds = 0.2 if script.startswith("sleep") else 30
    assert run_on_host(("/bin/sh", "-c", script), {"VMBACKUP_DOMAIN": "web1"}, seconds) == trouble


def test_a_program_that_is_not_there() -> None:
    assert run_on_host(("/nowhere/at/all",), {}, 5) == "it could not be started: No such file or directory"


class Agent:
    """Answers guest-exec, and guest-exec-status with these in turn."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    def call(self, command: str, _seconds: int, **arguments: Any) -> Any:
        self.asked.append({"command": command, **arguments})
        if command == "guest-exec":
            return {"pid": 7}
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        ({"exited": True, "exitcode": 0}, None),
        ({"exited": True, "exitcode": 2, "err-data": base64.b64encode(b"locked\n").decode()}, "exit code 2: locked"),
        ({"exited": True, "signal": 15}, "killed by signal 15"),
        ({"exited": True, "exitcode": 1, "out-data": "%%"}, "the guest agent's answer makes no sense"),
        ({"exited": True, "exitcode": "many"}, "the guest agent's answer makes no sense"),
        ([], "the guest agent's answer makes no sense"),
        (AgentSilentError("the guest agent does not answer: gone"), "the guest agent does not answer: gone"),
    ],
)
def test_inside_the_guest(answer: object, trouble: str | None) -> None:
    """What it answers is hostile."""
    agent = Agent({"exited": False}, answer)
    assert run_in_guest(agent, ("quiet-db", "on"), 30) == trouble  # type: ignore[arg-type]
    assert agent.asked[0] == {"command": "guest-exec", "path": "quiet-db", "arg": ["on"], "capture_output": True}


def test_one_that_does_not_end_inside() -> None:
    agent = Agent(*({"exited": False} for _ in range(3)))
    assert run_in_guest(agent, ("quiet-db",), -1) == "it has not ended after -1 s"  # type: ignore[arg-type]
