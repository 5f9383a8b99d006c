"""Agents that are dead, slow, stubborn or frozen already: each ends in a point that says so, and a guest that goes on.

The agent is a thread of the test's, libvirt and QEMU are real.
"""

from __future__ import annotations

import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.fake_agent import AgentHorse, FakeAgent, agent_horse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import REPOSITORY, new_session
from vmbackup.errors import QuiesceError
from vmbackup.hypervisor import Check, Host
from vmbackup.hypervisor.live import probe, quiesce
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.source import FreezeOptions, Hooks

pytestmark = pytest.mark.real
FROZEN, THAWED = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[AgentHorse]:
    """One for all tests, for its BIOS takes a second."""
    horse = agent_horse(lab, Disk(size=MiB))
    yield horse
    horse.remove()


@pytest.fixture
def agent(guest: AgentHorse, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAgent]:
    """A healthy one, asked with little patience; at the test's end nothing may be frozen."""
    monkeypatch.setattr(probe, "_PROBE_SECONDS", 1)
    agent = guest.agent
    agent.frozen, agent.mounts = 0, ["/", "/srv"]
    agent.calls.clear()
    agent.executed.clear()
    yield agent
    for faults in (agent.silent, agent.slow, agent.refused, agent.exits):
        faults.clear()
    assert agent.frozen == 0


def begun(host: Host, guest: AgentHorse, policy: str = "auto", **options: object) -> LiveJob:
    """A run that is given up after its begin; what it tells stays."""
    begin = {"repository_id": REPOSITORY, "session": new_session(), "parent": None, "quiesce": policy}
    options = {"seconds": 1, **options}
    with host.begin(host.domain(guest.name), freezing=FreezeOptions(**options), **begin) as job:  # type: ignore[arg-type]
        return job


