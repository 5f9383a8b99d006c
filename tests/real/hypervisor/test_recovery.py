"""A run that is killed at any instant leaves what the next run puts right by itself."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.conftest import OTHER_REPOSITORY, REPOSITORY, Shadow, new_session
from tests.real.hypervisor.victim import read_point
from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor import Anchor, CheckpointName, Host
from vmbackup.hypervisor.source import DiskInfo
from vmbackup.hypervisor.tidy import cleanup

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]


@dataclass
class Victim:
    """Starts runs in a process, and kills them."""

    host: Host
    horse: Workhorse
    folder: Path

    def start(self, stop: str) -> subprocess.Popen[str]:
        """A process that runs until `stop`."""
        script = Path(__file__).with_name("victim.py")
        places = self.host.places
        return subprocess.Popen(
            [sys.executable, "-P", str(script), str(self.folder), places.scratch_dir, places.state_dir,
             self.horse.name, stop],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9."""
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def kill_at(self, where: str) -> None:
        """Kills a run that has come to that place."""
        process = self.start(where)
        assert process.stdout
        while (line := process.stdout.readline().strip()) != where:
            assert line, "the victim died by itself"
        self.kill(process)

    @property
    def anchor(self) -> Anchor | None:
        """What the last committed run left in its repository."""
        return read_point(self.folder / "point.json")[0]

    @property
    def earlier(self) -> dict[str, DiskInfo]:
        """The disks of the last committed run."""
        return read_point(self.folder / "point.json")[1]

    def committed(self, name: CheckpointName) -> bool:
        """The repository's word."""
        return self.anchor is not None and str(name) == self.anchor.checkpoint

    def leftovers(self) -> list[str]:
        """Traces of a run on the host."""
        domain = self.horse.domain
        found = [f"job {domain.jobInfo()}"] if domain.isActive() and domain.jobInfo()[0] else []
        found += [path.name for path in Path(self.host.places.scratch_dir).iterdir()]
        found += [
            str(path)
            for path in Path("/var/lib/libvirt/qemu").glob(f"domain-*-{self.horse.name}*/*.sock")
            if path.name.startswith("vmbackup-")
        ]
        wanted = [self.anchor.checkpoint] if self.anchor else []
        found += [name for name in self.horse.checkpoints() if name not in wanted]
        return found + [f"intent {intent.session}" for intent in self.host.intents()]


@pytest.fixture
def victim(host: Host, make_domain: MakeDomain, work_dir: Path, short_seal: None) -> Victim:
    """A domain for runs to die on."""
    return Victim(host, make_domain(Disk(size=4 * MiB), Disk("vdb", size=MiB)), work_dir)


@pytest.mark.parametrize("where", ["begun", "read", "sealed"])
def test_a_run_killed_before_its_commit_leaves_nothing(victim: Victim, where: str) -> None:
    """recover ends the job, deletes the checkpoint and the files; the parent still works."""
    victim.kill_at("committed")
    victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    parent = victim.anchor
    assert parent
    assert victim.leftovers() == []
    victim.horse.write("vda", 0, 65536, 0x31)
    victim.kill_at(where)
    assert victim.leftovers(), "nothing was left: this tests nothing"
    (left,) = victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    assert (left.committed, left.trouble) == (False, ())
    assert victim.anchor == parent
    assert victim.leftovers() == []
    shadow = Shadow(victim.host, victim.horse)
    with shadow.begin(parent=parent, earlier=victim.earlier, committed=victim.committed) as running:
        assert {disk.info.target: disk.mode for disk in running.disks} == {"vda": "incremental", "vdb": "incremental"}


def test_a_run_killed_after_its_commit_is_valid(victim: Victim) -> None:
    """recover keeps its checkpoint and deletes the one it supersedes."""
    victim.kill_at("committed")
    victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    first = victim.anchor
    victim.kill_at("committed")
    assert victim.anchor != first
    assert len(victim.horse.checkpoints()) == 2
    (left,) = victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    assert left.committed is True
    assert victim.anchor
    assert victim.horse.checkpoints() == [victim.anchor.checkpoint]
    assert victim.leftovers() == []


def test_the_next_run_recovers_by_itself(victim: Victim) -> None:
    """begin puts a dead run right before anything else, and tells so; also with a caller that judges nothing."""
    victim.kill_at("committed")
    parent = victim.anchor
    victim.kill_at("read")
    with Shadow(victim.host, victim.horse).begin(parent=parent, earlier=victim.earlier, committed=None) as running:
        assert [left.committed for left in running.recovered] == [False]
        assert {disk.mode for disk in running.disks} == {"incremental"}
    assert victim.leftovers() == []


