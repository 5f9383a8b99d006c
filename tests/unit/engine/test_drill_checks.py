"""What must hold inside a guest: asked again while it may still come true, and told as it is."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from vmbackup.engine.drill.checks import Check, Checked, Checker
from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.live.agent import AgentRefusedError, AgentSilentError

SSH, HOSTNAME, READY = (
    Check("service", ("ssh",)),
    Check("file", ("/etc/hostname",)),
    Check("command", ("/bin/ready", "-q")),
)


class Guest:
    """An agent's answers: `commands` by program, `files`; the clock goes on when it sleeps or is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.commands: dict[str, Callable[[], dict[str, Any]]] = {}
        self.files: set[str] = set()
        self.system: Any = {"id": "debian"}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._running: list[str] = []

    def call(self, command: str, seconds: int, **arguments: Any) -> Any:
        assert 0 < seconds <= 30
        self.now += 0.01
        self.asked.append((command, arguments))
        answer: Any = getattr(self, command.replace("-", "_"))(**arguments)
        return answer

    def guest_get_osinfo(self) -> Any:
        return self.system

    def guest_exec(self, path: str, arg: list[str], capture_output: bool) -> Any:
        assert capture_output
        if path not in self.commands:
            raise AgentRefusedError(f"Guest agent command failed, error was 'Failed to execute {path}'")
        self._running.append(path)
        return {"pid": len(self._running)}

    def guest_exec_status(self, pid: int) -> Any:
        return self.commands[self._running[pid - 1]]()

    def guest_file_open(self, path: str, mode: str) -> Any:
        assert mode == "r"
        if path not in self.files:
            raise AgentRefusedError(f"failed to open file '{path}' (mode: 'r'): No such file or directory")
        return 1000

    def guest_file_close(self, handle: int) -> Any:
        assert handle == 1000
        return {}

    def run(
        self, *checks: Check, seconds: float = 10.0, between: Callable[[], None] = lambda: None
    ) -> list[str | None]:
        def sleep(seconds: float) -> None:
            self.now += seconds

        found = Checker(self, lambda: self.now, sleep).run(checks, seconds, between)
        assert [each.check for each in found] == list(checks)
        assert all(isinstance(each, Checked) for each in found)
        return [each.problem for each in found]


def ended(code: int = 0, out: bytes = b"", err: bytes = b"", **more: Any) -> Callable[[], dict[str, Any]]:
    data = {"out-data": base64.b64encode(out).decode(), "err-data": base64.b64encode(err).decode()}
    return lambda: {"exited": True, "exitcode": code, **data, **more}


@pytest.fixture
def guest() -> Guest:
    guest = Guest()
    guest.commands = {"systemctl": ended(0, b"active\n"), "/bin/ready": ended()}
    guest.files = {"/etc/hostname"}
    return guest


def test_all_hold(guest: Guest) -> None:
    assert guest.run(SSH, HOSTNAME, READY) == [None, None, None]
    asked = [arguments for command, arguments in guest.asked if command == "guest-exec"]
    assert asked[1] == {"path": "/bin/ready", "arg": ["-q"], "capture_output": True}
    assert guest.now < 1


def test_what_does_not_hold_is_told(guest: Guest) -> None:
    guest.commands = {"systemctl": ended(3, b"inactive\n"), "/bin/ready": ended(2, b"", b"one\nno \x1b[31mserver\n")}
    guest.files = set()
    assert guest.run(SSH, HOSTNAME, READY) == [
        "is inactive",
        "failed to open file '/etc/hostname' (mode: 'r'): No such file or directory",
        "ended with 2: no server",
    ]
    assert guest.now < 20


def test_it_is_asked_again_until_the_time_is_over(guest: Guest) -> None:
    """A service that comes up after 5 s holds; one that takes longer than all checks may does not."""
    def answer() -> dict[str, Any]:
        return ended(3, b"activating\n" if guest.now < 5 else b"active\n")()

    guest.commands["systemctl"] = answer
    assert guest.run(SSH) == [None]
    assert 5 < guest.now < 7
    guest.now = 0.0
    assert guest.run(SSH, seconds=3) == ["is activating"]
    guest.commands["systemctl"] = lambda: {"exited": False}
    assert guest.run(SSH, seconds=3) == ["systemctl gave no answer in time"]


def test_one_that_never_holds_takes_no_time_from_the_others(guest: Guest) -> None:
    """They are asked in turn: a service that comes up meanwhile holds."""
    guest.files = set()

    def answer() -> dict[str, Any]:
        return ended(0, b"active\n" if guest.now > 5 else b"activating\n")()

    guest.commands["systemctl"] = answer
    guest.commands["/bin/ready"] = lambda: {"exited": False} if guest.now < 3 else ended()()
    assert guest.run(HOSTNAME, SSH, READY, seconds=10)[1:] == [None, None]


def test_a_command_that_never_ends(guest: Guest) -> None:
    guest.commands["/bin/ready"] = lambda: {"exited": False}
    assert guest.run(READY, HOSTNAME, seconds=5) == ["it has not ended", None]
    assert guest.now < 8


def test_a_service_of_windows(guest: Guest) -> None:
    guest.system = {"id": "mswindows"}
    guest.commands = {"sc.exe": ended(0, b"SERVICE_NAME: ssh\r\n  STATE : 4  RUNNING\r\n")}
    assert guest.run(SSH) == [None]
    guest.commands = {"sc.exe": ended(0, b"SERVICE_NAME: ssh\r\n  STATE : 1  STOPPED\r\n")}
    assert guest.run(SSH, seconds=1) == ["STATE : 1  STOPPED"]


@pytest.mark.parametrize("error", [AgentSilentError("no answer"), AgentRefusedError("Command guest-exec is disabled")])
def test_an_agent_that_is_silent_or_refuses(guest: Guest, error: HypervisorError) -> None:
    def fail(**_: Any) -> Any:
        raise error

    guest.guest_exec = fail  # type: ignore[method-assign]
    assert guest.run(READY, seconds=3) == [error.message]


@pytest.mark.parametrize(
    "answer",
    [{}, [], None, {"exited": True}, {"exited": True, "exitcode": "x"}, {"exited": True, "exitcode": 1, "out-data": 7},
     {"exited": True, "exitcode": 1, "out-data": "\ud800"}, {"exited": True, "exitcode": {}, "out-data": "!" * 999}],
)  # fmt: skip
def test_answers_without_sense(guest: Guest, answer: Any) -> None:
    """A guest answers what it likes."""
    guest.commands["/bin/ready"] = lambda: answer
    (problem,) = guest.run(READY, seconds=2)
    assert problem == "the guest agent's answer makes no sense" or problem.startswith("ended with 1")  # type: ignore[union-attr]


def test_a_guest_that_is_gone_ends_it(guest: Guest) -> None:
    def gone() -> None:
        raise HypervisorError("the guest ended during the checks")

    with pytest.raises(HypervisorError, match="ended during"):
        guest.run(SSH, between=gone)
