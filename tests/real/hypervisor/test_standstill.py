"""What is done while a guest stands still: each call of libvirt, process and sync. A new one is seen here.

Not how long it takes, which another machine's load decides.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.fake_agent import AgentHorse, agent_horse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import REPOSITORY, new_session
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.source import FreezeOptions

pytestmark = pytest.mark.real
# What the binding answers without asking libvirt.
LOCAL = {"ID", "UUID", "UUIDString", "c_pointer", "connect", "isAlive", "name"}
STILL = {"fsFreeze": "frozen", "suspend": "paused"}
GOING = {"fsThaw": "frozen", "resume": "paused"}


class Calls:
    """What this process asks of libvirt while any domain stands still, by domain; and what else takes its time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.of: dict[str, list[str]] = {}
        self._still: set[tuple[str, str]] = set()
        self._guard = threading.Lock()
        for kind in (libvirt.virConnect, libvirt.virDomain, libvirt.virDomainCheckpoint):
            for name, function in vars(kind).items():
                if callable(function) and not name.startswith("_") and name not in LOCAL:
                    patch.setattr(kind, name, self._recorded(name, function))
        for module, name in ((libvirt_qemu, "qemuMonitorCommand"), (libvirt_qemu, "qemuAgentCommand"),
                             (os, "fsync"), (os, "fdatasync"), (subprocess, "Popen")):  # fmt: skip
            patch.setattr(module, name, self._recorded(name, getattr(module, name)))

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            of = arguments[0].name() if arguments and isinstance(arguments[0], libvirt.virDomain) else "else"
            with self._guard:
                if name in STILL:
                    self._still.add((of, STILL[name]))
                if self._still:
                    self.of.setdefault(of, []).append(name)
            try:
                return function(*arguments, **options)
            finally:
                with self._guard:
                    if name in GOING:
                        self._still.discard((of, GOING[name]))

        return call


@pytest.fixture(scope="module")
def agent(lab: Lab) -> Iterator[AgentHorse]:
    """One that can be frozen."""
    horse = agent_horse(lab, Disk(size=MiB), Disk("vdb", size=MiB))
    yield horse
    horse.remove()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def prepared(host: Host, name: str, **freezing: Any) -> Any:
    """All but what its guest stands still for."""
    wanted: Any = {"repository_id": REPOSITORY, "parent": None, "freezing": FreezeOptions(**freezing)}
    return host.prepare(host.domain(name), session=new_session(), **wanted)


def test_one_guest_is_frozen_for_its_begin_and_nothing_else(host: Host, agent: AgentHorse, calls: Calls) -> None:
    job = prepared(host, agent.name).run()
    job.finish(committed=False)
    assert calls.of == {agent.name: ["fsFreeze", "backupBegin", "fsThaw"]}


def test_a_group_stands_still_for_its_begins_and_nothing_else(
    host: Host, agent: AgentHorse, make_domain: Callable[..., Workhorse], calls: Calls
) -> None:
    """One is frozen, one has no agent and is paused, one is paused by its operator. Who paused it must be looked at."""
    runner, sleeper = make_domain(Disk(size=MiB)), make_domain(Disk(size=MiB))
    runner.domain.resume()
    jobs = host.begin_together([prepared(host, horse.name) for horse in (agent, runner, sleeper)])
    for job in jobs:
        assert not isinstance(job, Exception)
        assert job.stood_still
        job.finish(committed=False)
    assert calls.of == {
        agent.name: ["fsFreeze", "backupBegin", "fsThaw"],
        runner.name: ["state", "suspend", "backupBegin", "state", "resume"],
        sleeper.name: ["state", "backupBegin"],
    }


def test_a_guest_of_a_group_that_is_frozen_in_part_is_paused_too(host: Host, agent: AgentHorse, calls: Calls) -> None:
    (job,) = host.begin_together([prepared(host, agent.name, mounts=("/srv",))])
    assert not isinstance(job, Exception)
    job.finish(committed=False)
    expected = ["fsFreeze", "state", "suspend", "backupBegin", "state", "resume", "fsThaw"]
    assert calls.of == {agent.name: expected}