@pytest.mark.parametrize("moments", [8, pytest.param(60, marks=[pytest.mark.torture, pytest.mark.timeout(900)])])
def test_any_moment(victim: Victim, moments: int) -> None:
    """Killed at random moments, and put right each time: at most one committed checkpoint is there."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    domain = victim.host.domain(victim.horse.name)
    for _ in range(moments):
        process = victim.start("never")
        time.sleep(chance.uniform(0.15, 2.4))
        victim.kill(process)
        for left in victim.host.recover(domain, victim.committed):
            assert left.trouble == ()
        assert victim.leftovers() == []
        assert victim.horse.checkpoints() == ([victim.anchor.checkpoint] if victim.anchor else [])


def test_a_dead_run_of_a_domain_that_was_killed_too(victim: Victim) -> None:
    """Run and QEMU die, the domain is off: metadata and bitmaps of the new checkpoint go from disk."""
    victim.kill_at("committed")
    parent = victim.anchor
    assert parent
    victim.kill_at("read")
    victim.horse.kill()
    (left,) = victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    assert left.trouble == ()
    assert victim.leftovers() == []
    victim.horse.start()
    assert victim.horse.checkpoints() == [parent.checkpoint]


def test_a_dead_run_of_a_domain_that_was_stopped(victim: Victim) -> None:
    """The domain was shut down in good order: the parent's bitmap is still good."""
    victim.kill_at("committed")
    parent = victim.anchor
    victim.kill_at("read")
    victim.horse.stop()
    (left,) = victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    assert left.trouble == ()
    victim.horse.start()
    shadow = Shadow(victim.host, victim.horse)
    with shadow.begin(parent=parent, earlier=victim.earlier, committed=victim.committed) as running:
        assert {disk.mode for disk in running.disks} == {"incremental"}
    assert victim.leftovers() == []


def test_a_dead_run_of_a_domain_that_is_gone(victim: Victim) -> None:
    """The domain was undefined: files and intent go, by the intent."""
    victim.kill_at("begun")
    victim.horse.domain.destroy()
    victim.horse.domain.undefineFlags(16)
    (intent,) = victim.host.intents()
    (left,) = victim.host.recover(intent, victim.committed)
    assert left.trouble == ()
    assert victim.host.intents() == []
    assert list(Path(victim.host.places.scratch_dir).iterdir()) == []


def test_a_dead_run_of_another_repository_waits_for_its_word(victim: Victim) -> None:
    """Its job is ended at once, its checkpoint is left until somebody knows whether it was committed."""
    victim.kill_at("read")
    (dead,) = victim.horse.checkpoints()
    other = Shadow(victim.host, victim.horse, OTHER_REPOSITORY)
    other.run()
    assert other.anchor
    assert set(victim.horse.checkpoints()) == {dead, other.anchor.checkpoint}
    (left,) = victim.host.recover(victim.host.domain(victim.horse.name), victim.committed)
    assert left.committed is False
    assert victim.horse.checkpoints() == [other.anchor.checkpoint]


def test_a_living_run_is_not_put_right(victim: Victim) -> None:
    """While its process lives nothing of it is touched, and a second run is refused with its number."""
    process = victim.start("begun")
    assert process.stdout
    assert process.stdout.readline().strip() == "begun"
    domain = victim.host.domain(victim.horse.name)
    for refused in (
        lambda: victim.host.recover(domain, victim.committed),
        lambda: victim.host.purge(domain),
        lambda: victim.host.begin(domain, repository_id=REPOSITORY, session=new_session(), parent=None),
    ):
        with pytest.raises(JobConflictError, match=f"process {process.pid}"):
            refused()
    assert victim.horse.domain.jobInfo()[0] != 0
    victim.kill(process)
    victim.host.recover(domain, victim.committed)


def test_a_dead_run_whose_job_does_not_end_is_told(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt does not get to the end of its job: the next run fails, says so, and leaves all to the one after it."""

    def endless(_domain: object, _socket: str) -> bool:
        raise HypervisorError("the backup job was aborted and does not end")

    victim.kill_at("begun")
    domain = victim.host.domain(victim.horse.name)
    with monkeypatch.context() as patch:
        patch.setattr(cleanup, "abort_job", endless)
        with pytest.raises(JobConflictError, match="a backup job") as caught:
            victim.host.begin(domain, repository_id=REPOSITORY, session=new_session(), parent=None)
    assert "aborted and does not end" in caught.value.hint
    (left,) = victim.host.recover(domain, victim.committed)
    assert left.trouble == ()
    assert victim.leftovers() == []


def test_purge_ends_a_dead_run(victim: Victim) -> None:
    """purge takes the job, the checkpoints and the files of a dead run off the domain."""
    victim.kill_at("committed")
    victim.kill_at("read")
    report = victim.host.purge(victim.host.domain(victim.horse.name))
    assert report.trouble == ()
    assert victim.horse.checkpoints() == []
    (victim.folder / "point.json").unlink()
    assert victim.leftovers() == []