def test_it_is_frozen_for_the_begin_only(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """Five times: at the median the guest stands still for a fraction of the two seconds that are allowed."""
    jobs = [begun(host, guest, "required") for _ in range(5)]
    assert agent.commands == [FROZEN, THAWED] * 5
    assert {job.consistency for job in jobs} == {"filesystem"}
    times = sorted(job.freeze_seconds or 99 for job in jobs)
    print(f"frozen for {times[0]:.3f} to {times[-1]:.3f} s, at the median {statistics.median(times):.3f} s")
    assert statistics.median(times) < 2


def test_it_freezes_chosen_mount_points(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """One of which is not there: then it counts for no more than a crash, and not at all where it is required."""
    job = begun(host, guest, mounts=("/srv",))
    assert agent.commands == ["guest-fsfreeze-freeze-list", THAWED]
    assert (job.consistency, job.quiesce_note) == ("filesystem", "only these mount points were frozen: /srv")
    job = begun(host, guest, mounts=("/srv", "/nowhere"))
    assert (job.consistency, job.quiesce_note) == ("crash", "only 1 of the mount points /srv, /nowhere were frozen")
    with pytest.raises(QuiesceError, match="could not be frozen: only 1 of the mount points"):
        begun(host, guest, "required", mounts=("/srv", "/nowhere"))


@pytest.mark.versions
def test_a_dead_agent_is_noticed_before_anything_is_frozen(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """It is connected, and answers nothing."""
    agent.silent = {"guest-sync", "guest-sync-delimited", "guest-get-osinfo", "guest-fsfreeze-status"}
    job = begun(host, guest)
    assert (job.consistency, job.freeze_seconds) == ("crash", None)
    assert "the guest agent does not answer" in (job.quiesce_note or "")
    assert FROZEN not in agent.commands
    with pytest.raises(QuiesceError, match="could not be frozen: the guest agent does not answer"):
        begun(host, guest, "required")
    assert guest.checkpoints() == []


@pytest.mark.versions
def test_an_agent_that_does_not_tell_whether_it_is_frozen(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """It is asked to freeze all the same."""
    agent.refused = dict.fromkeys(("guest-get-osinfo", "guest-fsfreeze-status"), "has been disabled")
    assert begun(host, guest, "required").consistency == "filesystem"
    assert agent.commands[-2:] == [FROZEN, THAWED]


@pytest.mark.versions
def test_who_is_frozen_already_is_left_so(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """Somebody else froze it, and counts on it."""
    agent.frozen = 2
    job = begun(host, guest)
    assert job.consistency == "crash"
    assert "frozen already, by someone else, and was left so" in (job.quiesce_note or "")
    with pytest.raises(QuiesceError, match=f"virsh domfsthaw {guest.name}"):
        begun(host, guest, "required")
    assert (agent.frozen, THAWED in agent.commands) == (2, False)
    agent.frozen = 0


@pytest.mark.versions
@pytest.mark.parametrize("policy", ["auto", "required"])
def test_a_freeze_that_fails(policy: str, host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """The guest is told to thaw all the same."""
    agent.refused = {FROZEN: "failed to freeze /srv: Input/output error"}
    if policy == "required":
        with pytest.raises(QuiesceError, match="failed to freeze /srv"):
            begun(host, guest, policy)
    else:
        job = begun(host, guest)
        assert job.consistency == "crash"
        assert "failed to freeze /srv: Input/output error" in (job.quiesce_note or "")
    assert agent.commands[-2:] == [FROZEN, THAWED]


@pytest.mark.versions
def test_a_freeze_that_hangs_and_happens_later(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """The run goes on without it after its limit; when the agent does freeze at last, it is thawed at once."""
    agent.slow = {FROZEN: 3.0}
    started = time.monotonic()
    job = begun(host, guest)
    assert job.consistency == "crash"
    assert "could not be" in (job.quiesce_note or "") or "answer" in (job.quiesce_note or "")
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 30
    while agent.commands[-1:] != [THAWED] or agent.frozen:
        assert time.monotonic() < deadline, agent.calls
        time.sleep(0.05)


def test_a_thaw_that_fails_at_first(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """It is tried again until it works."""
    agent.refused = {THAWED: "not now"}

    def mend() -> None:
        while THAWED not in agent.commands:
            time.sleep(0.01)
        agent.refused = {}

    import threading

    mending = threading.Thread(target=mend)
    mending.start()
    job = begun(host, guest)
    mending.join()
    assert job.consistency == "filesystem"
    assert agent.commands[:3] == [FROZEN, THAWED, THAWED]


def test_interrupted_while_its_thaw_fails(
    host: Host, guest: AgentHorse, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator is told to look at it, the watchdog goes on, and the next run knows."""

    sleep = time.sleep

    def interrupt(seconds: float) -> None:
        if seconds == quiesce._THAW_WAITS[0]:
            raise KeyboardInterrupt
        sleep(seconds)

    agent.refused = {THAWED: "not now"}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(quiesce.time, "sleep", interrupt)
        begun(host, guest)
    assert f"could not be thawed: look at {guest.name} now" in "".join(caught.value.__notes__)
    assert [intent.frozen for intent in host.intents()] == [True]
    assert agent.frozen == 2
    agent.refused = {}
    (left,) = host.recover(host.domain(guest.name), lambda _name: False)
    assert (agent.frozen, left.trouble) == (0, ())


@pytest.mark.versions
def test_hooks(host: Host, guest: AgentHorse, agent: FakeAgent, tmp_path: Path) -> None:
    """Outside and inside, before and after; with them the point is application-consistent."""
    told = tmp_path / "told"
    script = ("/bin/sh", "-c", f'echo "$VMBACKUP_PHASE $VMBACKUP_DOMAIN" >> {told}')
    hooks = Hooks(script, script, ("/usr/bin/quiet-db", "on"), ("/usr/bin/quiet-db", "off"), seconds=5)
    job = begun(host, guest, "required", hooks=hooks)
    assert job.consistency == "application"
    assert agent.commands == ["guest-exec", FROZEN, THAWED, "guest-exec"]
    assert agent.executed == [["/usr/bin/quiet-db", "on"], ["/usr/bin/quiet-db", "off"]]
    assert told.read_text() == f"before {guest.name}\nafter {guest.name}\n"
    agent.exits = {"/usr/bin/quiet-db": 4}
    job = begun(host, guest, hooks=hooks)
    assert job.consistency == "filesystem"
    assert [note for note in job.notes if "hook" in note] == [
        "the hook /usr/bin/quiet-db in the guest before the begin failed: exit code 4",
        "the hook /usr/bin/quiet-db in the guest after the begin failed: exit code 4",
    ]


@pytest.mark.versions
def test_doctor_asks_as_a_backup_does(host: Host, guest: AgentHorse, agent: FakeAgent) -> None:
    """An agent that is connected may be dead, frozen or barred: each is told, with what mends it; nothing is frozen."""

    def told() -> Check:
        (found,) = (each for each in host.checks([host.domain(guest.name)]) if each.name == "guest-agent")
        return found

    assert (told().status, told().fix) == ("ok", "")
    agent.refused = {"guest-exec": "not allowed"}
    assert (told().status, "guest-exec" in told().message) == ("ok", True)
    agent.refused = {FROZEN: "not allowed"}
    assert (told().status, FROZEN in told().message) == ("warn", True)
    agent.refused = {}
    agent.silent = {"guest-sync", "guest-sync-delimited", "guest-get-osinfo", "guest-fsfreeze-status"}
    assert (told().status, "does not answer" in told().message) == ("warn", True)
    agent.silent = set()
    assert agent.frozen == 0
    agent.frozen = 2
    assert (told().status, told().fix.endswith(f" domfsthaw {guest.name}")) == ("warn", True)
    subprocess.run(shlex.split(told().fix), check=True, capture_output=True)
    assert told().status == "ok"


_VICTIM = """
import sys, time
from vmbackup.hypervisor import Check, Host
from vmbackup.hypervisor.live.beginning import Beginning
from vmbackup.hypervisor.source import FreezeOptions, Hooks
name, scratch, state, session, told = sys.argv[1:]
def stay(*_):
    print("frozen", flush=True)
    time.sleep(600)
Beginning._begin = stay
hooks = Hooks(after=("/bin/sh", "-c", f"echo after >> {told}"), guest_after=("/usr/bin/quiet-db", "off"))
with Host.open("qemu:///system", scratch_dir=scratch, state_dir=state) as host:
    host.begin(host.domain(name), repository_id="0123abcd", session=session, parent=None,
               freezing=FreezeOptions(hooks=hooks))
"""


def kill_while_frozen(host: Host, guest: AgentHorse, scratch: Path, told: Path, *, watchdog: bool = True) -> None:
    """kill -9 of a run, without its watchdog if that is to go too."""
    arguments = [guest.name, str(scratch), host.places.state_dir, new_session(), str(told)]
    command = [sys.executable, "-P", "-c", _VICTIM, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout
        assert victim.stdout.readline() == "frozen\n"
        assert guest.agent.frozen == 2
        for child in [] if watchdog else Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        victim.kill()


def test_killed_while_it_is_frozen(
    host: Host, guest: AgentHorse, agent: FakeAgent, scratch_dir: Path, tmp_path: Path
) -> None:
    """kill -9: the watchdog thaws at once, and runs the hooks that are due."""
    told = tmp_path / "told"
    kill_while_frozen(host, guest, scratch_dir, told)
    killed = time.monotonic()
    while agent.frozen or not told.exists() or len(agent.executed) < 1:
        assert time.monotonic() - killed < 30
        time.sleep(0.01)
    thawed = next(at for at, name in reversed(agent.calls) if name == THAWED)
    print(f"thawed {thawed - killed:.3f} s after the kill")
    assert thawed - killed < 10
    assert agent.executed == [["/usr/bin/quiet-db", "off"]]
    host.recover(host.domain(guest.name), lambda _name: False)


def test_paused_by_its_operator_after_a_run_that_left_it_frozen(
    host: Host, guest: AgentHorse, agent: FakeAgent, scratch_dir: Path, tmp_path: Path
) -> None:
    """It cannot be thawed while it is paused, and that is kept in mind until it goes on."""
    kill_while_frozen(host, guest, scratch_dir, tmp_path / "told", watchdog=False)
    guest.domain.suspend()
    (left,) = host.recover(host.domain(guest.name), lambda _name: False)
    guest.domain.resume()
    assert agent.frozen == 2
    assert (left.done, len(left.trouble)) == ((), 1)
    assert f"virsh resume {guest.name}" in left.trouble[0]
    (left,) = host.recover(host.domain(guest.name), lambda _name: False)
    assert (agent.frozen, left.done, left.trouble) == (0, ("thawed the guest",), ())
