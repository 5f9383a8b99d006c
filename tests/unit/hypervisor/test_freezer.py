"""Faults of freeze and thaw: the guest is told to thaw whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from vmbackup.errors import HypervisorError, NotFoundError, QuiesceError
from vmbackup.hypervisor.live import probe, quiesce
from vmbackup.hypervisor.live.quiesce import Freezer
from vmbackup.hypervisor.source import DomainInfo, FreezeOptions, Hooks

INFO = DomainInfo("web1", "u", 1, "running")
AGENT = "<domain><devices><channel><target name='org.qemu.guest_agent.0' state='{}'/></channel></devices></domain>"

PROBED = ["timeout 5", "timeout -2"]


class Guest:
    """A domain whose agent fails as told. `thaws` are the results of the calls of fsThaw, in order."""

    def __init__(self, *, freeze: object = 2, thaws: tuple[object, ...] = (2,), state: str = "connected") -> None:
        self.freeze, self.thaws, self.state_text = freeze, list(thaws), state
        self.calls: list[str] = []
        self.active = True
        self.stands = [1, 1]

    def name(self) -> str:
        return INFO.name

    def isPersistent(self) -> bool:  # noqa: N802
        return True

    def state(self) -> list[int]:
        return self.stands

    def suspend(self) -> None:
        self.calls.append("suspend")
        self.stands = [3, 1]

    def resume(self) -> None:
        self.calls.append("resume")
        self.stands = [1, 5]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return AGENT.format(self.state_text)

    def isActive(self) -> bool:  # noqa: N802
        return self.active

    def agentSetResponseTimeout(self, seconds: int, _flags: int) -> None:  # noqa: N802
        self.calls.append(f"timeout {seconds}")

    def fsFreeze(self, mounts: list[str] | None = None) -> int:  # noqa: N802
        self.calls.append(f"freeze {' '.join(mounts)}" if mounts else "freeze")
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

    def arm(self, seconds: float, *what: str) -> None:
        Dog.log.append(f"arm {seconds:g} {' '.join(what)}")

    def hooks(self, document: dict[str, Any]) -> None:
        Dog.log.append(f"hooks {document['guest']} {document['host']}")

    def calm(self) -> bool:
        Dog.log.append("calm")
        return Dog.barks

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
    monkeypatch.setattr(probe, "_system", lambda _domain: "debian")
    monkeypatch.setattr(quiesce.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(Dog, "barks", False)


def run(
    guest: Guest,
    policy: str = "auto",
    body: Callable[[], None] = lambda: None,
    options: FreezeOptions | None = None,
) -> Freezer:
    """A freeze around `body`."""
    freezer = Freezer(Connection(guest), INFO, policy, options)  # type: ignore[arg-type]
    freezer.eligible()
    with freezer:
        body()
    return freezer


def test_frozen_and_thawed() -> None:
    """File-system consistent; the agent's time limit is set before and given back after."""
    guest = Guest()
    freezer = run(guest)
    assert guest.calls == [*PROBED, "timeout 10", "freeze", "thaw", "timeout -2"]
    assert (freezer.outcome.consistency, freezer.outcome.note, freezer.thaw_failed) == ("filesystem", None, False)
    assert Dog.log == ["start", "arm 15 thaw", "stop"]


def test_windows_is_application_consistent(monkeypatch: pytest.MonkeyPatch) -> None:
    """VSS brings databases to rest."""
    monkeypatch.setattr(probe, "_system", lambda _domain: "mswindows")
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
    assert guest.calls[3:5] == ["freeze", "thaw"]


def test_after_a_freeze_and_a_thaw_that_fail_the_watchdog_goes_on() -> None:
    """The run does not wait for an agent that hangs; the process does, and the intent stays."""
    guest = Guest(freeze=QuiesceError("timed out"), thaws=(QuiesceError("hangs"),))
    freezer = run(guest)
    assert guest.calls.count("thaw") == 1
    assert Dog.log == ["start", "arm 15 thaw", "leave"]
    assert (freezer.thaw_failed, freezer.warnings) == (True, [])


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
    assert freezer.warnings == [freezer.outcome.note]
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


@pytest.mark.parametrize(
    ("stands", "why", "cure"),
    [(3, "is paused", "virsh resume web1"), (7, "sleeps", "virsh dompmwakeup web1"), (6, "not running", "virsh reset")],
)
def test_a_guest_that_stands_still_is_not_asked(stands: int, why: str, cure: str) -> None:
    """What makes it go on is told."""
    guest = Guest()
    guest.stands = [stands, 1]
    assert why in (run(guest).outcome.note or "")
    assert guest.calls == []
    with pytest.raises(QuiesceError, match=why) as caught:
        run(guest, "required")
    assert cure in caught.value.hint


