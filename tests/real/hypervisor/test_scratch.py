"""Scratch space that runs short ends the run, never the guest."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.bootsector import BootSectorGuest, tiny_file_system
from tests.real.hypervisor.conftest import Shadow, new_session, open_host
from vmbackup.errors import HypervisorError, ScratchFullError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live import scratch
from vmbackup.hypervisor.live.job import LiveJob

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]
_RUNNING = 1
_PAUSED_BY_IO_ERROR = (3, 5)


@pytest.fixture
def tiny_scratch(lab: Lab, scratch_dir: Path) -> Iterator[None]:
    """12 MiB of scratch space; the disks of these tests want 8."""
    with tiny_file_system(scratch_dir, "12m"), lab.sees(scratch_dir):
        yield


@pytest.fixture
def guest(lab: Lab, tiny_scratch: None) -> Iterator[BootSectorGuest]:
    """A running guest that writes at command. Started after the mount, which its QEMU would not see else."""
    made = BootSectorGuest(lab)
    yield made
    made.remove()


def begin(host: Host, name: str) -> LiveJob:
    """A full run."""
    return host.begin(host.domain(name), repository_id="0123abcd", session=new_session(), parent=None)


def wait_for_loss(running: LiveJob, seconds: float = 60.0) -> None:
    """Calls check until it raises."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        running.check()
        time.sleep(0.05)


def test_a_busy_guest_ends_the_run_before_scratch_is_full(guest: BootSectorGuest, host: Host) -> None:
    """The job is aborted with space left, by the block threshold's event: the guest never stops."""
    events = host.connection.events.subscribe(guest.domain.UUIDString())
    with begin(host, guest.name) as running:
        written = 0
        for mebibyte in range(2, 14):
            guest.write(mebibyte)
            assert guest.answer(20) == "k"
            assert guest.state[0] == _RUNNING
            written += 1
            try:
                running._watch.raise_if_lost()  # no look at the file system: the event alone must do
            except ScratchFullError:
                break
        else:
            pytest.fail("12 MiB were copied and nobody noticed")
        assert written >= 8, "given up long before the space was used"
        with pytest.raises(ScratchFullError, match="scratch space ran short"):
            wait_for_loss(running)
        with pytest.raises(ScratchFullError):
            running.seal()
    events.put(None)
    assert "io_error" not in {event.kind for event in iter(events.get, None)}, "the guest had been stopped"
    assert guest.domain.jobInfo()[0] == 0
    assert guest.domain.listAllCheckpoints(0) == []
    guest.write(20)
    assert guest.answer(20) == "k"


