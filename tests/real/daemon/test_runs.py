"""The dispatcher with real runs of vmbackup, real domains and a real repository."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.program import Program
from tests.unit.daemon.machine import lives, nothing_left
from tests.unit.daemon.rig import Notes, backup, copy, prune, verify
from vmbackup.config.load import parse
from vmbackup.daemon.commands import commands
from vmbackup.daemon.dispatcher import Dispatcher
from vmbackup.daemon.process import ProcessRunner
from vmbackup.daemon.queue import Limits, Queue
from vmbackup.daemon.work import Request, Run, Status

pytestmark = pytest.mark.real
JOBS = """
[repositories.offsite]
url = "file://{folder}/offsite"
passphrase_file = "{folder}/passphrase"
[jobs.nightly]
domains = ["*"]
copy_to = ["offsite"]
keep = {{ last = 1 }}
[jobs.slow]
domains = ["*"]
bandwidth_limit = "1MiB/s"
"""


class Service:
    """A dispatcher with its loop."""

    def __init__(self, text: str) -> None:
        config = parse(text, "test")
        runner = ProcessRunner(lambda request: commands(config, request), text.encode)
        self.notes = Notes()
        self.dispatcher = Dispatcher(Queue(Limits(2)), runner, self.notes)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _loop(self) -> None:
        while not self._done.is_set():
            self.dispatcher.wake.clear()
            then = self.dispatcher.tick()
            self.dispatcher.wake.wait(1.0 if then is None else max(0.0, min(1.0, then - time.time())))

    def until(self, what: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, [*self.notes.ended_, *self.dispatcher.runs()]
            time.sleep(0.02)

    def run(self, one: Request) -> Run:
        """The run of a request, ended."""
        assert self.dispatcher.submit(one) is None
        self.until(lambda: one.id in [run.id for run in self.notes.ended_])
        return next(run for run in self.notes.ended_ if run.id == one.id)

    def close(self) -> bool:
        softly = self.dispatcher.stop(55)
        self._done.set()
        self._thread.join()
        return softly


@pytest.fixture
def program(work_dir: Path, scratch_dir: Path) -> Program:
    made = Program.make(work_dir, scratch_dir)
    with (work_dir / "config.toml").open("a") as file:
        file.write(JOBS.format(folder=work_dir))
    made.json("--repository", "offsite", "init", "--replica-of", "local")
    return made


@pytest.fixture
def service(program: Program) -> Iterator[Service]:
    with nothing_left():
        made = Service((program.folder / "config.toml").read_text())
        yield made
        made.close()


def slow_horse(make_domain: Callable[..., Workhorse]) -> Workhorse:
    """Its backup by the job `slow` takes a minute."""
    horse = make_domain(Disk(size=64 * MiB))
    horse.write_data("vda", 0, random.Random(4).randbytes(64 * MiB))
    return horse


def busy(horse: Workhorse) -> bool:
    """Whether a job is on the domain; one that is just being made cannot be looked at."""
    import libvirt

    try:
        return bool(horse.domain.jobInfo()[0])
    except libvirt.libvirtError:
        return False


def test_all_kinds_of_work(make_domain: Callable[..., Workhorse], service: Service, program: Program) -> None:
    """A backup, its copy, prune and verify of both repositories: all as the commands say."""
    horse = make_domain(Disk(size=8 * MiB))
    horse.write_data("vda", 0, random.Random(4).randbytes(8 * MiB))
    os.truncate(program.folder / "config.toml", 0)  # the file on disk does not matter any more
    first, second = (service.run(backup(horse.name)) for _ in range(2))
    for run in (first, second):
        assert run.outcome
        assert run.outcome.status is Status.SUCCESS, run.outcome
        assert run.outcome.document["points"][0]["domain"] == horse.name
        assert "copies" not in run.outcome.document
    assert first.progress.done_bytes > 0
    for work in (copy(horse.name), prune("local"), verify("local"), prune("offsite"), verify("offsite")):
        outcome = service.run(work).outcome
        assert outcome
        assert outcome.status is Status.SUCCESS, outcome
    failed = service.run(backup("no-such-domain")).outcome
    assert failed
    assert (failed.status, failed.exit_code, failed.kind) == (Status.FAILED, 5, "not_found")


def test_cancel_and_stop(make_domain: Callable[..., Workhorse], service: Service) -> None:
    """A run in the middle of its reading ends at once, and leaves no job on the domain."""
    horse = slow_horse(make_domain)
    for end in (lambda id_: service.dispatcher.cancel(id_, "cancelled by root"), lambda _: service.close()):
        one = backup(horse.name, job="slow")
        service.dispatcher.submit(one)
        service.until(lambda: busy(horse))
        began = time.monotonic()
        assert end(one.id)
        service.until(lambda id_=one.id: id_ in [run.id for run in service.notes.ended_])  # type: ignore[misc]
        assert time.monotonic() - began < 45
        outcome = service.notes.ended_[-1].outcome
        assert outcome
        assert (outcome.status, outcome.exit_code) == (Status.CANCELLED, 130), outcome
        assert not busy(horse)


HOST = """
import sys, time
from pathlib import Path
from tests.real.daemon.test_runs import Service
from tests.unit.daemon.rig import backup
service = Service(Path(sys.argv[1]).read_text())
service.dispatcher.submit(backup(sys.argv[2], job="slow"))
service.until(lambda: [run for run in service.dispatcher.runs() if run.pid])
print(service.dispatcher.runs()[0].pid, flush=True)
time.sleep(3600)
"""


def test_a_service_that_is_killed(make_domain: Callable[..., Workhorse], program: Program) -> None:
    """The kernel tells its run, which puts things right as after Ctrl-C."""
    horse = slow_horse(make_domain)
    root = Path(__file__).parents[3]
    loader = f"import sys; sys.path.insert(0, {str(root)!r}); import conftest\n"
    command = [sys.executable, "-c", loader + HOST, str(program.folder / "config.toml"), horse.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as host:
        try:
            assert host.stdout
            pid = int(host.stdout.readline())
            end = time.monotonic() + 60
            while not busy(horse):
                assert time.monotonic() < end
                time.sleep(0.05)
        finally:
            host.kill()
    end = time.monotonic() + 60
    while (busy(horse) or lives(pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not busy(horse)
    assert not lives(pid)