def test_chosen_mount_points() -> None:
    """Only they are frozen, and the point says so; fewer than asked for is no better than a crash."""
    options = FreezeOptions(mounts=("/", "/srv"), seconds=30)
    guest = Guest()
    outcome = run(guest, options=options).outcome
    assert guest.calls[2:4] == ["timeout 30", "freeze / /srv"]
    assert (outcome.consistency, outcome.note) == ("filesystem", "only these mount points were frozen: /, /srv")
    fewer = run(Guest(freeze=1, thaws=(1,)), options=options).outcome
    assert (fewer.consistency, fewer.note) == ("crash", "only 1 of the mount points /, /srv were frozen")
    freezer = run(Guest(freeze=1, thaws=(1,)), "required", options=options)
    with pytest.raises(QuiesceError, match="only 1 of the mount points"):
        freezer.verdict()


def test_required_takes_no_early_thaw() -> None:
    """The verdict comes when the guest goes on again."""
    freezer = run(Guest(thaws=(1,)), "required")
    with pytest.raises(QuiesceError, match="thawed early"):
        freezer.verdict()
    run(Guest(), "required").verdict()
    run(Guest(thaws=(1,))).verdict()


def test_a_guest_that_cannot_be_frozen_is_paused_for_its_group() -> None:
    """Under the watchdog, which resumes it; frozen ones are not paused."""
    guest = Guest(state="disconnected")
    freezer = Freezer(Connection(guest), INFO, "auto")  # type: ignore[arg-type]
    freezer.eligible()
    freezer.ready(pausing=True)
    assert Dog.log == ["start"]  # which takes a while: before others stand still
    freezer.freeze()
    assert not freezer.still
    freezer.pause(lambda: guest.calls.append("noted"))
    assert guest.calls == ["noted", "suspend"]
    assert freezer.still
    freezer.release()
    freezer.finish()
    assert guest.calls == ["noted", "suspend", "resume"]
    assert Dog.log == ["start", "arm 10 resume", "stop"]
    assert freezer.stood_still
    assert "not connected; it was paused" in (freezer.outcome.note or "")


def test_a_guest_that_stands_still_is_not_paused() -> None:
    """Frozen as a whole, or paused by its operator: who paused it resumes it."""
    frozen, halted = Guest(), Guest()
    halted.stands = [3, 1]
    for guest in (frozen, halted):
        freezer = Freezer(Connection(guest), INFO, "auto")  # type: ignore[arg-type]
        freezer.eligible()
        freezer.ready(pausing=True)
        freezer.freeze()
        freezer.pause(partial(guest.calls.append, "noted"))
        freezer.release()
        freezer.finish()
        assert freezer.stood_still
        assert {"noted", "suspend", "resume"}.isdisjoint(guest.calls)


def test_a_guest_whose_watchdog_acted_did_not_stand_still() -> None:
    guest = Guest(state="disconnected")
    Dog.barks = True
    freezer = Freezer(Connection(guest), INFO, "auto")  # type: ignore[arg-type]
    freezer.eligible()
    freezer.pause(lambda: guest.calls.append("noted"))
    freezer.release()
    assert not freezer.stood_still


def test_hooks_around_the_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it on the host and then inside, after it the other way round; with them the point is the application's."""
    guest = Guest()
    told: list[str] = []
    monkeypatch.setattr("vmbackup.hypervisor.live.hooks.run_on_host", lambda c, e, _s: told.append(f"{c} {e}"))
    monkeypatch.setattr("vmbackup.hypervisor.live.hooks.run_in_guest", lambda _a, c, _s: guest.calls.append(c[0]))
    hooks = Hooks(("/h1",), ("/h2",), ("/g1",), ("/g2",), environment={"VMBACKUP_JOB": "crm"})
    freezer = run(guest, options=FreezeOptions(hooks=hooks))
    assert guest.calls[2:] == ["/g1", "timeout 10", "freeze", "thaw", "timeout -2", "/g2"]
    assert [each.split(" ")[0] for each in told] == ["('/h1',)", "('/h2',)"]
    for part in ("JOB': 'crm", "DOMAIN': 'web1", "UUID': 'u", "PHASE': 'after"):
        assert f"VMBACKUP_{part}" in told[1]
    assert Dog.log == ["start", "hooks ('/g2',) ('/h2',)", "arm 15 thaw", "calm", "stop"]
    assert freezer.outcome.consistency == "application"
    assert freezer.warnings == []


@pytest.mark.parametrize("policy", ["auto", "required"])
def test_a_hook_that_fails(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told of under auto, and fails the run where the freeze is required; those after run all the same."""
    ran: list[str] = []

    def run_on_host(command: tuple[str, ...], _environment: object, _seconds: float) -> str | None:
        ran.append(command[0])
        return "exit code 3: no" if command[0] == "/h1" else None

    monkeypatch.setattr("vmbackup.hypervisor.live.hooks.run_on_host", run_on_host)
    options = FreezeOptions(hooks=Hooks(before=("/h1",), after=("/h2",)))
    if policy == "required":
        with pytest.raises(QuiesceError, match="hook /h1 before the begin failed: exit code 3: no"):
            run(Guest(), policy, options=options)
    else:
        freezer = run(Guest(), policy, options=options)
        assert freezer.warnings == ["the hook /h1 before the begin failed: exit code 3: no"]
        assert freezer.outcome.consistency == "filesystem"
    assert ran == ["/h1", "/h2"]
