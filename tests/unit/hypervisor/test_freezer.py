"""Faults of freeze and thaw: the guest is told to thaw whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vmbackup.errors import HypervisorError, NotFoundError, QuiesceError
from vmbackup.hypervisor import quiesce
from vmbackup.hypervisor.quiesce import Freezer
from vmbackup.hypervisor.source import DomainInfo

INFO = DomainInfo("web1", "u", 1, "running")
AGENT = "<domain><devices><channel><target name='org.qemu.guest_agent.0' state='{}'/></channel></devices></domain>"


class Guest:
    """A domain whose agent fails as told. `thaws` are the results of the calls of fsThaw, in order."""

    def __init__(self, *, freeze: object = 2, thaws: tuple[object, ...] = (2,), state: str = "connected") -> None:
        self.freeze, self.thaws, self.state_text = freeze, list(thaws), state
        self.calls: list[str] = []
        self.active = True

    def state(self) -> tuple[int, int]:
        return (1, 1)

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return AGENT.format(self.state_text)

    def isActive(self) -> bool:  # noqa: N802
        return self.active

    def agentSetResponseTimeout(self, seconds: int, _flags: int) -> None:  # noqa: N802
        self.calls.append(f"timeout {seconds}")

    def fsFreeze(self) -> int:  # noqa: N802
        self.calls.append("freeze")
        return self._result(self.freeze)

    def fsThaw(self) -> int:  # noqa: N802
        self.calls.append("thaw")
        return self._result(self.thaws.pop(0))

    def lookupByUUIDString(self, _uuid: str) -> Guest:  # noqa: N802
        return self

    def _result(self, result: object) -> int:
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, int)
        return result


class Connection:
    """Calls straight through."""

    uri = "test"

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def call(self, _doing: str, function: Callable[[Any], Any], _domain: str = "", *, again: bool = True) -> Any:
        return function(self.guest)


class Dog:
    """A watchdog that notes what is done with it."""

    barks = False
    log: list[str]

    def __init__(self, _uri: str, _uuid: str) -> None:
        Dog.log = ["start"]

    def arm(self) -> None:
        Dog.log.append("arm")

    def stop(self) -> bool:
        Dog.log.append("stop")
        return Dog.barks

    def leave(self) -> bool:
        Dog.log.append("leave")
        return Dog.barks


@pytest.fixture(autouse=True)
def dog(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no waiting."""
    monkeypatch.setattr(quiesce, "Watchdog", Dog)
    monkeypatch.setattr(quiesce, "_is_windows", lambda _domain: False)
    monkeypatch.setattr(quiesce.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(Dog, "barks", False)


def run(guest: Guest, policy: str = "auto", body: Callable[[], None] = lambda: None) -> Freezer:
    """A freeze around `body`."""
    freezer = Freezer(Connection(guest), INFO, policy)  # type: ignore[arg-type]
    freezer.eligible()
    with freezer:
        body()
    return freezer


def test_frozen_and_thawed() -> None:
    """File-system consistent; the agent's time limit is set before and given back after."""
    guest = Guest()
    freezer = run(guest)
    assert guest.calls == ["timeout 10", "freeze", "thaw", "timeout -2"]
    assert (freezer.outcome.consistency, freezer.outcome.note, freezer.thaw_failed) == ("filesystem", None, False)
    assert Dog.log == ["start", "arm", "stop"]


def test_windows_is_application_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """VSS brings databases to rest."""
    monkeypatch.setattr(quiesce, "_is_windows", lambda _domain: True)
    assert run(Guest()).outcome.consistency == "application"


def test_a_body_that_fails_is_thawed() -> None:
    """The thaw is in a finally."""
    guest = Guest()

    def fail() -> None:
        raise RuntimeError("begin failed")

    with pytest.raises(RuntimeError, match="begin failed"):
        run(guest, body=fail)
    assert "thaw" in guest.calls


@pytest.mark.parametrize("policy", ["auto", "required"])
def test_a_freeze_that_fails_is_thawed_all_the_same(policy: str) -> None:
    """It may still happen. Then the policy decides."""
    guest = Guest(freeze=QuiesceError("timed out"), thaws=(0,))
    if policy == "required":
        with pytest.raises(QuiesceError, match="could not be frozen: timed out"):
            run(guest, policy)
    else:
        outcome = run(guest, policy).outcome
        assert (outcome.consistency, outcome.note) == ("crash", "timed out")
    assert guest.calls[1:3] == ["freeze", "thaw"]


def test_after_a_freeze_and_a_thaw_that_fail_the_watchdog_goes_on() -> None:
    """The run does not wait for an agent that hangs; the process does, and the intent stays."""
    guest = Guest(freeze=QuiesceError("timed out"), thaws=(QuiesceError("hangs"),))
    freezer = run(guest)
    assert guest.calls.count("thaw") == 1
    assert Dog.log == ["start", "arm", "leave"]
    assert freezer.thaw_failed


def test_a_thaw_is_tried_again() -> None:
    """Until it works."""
    guest = Guest(thaws=(QuiesceError("a"), HypervisorError("b"), 2))
    freezer = run(guest)
    assert guest.calls.count("thaw") == 3
    assert (freezer.outcome.consistency, freezer.thaw_failed) == ("filesystem", False)


def test_a_thaw_that_never_works_is_told() -> None:
    """After about five minutes: the operator is called, the intent stays, the watchdog goes on."""
    guest = Guest(thaws=tuple(QuiesceError("x") for _ in range(30)))
    freezer = run(guest)
    assert guest.calls.count("thaw") == 21
    assert sum(quiesce._THAW_WAITS) > 240
    assert freezer.thaw_failed
    assert "could not be thawed: look at web1" in (freezer.outcome.note or "")
    assert Dog.log[-1] == "leave"


@pytest.mark.parametrize("gone", ["off", "undefined"])
def test_a_guest_that_is_gone_needs_no_thaw(gone: str) -> None:
    """Switched off or removed meanwhile."""
    guest = Guest(thaws=(NotFoundError("gone") if gone == "undefined" else HypervisorError("off"),))
    guest.active = gone != "off"
    assert not run(guest).thaw_failed


@pytest.mark.parametrize(("thawed", "barks"), [(1, False), (0, False), (2, True)])
def test_an_early_thaw_is_only_crash_consistent(thawed: int, barks: bool) -> None:
    """Somebody else, or the watchdog, thawed before us."""
    Dog.barks = barks
    outcome = run(Guest(thaws=(thawed,))).outcome
    assert outcome.consistency == "crash"
    assert "thawed early" in (outcome.note or "")


def test_nothing_frozen_is_crash_consistent() -> None:
    """An agent that froze no file system."""
    assert run(Guest(freeze=0, thaws=(0,))).outcome.note == "the agent froze no file system"


def test_an_agent_that_is_not_connected_is_not_asked() -> None:
    """auto goes on at once; required fails before anything."""
    guest = Guest(state="disconnected")
    assert run(guest).outcome.note == "the guest agent is not connected"
    assert guest.calls == []
    with pytest.raises(QuiesceError):
        run(guest, "required")
    assert run(guest, "never").outcome.note == "quiesce is off"
