"""Several real domains at one instant: a frozen one, one that is paused for it, one that its operator has paused."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.fake_agent import AgentHorse, FakeAgent, agent_horse
from tests.lab.session import Lab
from tests.real.engine.program import Program
from tests.real.hypervisor.conftest import REPOSITORY, new_session
from vmbackup.errors import QuiesceError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.beginning import Beginning
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.source import FreezeOptions

pytestmark = pytest.mark.real
FROZEN, THAWED = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"
RUNNING, PAUSED = 1, 3


@dataclass
class Stage:
    """Three domains: with an agent; running without one; paused."""

    agent_horse: AgentHorse
    runner: Workhorse
    sleeper: Workhorse

    @property
    def agent(self) -> FakeAgent:
        return self.agent_horse.agent

    @property
    def names(self) -> list[str]:
        return [self.agent_horse.name, self.runner.name, self.sleeper.name]

    def states(self) -> tuple[int, int, int]:
        """How many file systems are frozen, and the states of the others."""
        return self.agent.frozen, self.runner.domain.state()[0], self.sleeper.domain.state()[0]


STILL, GOING = (2, PAUSED, PAUSED), (0, RUNNING, PAUSED)


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    made = Stage(agent_horse(lab, Disk(size=MiB)), lab.workhorse(Disk(size=MiB)), lab.workhorse(Disk(size=MiB)))
    made.runner.domain.resume()
    yield made
    for horse in (made.agent_horse, made.runner, made.sleeper):
        horse.remove()


@pytest.fixture(autouse=True)
def healthy(stage: Stage) -> Iterator[None]:
    """The agent is, before each test; after it all go on as they did before."""
    agent = stage.agent
    agent.calls.clear()
    yield
    for faults in (agent.silent, agent.slow, agent.refused):
        faults.clear()
    assert stage.states() == GOING


def begun(host: Host, stage: Stage, policy: str = "auto", **options: Any) -> list[LiveJob | Exception]:
    """Begins all together, and gives up what has begun."""
    wanted: Any = {"repository_id": REPOSITORY, "parent": None, "quiesce": policy, "freezing": FreezeOptions(**options)}
    prepared = [host.prepare(host.domain(name), session=new_session(), **wanted) for name in stage.names]
    results = host.begin_together(prepared)
    for result in results:
        if isinstance(result, LiveJob):
            result.finish(committed=False)
    return results


def test_all_stand_still_while_all_are_begun(host: Host, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first begin, and after the last; each says one time, and how it stood still."""
    seen: list[tuple[int, int, int]] = []
    real = Beginning._begin

    def looked(*arguments: Any) -> Any:
        seen.append(stage.states())
        result = real(*arguments)
        seen.append(stage.states())
        return result

    monkeypatch.setattr(Beginning, "_begin", looked)
    jobs = begun(host, stage)
    assert seen == [STILL] * 6
    good = [job for job in jobs if isinstance(job, LiveJob)]
    assert len(good) == 3, jobs
    assert len({job.time for job in good}) == 1
    assert all(job.stood_still for job in good)
    assert [job.consistency for job in good] == ["filesystem", "crash", "crash"]
    frozen, paused, sleeping = (job.quiesce_note for job in good)
    assert frozen is None
    assert paused == "the domain has no guest agent channel; it was paused, so that it is at one instant with its group"
    assert sleeping == "the guest is paused, so its agent cannot answer"
    print("stood still for", [round(job.freeze_seconds or 0, 3) for job in good])
    assert max(job.freeze_seconds or 0 for job in good) < 5
    assert good[2].freeze_seconds is None