def test_a_guest_that_full_scratch_has_paused_goes_on(
    guest: BootSectorGuest, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every warning missed QEMU pauses the guest: it is resumed at once, and sees no error."""
    monkeypatch.setattr(scratch.ScratchWatch, "look", lambda _self: None)
    monkeypatch.setattr(scratch.ScratchWatch, "first_threshold", lambda _self: 1 << 50)
    with begin(host, guest.name) as running:
        for mebibyte in range(2, 20):
            guest.write(mebibyte)
            assert guest.answer(30) == "k", f"the guest did not go on: {guest.state}"
        with pytest.raises(ScratchFullError):
            running.check()
    assert guest.state[0] == _RUNNING
    assert guest.domain.listAllCheckpoints(0) == []


def test_a_guest_that_a_dead_run_has_paused_goes_on(
    guest: BootSectorGuest, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that nobody watches any more fills scratch; recovery ends its job and resumes the guest."""
    running = begin(host, guest.name)
    running._watch.stop()
    running._connections.abort()
    running._lock.release()  # as a death would
    for mebibyte in range(2, 20):
        guest.write(mebibyte)
        if guest.answer(5) != "k":
            break
    assert guest.state == _PAUSED_BY_IO_ERROR
    (left,) = host.recover(host.domain(guest.name), lambda _name: False)
    assert any("resumed" in done for done in left.done)
    assert guest.answer(20) == "k"
    assert guest.state[0] == _RUNNING


def test_a_run_that_finds_too_little_space_does_not_begin(
    host: Host, make_domain: MakeDomain, scratch_dir: Path
) -> None:
    """Less than a fifth of the disks' sizes free: ScratchFullError before anything is done."""
    horse = make_domain(Disk(size=64 * MiB))
    with tiny_file_system(scratch_dir, "4m"), pytest.raises(ScratchFullError, match=r"needs 12\.8 MiB"):
        begin(host, horse.name)
    assert horse.checkpoints() == []


def test_parallel_runs_share_the_space(lab: Lab, host: Host, make_domain: MakeDomain, scratch_dir: Path) -> None:
    """What a run has reserved another cannot count on."""
    with tiny_file_system(scratch_dir, "20m"), lab.sees(scratch_dir):
        first, second = make_domain(Disk(size=64 * MiB)), make_domain(Disk(size=64 * MiB))
        with begin(host, first.name), pytest.raises(ScratchFullError, match="reserved by other runs"):
            begin(host, second.name)
        with begin(host, second.name):
            pass


def test_many_writes_of_a_paused_domain_are_noticed_by_looking(
    tiny_scratch: None, make_domain: MakeDomain, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any event check finds the space used."""
    monkeypatch.setattr(scratch.ScratchWatch, "first_threshold", lambda _self: 1 << 50)
    horse = make_domain(Disk(size=32 * MiB))
    horse.write("vda", 0, 32 * MiB, 1)
    shadow = Shadow(host, horse)
    with shadow.begin() as running:
        running.check()
        horse.write("vda", 0, 10 * MiB, 2)
        with pytest.raises(ScratchFullError):
            wait_for_loss(running)
    assert horse.checkpoints() == []


def test_a_scratch_folder_that_cannot_be_made(
    lab: Lab, make_domain: MakeDomain, host: Host, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder should be: one sentence, and nothing begun."""
    horse = make_domain(Disk(size=MiB))
    (work_dir / "file").write_text("")
    bad = work_dir / "file" / "scratch"
    with (
        open_host(lab, bad, work_dir / "state") as other,
        pytest.raises(HypervisorError, match=r"scratch folder .* cannot be made"),
    ):
        begin(other, horse.name)
    assert horse.domain.jobInfo()[0] == 0


def test_a_scratch_folder_that_qemu_cannot_pass(lab: Lab, make_domain: MakeDomain, host: Host, work_dir: Path) -> None:
    """0700 and root's: the begin fails with the cure, and leaves nothing."""
    horse = make_domain(Disk(size=MiB))
    closed = work_dir / "closed"
    closed.mkdir(mode=0o700)
    with open_host(lab, closed, work_dir / "state") as other:
        with pytest.raises(HypervisorError) as caught:
            begin(other, horse.name)
        assert "0711" in caught.value.hint
        (check,) = (check for check in other.checks([]) if check.name == "scratch-folder")
        assert (check.status, check.fix) == ("fail", f"chmod o+x {closed}")
        assert other.intents() == []
    assert horse.checkpoints() == []
    assert list(closed.iterdir()) == []


@pytest.mark.parametrize("committed", [True, False])
def test_a_scratch_file_that_cannot_be_removed(
    make_domain: MakeDomain, host: Host, scratch_dir: Path, short_seal: None, committed: bool
) -> None:
    """Its file system became read-only, say: the run ends as it would, and later ones try again until it is gone."""
    horse = make_domain(Disk(size=MiB))
    shadow = Shadow(host, horse)
    with shadow.begin() as running:
        (file,) = scratch_dir.iterdir()
        file.unlink()
        file.mkdir()
        (file / "x").touch()  # neither libvirt nor we can remove that
        if committed:
            images = shadow.read(running)
            running.seal()
            shadow.commit(running, images)
    assert f"could not remove {file}" in " ".join(running.notes)
    assert [intent.scratch_bytes for intent in host.intents()] == [0]
    shadow.run()
    assert shadow.modes == {"vda": "incremental" if committed else "full"}
    domain = host.domain(horse.name)
    (left,) = host.recover(domain, lambda _name: committed)
    assert str(file) in " ".join(left.trouble)
    shutil.rmtree(file)
    (left,) = host.recover(domain, lambda _name: committed)
    assert left.trouble == ()
    assert host.recover(domain, lambda _name: committed) == []
    assert len(horse.checkpoints()) == 1


def test_scratch_that_fails(lab: Lab, host: Host, scratch_dir: Path) -> None:
    """QEMU gives the guest its error: the job is ended at the first, so that the guest sees no more of them."""
    guest = BootSectorGuest(lab)
    try:
        with begin(host, guest.name) as running:
            (file,) = scratch_dir.iterdir()
            if subprocess.run(["chattr", "+i", str(file)], check=False, capture_output=True).returncode:
                pytest.skip("a file that refuses writes is needed: put $VMBACKUP_LAB_DIR on ext4, xfs or btrfs")
            try:
                guest.write(30)
                assert guest.answer(20) == "e"
                with pytest.raises(HypervisorError, match="failed during the run, and the guest was given I/O errors"):
                    wait_for_loss(running)
            finally:
                subprocess.run(["chattr", "-i", str(file)], check=False, capture_output=True)
        guest.write(31)
        assert guest.answer(20) == "k"
        assert guest.domain.jobInfo()[0] == 0
        assert guest.domain.listAllCheckpoints(0) == []
        host.recover(host.domain(guest.name), lambda _name: False)  # where libvirt or we came before the second chattr
    finally:
        guest.remove()
