"""The seal: no point in time is ever accepted whose job did not live until its last byte was read."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.engine.meddler import BusyGuest
from tests.real.hypervisor.conftest import Shadow, read_disk
from vmbackup.errors import HypervisorError, PointInTimeLostError
from vmbackup.hypervisor import Host

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]
K64 = 65536


@pytest.fixture
def shadow(host: Host, make_domain: MakeDomain) -> Shadow:
    """A domain with one committed point."""
    horse = make_domain(Disk(size=8 * MiB))
    horse.write("vda", 0, 8 * MiB, 0x11)
    made = Shadow(host, horse)
    made.run()
    return made


def assert_as_before(shadow: Shadow) -> None:
    """Only the parent's checkpoint is there, no job runs, and the next run is incremental and right."""
    assert shadow.anchor
    assert shadow.horse.checkpoints() == [shadow.anchor.checkpoint]
    assert shadow.horse.domain.jobInfo()[0] == 0
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


def test_the_seal_tells_its_time(shadow: Shadow) -> None:
    """The wait is part of seal_seconds; a second seal does nothing."""
    with shadow.begin() as running:
        shadow.read(running)
        assert running.seal_seconds == 0
        running.seal()
        assert running.seal_seconds > 1.0
        running.seal()


def test_disks_of_odd_sizes_are_sealed(make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """QEMU's count of the bytes under backup falls when the last piece of an odd disk is overwritten."""
    horse = make_domain(Disk(size=MiB + 1536), Disk("vdb", size=MiB + 512))
    shadow = Shadow(host, horse)
    with shadow.begin() as running:
        for target in ("vda", "vdb"):
            horse.write(target, MiB, 512, 0x42)
        images = shadow.read(running)
        running.seal()
        shadow.commit(running, images)


def test_a_job_that_was_told_to_end_is_noticed(shadow: Shadow, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt's count lacks a disk: no proof, whatever else it answers."""
    with shadow.begin() as running:
        shadow.read(running)
        monkeypatch.setattr("vmbackup.hypervisor.tidy.cleanup.running_bytes", lambda _domain: 8 * MiB - 1)
        with pytest.raises(PointInTimeLostError, match="told to end"):
            running.seal()


def test_reads_under_way_refuse_the_seal(shadow: Shadow) -> None:
    """While a read is outstanding there is no last byte."""
    with shadow.begin() as running:
        reader = running.disks[0].open_reader()
        reader.submit(0, memoryview(bytearray(K64)))
        with pytest.raises(HypervisorError, match="outstanding"):
            running.seal()
        reader.wait()
        running.seal()
        with pytest.raises(HypervisorError, match="over"):
            running.disks[0].open_reader()


def test_an_unsealed_job_is_not_committed(shadow: Shadow) -> None:
    """finish(committed=True) without a seal is a programming error."""
    with shadow.begin() as running:
        shadow.read(running)
        with pytest.raises(ValueError, match="sealed"):
            running.finish(committed=True)
    assert_as_before(shadow)


@pytest.fixture
def busy_shadow(host: Host, lab: Lab) -> Iterator[Shadow]:
    """A running guest with one committed point.

    It writes by its own device: a write by the monitor beside an abort can lock QEMU up, and libvirt's only thread for
    events with it, which ends the jobs of all domains.
    """
    guest = BusyGuest(lab)
    made = Shadow(host, guest)  # type: ignore[arg-type]
    made.run()
    yield made
    guest.remove()


@pytest.mark.timeout(300)
def test_an_abort_at_any_moment_is_noticed(busy_shadow: Shadow, lab: Lab, work_dir: Path) -> None:
    """Aborted from outside some time after the reads began, with the guest writing from then on: no seal."""
    shadow, guest = busy_shadow, busy_shadow.horse
    assert isinstance(guest, BusyGuest)
    domain = lab.connection.lookupByName(guest.name)
    mebibytes = range(2, 10)

    def disturb(delay: float) -> None:
        time.sleep(delay)
        domain.abortJob()
        for mebibyte in mebibytes:
            guest.ask(mebibyte)

    for delay in (0.0, 0.005, 0.02, 0.05, 0.1, 0.3, 0.7, 0.95):
        for mebibyte in mebibytes:
            guest.fill(mebibyte, 0x22)
        with shadow.begin() as running:
            other = threading.Thread(target=disturb, args=(delay,))
            other.start()
            try:
                with pytest.raises(HypervisorError) as caught:
                    for _ in range(20):
                        image, _ = read_disk(running.disks[0], bytearray(guest.size))
                        running.check()
                        if delay < 0.1 or image.count(0x22) != len(mebibytes) * MiB:
                            break
                    running.seal()
            finally:
                other.join()
            assert isinstance(caught.value, PointInTimeLostError), delay
        guest.settle()
        assert_as_before(shadow)
        restored = work_dir / "vda.raw"
        restored.write_bytes(shadow.images["vda"])
        assert same_content(guest.path, restored) is None


def test_no_proof_that_began_after_a_live_read_passes(shadow: Shadow, lab: Lab) -> None:
    """After an abort reads give the guest's live bytes for a while: from the first one on every proof fails.

    What the seal stands on. `live` is the moment at which a block written after the begin was read with its new
    content; a proof that was asked for after that must not pass.
    """
    horse = shadow.horse
    domain = lab.connection.lookupByName(horse.name)
    seen = 0
    for fill in range(0xA0, 0xA8):
        with shadow.begin(full=True) as running:
            reader, buffer, live = running.disks[0].open_reader(), bytearray(4096), [0.0]

            def read(fill: int = fill, reader: Any = reader, buffer: bytearray = buffer, live: Any = live) -> None:
                with contextlib.suppress(HypervisorError):
                    for block in range(128):
                        horse.write("vda", block * K64, 4096, fill)
                        reader.submit(block * K64, memoryview(buffer))
                        reader.wait()
                        if buffer[0] == fill and not live[0]:
                            live[0] = time.monotonic()

            other = threading.Thread(target=read)
            other.start()
            time.sleep(0.02)
            threading.Timer(0.02, domain.abortJob).start()
            last = 0.0
            with contextlib.suppress(PointInTimeLostError):
                while True:
                    asked = time.monotonic()
                    running.prove()
                    last = asked
            other.join()
            reader.close()
            seen += bool(live[0])
            assert not live[0] or last < live[0]
    print(f"live bytes were read in {seen} of 8 rounds")


def test_an_abort_between_the_two_proofs_is_noticed(
    shadow: Shadow, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort while the seal waits breaks it: the job may have been dying when the last byte was read."""
    domain = lab.connection.lookupByName(shadow.horse.name)
    with shadow.begin() as running:
        shadow.read(running)
        proofs = []

        def prove(proved: Callable[[], None] = running.prove) -> None:
            proved()
            proofs.append(True)
            domain.abortJob()

        monkeypatch.setattr(running, "prove", prove)
        with pytest.raises(PointInTimeLostError):
            running.seal()
        assert len(proofs) == 1
    assert_as_before(shadow)


def test_the_proof_needs_no_event(shadow: Shadow, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every event lost the state alone breaks the seal."""
    with shadow.begin() as running:
        monkeypatch.setattr(running._watch, "raise_if_lost", lambda: None)
        shadow.read(running)
        lab.connection.lookupByName(shadow.horse.name).abortJob()
        time.sleep(0.3)
        with pytest.raises(PointInTimeLostError, match="cannot be proved: the backup job is gone"):
            running.seal()
    assert_as_before(shadow)


def test_another_job_in_its_place_is_noticed(shadow: Shadow, lab: Lab, host: Host) -> None:
    """A backup job that somebody else has begun meanwhile does not pass for ours, and is left alone."""
    horse = shadow.horse
    domain = lab.connection.lookupByName(horse.name)
    with shadow.begin() as running:
        shadow.read(running)
        theirs = str(Path(running._intent.socket).with_name("theirs.sock"))
        domain.abortJob()
        deadline = time.monotonic() + 60
        while domain.jobInfo()[0] and time.monotonic() < deadline:
            time.sleep(0.02)
        scratch = horse.folder / "theirs.qcow2"
        domain.backupBegin(
            f"<domainbackup mode='pull'><server transport='unix' socket='{theirs}'/><disks>"
            f"<disk name='vda' type='file'><scratch file='{scratch}'/></disk></disks></domainbackup>",
            None,
        )
        with pytest.raises(PointInTimeLostError):
            running.seal()
    assert domain.jobInfo()[0] != 0, "somebody else's job was aborted"
    domain.abortJob()
    while domain.jobInfo()[0]:
        time.sleep(0.02)
    assert_as_before(shadow)


def test_a_stopped_domain_is_noticed(shadow: Shadow) -> None:
    """The domain ends in good order: the run fails, its checkpoint goes, the parent stays sound."""
    horse = shadow.horse
    with shadow.begin() as running:
        shadow.read(running)
        horse.stop()
        with pytest.raises(PointInTimeLostError):
            running.seal()
    horse.start()
    assert_as_before(shadow)


def test_a_restarted_domain_is_noticed(shadow: Shadow) -> None:
    """The domain's id changes: whatever runs now is not what was read."""
    horse = shadow.horse
    with shadow.begin() as running:
        shadow.read(running)
        horse.stop()
        horse.start()
        with pytest.raises(PointInTimeLostError):
            running.seal()
    assert_as_before(shadow)


def test_a_killed_qemu_is_noticed(shadow: Shadow) -> None:
    """kill -9 of QEMU in the middle of a read: an error that names the cause; a whole read the next time."""
    horse = shadow.horse
    with shadow.begin() as running:
        reader = running.disks[0].open_reader()
        horse.kill()
        with pytest.raises(HypervisorError):
            for offset in range(0, 8 * MiB, K64):
                reader.submit(offset, memoryview(bytearray(K64)))
                reader.wait()
        with pytest.raises(PointInTimeLostError):
            running.seal()
        reader.close()
    assert shadow.anchor
    assert horse.checkpoints() == [shadow.anchor.checkpoint]
    horse.start()
    shadow.run()
    assert shadow.modes == {"vda": "reread"}


def test_check_raises_soon_after_an_abort(shadow: Shadow, lab: Lab) -> None:
    """The engine need not read to the end: check tells of the loss."""
    with shadow.begin() as running:
        running.check()
        lab.connection.lookupByName(shadow.horse.name).abortJob()
        deadline = time.monotonic() + 60
        with pytest.raises(PointInTimeLostError, match="ended while it was read"):
            while time.monotonic() < deadline:
                running.check()
                time.sleep(0.02)
    assert_as_before(shadow)