def test_chosen_mount_points_alone_are_no_standstill(
    host: Host, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest of which only a part is frozen is paused too, and thawed once it runs again."""
    seen: list[int] = []
    real = Beginning._begin

    def looked(*arguments: Any) -> Any:
        seen.append(stage.agent_horse.domain.state()[0])
        return real(*arguments)

    monkeypatch.setattr(Beginning, "_begin", looked)
    first = begun(host, stage, mounts=("/srv",))[0]
    assert isinstance(first, LiveJob)
    assert first.stood_still
    assert first.consistency == "filesystem"
    assert seen == [PAUSED] * 3
    assert stage.agent_horse.domain.state()[0] == RUNNING


def test_one_that_must_be_frozen_and_is_not(host: Host, stage: Stage) -> None:
    """It fails and goes on; the others are begun."""
    stage.agent.refused = {FROZEN: "no"}
    wanted: Any = {"repository_id": REPOSITORY, "parent": None}
    prepared = [
        host.prepare(host.domain(name), session=new_session(), quiesce=policy, **wanted)  # type: ignore[arg-type]
        for name, policy in zip(stage.names, ("required", "auto", "auto"), strict=True)
    ]
    first, *others = host.begin_together(prepared)
    assert isinstance(first, QuiesceError)
    for other in others:
        assert isinstance(other, LiveJob)
        other.finish(committed=False)
    assert stage.agent.commands[-2:] == [FROZEN, THAWED]
    assert stage.agent_horse.checkpoints() == []


def test_one_begin_that_fails(host: Host, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, at the last moment."""
    real = Beginning._begin

    def failing(beginning: Beginning, info: Any, *rest: Any) -> Any:
        if info.name == stage.runner.name:
            raise QuiesceError("no")
        return real(beginning, info, *rest)

    monkeypatch.setattr(Beginning, "_begin", failing)
    results = begun(host, stage)
    assert [isinstance(result, LiveJob) for result in results] == [True, False, True]
    assert stage.runner.checkpoints() == []
    assert stage.agent.commands[-2:] == [FROZEN, THAWED]


def test_a_freeze_that_hangs_holds_the_others_up_for_its_limit_only(host: Host, stage: Stage) -> None:
    """It is given up and paused instead: at one instant all the same."""
    stage.agent.slow = {FROZEN: 2.5}
    jobs = begun(host, stage, seconds=1)
    good = [job for job in jobs if isinstance(job, LiveJob)]
    assert all(job.stood_still for job in good)
    assert "it was paused" in (good[0].quiesce_note or "")
    assert max(job.freeze_seconds or 0 for job in good) < 10
    deadline = time.monotonic() + 30
    while stage.agent.commands[-1:] != [THAWED] or stage.agent.frozen:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_is_off(host: Host, stage: Stage, make_domain: Callable[..., Workhorse]) -> None:
    """It stands still by itself; nobody waits for it while the others do."""
    off = make_domain(Disk(size=MiB), start=False)
    wanted: Any = {"repository_id": REPOSITORY, "parent": None}
    names = [stage.agent_horse.name, off.name]
    prepared = [host.prepare(host.domain(name), session=new_session(), **wanted) for name in names]
    jobs = host.begin_together(prepared)
    good = [job for job in jobs if not isinstance(job, Exception)]
    for job in good:
        job.finish(committed=False)
    assert len(good) == 2, jobs
    assert good[0].time == good[1].time
    assert all(job.stood_still for job in good)
    assert off.checkpoints() == []


_VICTIM = """
import os, secrets, sys, time
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.beginning import Beginning
scratch, state, *names = sys.argv[1:]
def stay(*_):
    os.write(1, b"begins\\n")  # whole, whoever else writes
    time.sleep(600)
Beginning._begin = stay
with Host.open("qemu:///system", scratch_dir=scratch, state_dir=state) as host:
    wanted = {"repository_id": "0123abcd", "parent": None}
    session = lambda: f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
    host.begin_together([host.prepare(host.domain(name), session=session(), **wanted) for name in names])
"""


@pytest.mark.parametrize("watchdogs", [True, False])
def test_killed_in_the_middle(host: Host, stage: Stage, scratch_dir: Path, *, watchdogs: bool) -> None:
    """kill -9 while all stand still: the watchdogs let them go on at once; without them the next run does."""
    command = [sys.executable, "-P", "-c", _VICTIM, str(scratch_dir), host.places.state_dir, *stage.names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim, ExitStack() as stack:
        stack.callback(victim.kill)
        assert victim.stdout
        assert [victim.stdout.readline() for _ in stage.names] == ["begins\n"] * 3
        assert stage.states() == STILL
        if not watchdogs:
            tasks = Path(f"/proc/{victim.pid}/task").glob("*/children")
            for child in " ".join(task.read_text() for task in tasks).split():
                os.kill(int(child), signal.SIGKILL)
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.monotonic()
    while watchdogs and stage.states() != GOING:
        assert time.monotonic() - killed < 20
        time.sleep(0.01)
    print(f"{time.monotonic() - killed:.3f} s after the kill")
    assert watchdogs or stage.states() == STILL
    for name in stage.names:
        host.recover(host.domain(name), lambda _name: False)
    assert stage.states() == GOING


GROUP = """
[jobs.crm]
domains = ["{prefix}*"]
consistency_group = true
"""


def test_a_job_of_the_command_line(stage: Stage, lab: Lab, work_dir: Path, scratch_dir: Path) -> None:
    """Their points are tied; one that is busy is told, the others say so, and the exit code is 3."""
    program = Program.make(work_dir, scratch_dir)
    config = work_dir / "config.toml"
    config.write_text(config.read_text() + GROUP.format(prefix=lab.prefix))
    made = program.json("backup", "--job", "crm", *stage.names)
    assert made["failed"] == []
    assert len({point["group"]["id"] for point in made["points"]}) == 1
    assert all(point["group"]["complete"] and point["group"]["instant"] for point in made["points"])
    assert len({point["time"] for point in made["points"]}) == 1
    lock = work_dir / "state/locks" / f"{stage.runner.uuid}.lock"
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        made = program.json("backup", "--job", "crm", *stage.names, code=3)
    assert [(failed["domain"], failed["kind"]) for failed in made["failed"]] == [(stage.runner.name, "job_conflict")]
    assert {disk["mode"] for point in made["points"] for disk in point["disks"]} == {"incremental"}
    listed = program.json("list")["points"]
    assert [point["group"]["complete"] for point in listed] == [False, False, True, True, True]
    assert [point["status"] for point in listed] == ["warning"] * 2 + ["success"] * 3
    shown = program.run("show", listed[0]["id"]).stdout
    assert f"not in group  {stage.runner.name}: it failed: another run works on domain" in shown
    table = program.run("list").stdout.splitlines()
    assert table[0].split()[-1] == "GROUP"
    assert [line.split("  ")[-1].strip()[8:] for line in table[1:]] == [" (2 of 3)"] * 2 + [""] * 3
