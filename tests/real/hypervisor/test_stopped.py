"""Guests that are off: read from their images, incremental in every order of on and off, and never in anybody's way."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.block_device import NoDeviceError, logical_volume, loop_device
from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.conftest import Shadow
from vmbackup.errors import HypervisorError, JobConflictError, PointInTimeLostError, QuiesceError
from vmbackup.hypervisor.images import image_info
from vmbackup.nbd import Kind

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
MakeShadow = Callable[..., Shadow]
K64 = 65536


def write_off(horse: Workhorse, target: str, offset: int, length: int, pattern: int) -> None:
    """What a tool of QEMU does to an image while the guest is off."""
    command = ["qemu-io", "-f", horse.disks[target].format, "-c", f"write -q -P {pattern} {offset} {length}"]
    subprocess.run([*command, str(horse.path(target))], check=True, capture_output=True)


def nobody_has(horse: Workhorse) -> None:
    """The image is not locked, and no qemu-nbd is left."""
    for target in horse.disks:
        write_off(horse, target, 0, 512, 0)
    found = subprocess.run(["pgrep", "-f", f"qemu-nbd.*{horse.folder}"], check=False, capture_output=True, text=True)
    assert found.stdout == "", found.stdout


def test_on_and_off_in_each_order(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Each run reads exactly what changed since the one before, whatever either of them found the guest to be."""
    horse = make_domain(Disk(size=8 * MiB), Disk("vdb", size=4 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, 5 * K64, 7)
    shadow.run()
    for step, on in enumerate((False, True, False, False, True), start=1):
        horse.write("vda", step * K64, K64, step) if horse.running else write_off(horse, "vda", step * K64, K64, step)
        if on != horse.running:
            horse.start() if on else horse.stop()
        shadow.run()
        assert shadow.modes == {"vda": "incremental", "vdb": "incremental"}
        assert (shadow.kinds("vda")[Kind.DATA], shadow.kinds("vdb")[Kind.DATA]) == (K64, 0)
        assert shadow.anchor
        assert horse.checkpoints() == [shadow.anchor.checkpoint]
        shadow.compare(work_dir)
    assert not shadow.notes
    horse.stop()
    nobody_has(horse)
    assert list(image_info(str(horse.path("vda"))).bitmaps) == [shadow.anchor.checkpoint]


def test_a_guest_that_is_started_wins(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Its start succeeds in the midst of a read; the run ends with one sentence, and the chain goes on."""
    horse = make_domain(Disk(size=8 * MiB), Disk("vdb", size=MiB, format="raw"))
    shadow = make_shadow(horse)
    shadow.run()
    parent = shadow.anchor
    assert parent
    horse.write("vda", MiB, K64, 5)
    horse.stop()
    started = r"was started while its disks were read: it goes on$"
    with pytest.raises(PointInTimeLostError, match=started), shadow.begin() as running:
        shadow.read(running)
        horse.start()
        horse.write("vda", 2 * MiB, K64, 6)
        shadow.read(running)
    assert horse.running
    assert not running.notes
    assert horse.checkpoints() == [parent.checkpoint]
    assert [name for name in horse.bitmaps("vda") if name.startswith("vmbackup-")] == [parent.checkpoint]
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "reread"}
    assert shadow.kinds("vda")[Kind.DATA] == 2 * K64
    shadow.compare(work_dir)


def test_started_before_the_seal_and_at_the_begin(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """All is read when it is started: no seal. And a start between plan and hold ends the begin."""
    horse = make_domain(Disk(size=MiB), start=False)
    shadow = make_shadow(horse)
    with shadow.begin() as running:
        shadow.read(running)
        horse.start()
        with pytest.raises(PointInTimeLostError, match="was started"):
            running.seal()
    assert horse.checkpoints() == []
    horse.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmbackup.hypervisor.off.begin._anchor", lambda *_: (horse.start(), []))
        with pytest.raises(PointInTimeLostError, match="was started"):
            shadow.begin()
    assert horse.running


def test_a_tool_that_writes_wins_too(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """Nobody is locked out: neither is what was read from such an image committed."""
    horse = make_domain(Disk(size=4 * MiB), start=False)
    shadow = make_shadow(horse)
    with shadow.begin() as running:
        shadow.read(running)
        write_off(horse, "vda", 0, K64, 1)
        with pytest.raises(PointInTimeLostError, match=r"not left alone .*vda\.qcow2 was opened for writing"):
            running.check()
    nobody_has(horse)
    assert (horse.checkpoints(), image_info(str(horse.path("vda"))).bitmaps) == ([], {})


def test_an_image_in_use_is_refused(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A tool that has it open for writing: one sentence, nothing left behind."""
    horse = make_domain(Disk(size=MiB), start=False)
    shadow = make_shadow(horse)
    socket = horse.folder / "sock"
    with subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-k", str(socket), str(horse.path("vda"))]) as tool:
        while not socket.exists():
            assert tool.poll() is None
        with pytest.raises(JobConflictError, match=r"vda\.qcow2 is in use, by another guest or program"):
            shadow.begin()
        tool.terminate()
    assert (horse.checkpoints(), image_info(str(horse.path("vda"))).bitmaps) == ([], {})


def test_what_it_was_before(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """Consistency: of a guest that was destroyed, of one with saved memory; `required` is not fooled."""
    horse = make_domain(Disk(size=MiB))
    shadow = make_shadow(horse)
    horse.stop()
    with shadow.begin() as running:
        assert (running.consistency, running.freeze_seconds) == ("crash", None)
        assert running.quiesce_note == "the guest was off: it was destroyed"
    with pytest.raises(QuiesceError, match="it was destroyed"):
        shadow.begin(quiesce="required")
    horse.start()
    horse.domain.managedSave(0)
    with shadow.begin() as running:
        assert "saved with its memory" in running.quiesce_note
    horse.domain.managedSaveRemove(0)


def test_disks_that_only_qemu_can_read(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A network disk, an image that is gone: one sentence, and no point that lacks a disk."""
    horse = make_domain(Disk(size=MiB), start=False)
    shadow = make_shadow(horse)
    source = "<source protocol='nbd' name='x'><host name='127.0.0.1'/></source>"
    network = f"<disk type='network'>{source}<target dev='vdb'/></disk>"
    horse.domain.attachDeviceFlags(network, 2)
    with pytest.raises(HypervisorError, match=r"disk vdb cannot be read: .* no file or device") as caught:
        shadow.begin()
    assert f"virsh start --paused {horse.name}; vmbackup backup" in caught.value.hint
    horse.domain.detachDeviceFlags(network, 2)
    away = horse.path("vda").rename(horse.folder / "away")
    with pytest.raises(HypervisorError, match=r"disk vda cannot be read: .* No such file") as caught:
        shadow.begin()
    assert caught.value.hint == "the guest cannot start without it either"
    away.rename(horse.path("vda"))
    assert horse.checkpoints() == []


def test_snapshots_while_it_is_off(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """An overlay that qemu-img made has no bitmap: read whole, once; the data below it comes too."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, K64, 1)
    shadow.run()
    horse.stop()
    image = horse.path("vda")
    below = image.rename(horse.folder / "below.qcow2")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(image)]
    subprocess.run(command, check=True)
    write_off(horse, "vda", MiB, K64, 2)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    shadow.compare(work_dir)
    write_off(horse, "vda", 2 * MiB, K64, 3)
    shadow.run()
    assert (shadow.modes, shadow.kinds("vda")[Kind.DATA]) == ({"vda": "incremental"}, K64)
    shadow.compare(work_dir)


@pytest.mark.parametrize("place", ["loop", "lvm"])
def test_block_devices(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path, place: str) -> None:
    """No kernel tells of a start there: nobody is locked out all the same, and what was read then is not committed."""
    with contextlib.ExitStack() as stack:
        try:
            devices = loop_device if place == "loop" else logical_volume
            qcow2 = stack.enter_context(devices(work_dir / "a.img", 8 * MiB))
            raw = stack.enter_context(devices(work_dir / "b.img", 4 * MiB))
        except NoDeviceError as error:
            pytest.skip(str(error))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "4M"], check=True)
        horse = make_domain(Disk(size=4 * MiB), Disk("vdb", size=4 * MiB, format="raw"), start=False)
        stack.callback(horse.remove)
        horse.move({"vda": Path(qcow2), "vdb": Path(raw)})
        shadow = make_shadow(horse)
        shadow.run()
        write_off(horse, "vda", MiB, K64, 3)
        shadow.run()
        assert (shadow.modes["vda"], shadow.kinds("vda")[Kind.DATA]) == ("incremental", K64)
        for target in ("vda", "vdb"):
            with shadow.begin() as running:
                shadow.read(running)
                write_off(horse, target, 0, 4096, 4)
                with pytest.raises(PointInTimeLostError, match="an image was written to"):
                    running.seal()
        with shadow.begin() as running:
            shadow.read(running)
            horse.start()
            horse.write("vda", 2 * MiB, K64, 6)
            with pytest.raises(PointInTimeLostError, match=r"was started while its disks were read: it goes on$"):
                running.seal()
        shadow.run()
        assert shadow.modes == {"vda": "incremental", "vdb": "reread"}
        shadow.compare(work_dir)


def test_an_image_that_takes_no_bitmap(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Its file system became read-only, which is when a backup is wanted: read all the same, and that is told."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB), start=False)
    shadow = make_shadow(horse)
    shadow.run()
    write_off(horse, "vdb", 0, K64, 3)
    image = horse.path("vdb")
    subprocess.run(["mount", "--bind", str(image), str(image)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(image)], check=True)
        shadow.run()
    finally:
        subprocess.run(["umount", str(image)], check=True)
    assert (shadow.modes["vdb"], shadow.kinds("vdb")[Kind.DATA]) == ("incremental", K64)
    told = "disk vdb got no new bitmap, and the next backup reads it whole: .*Read-only file system"
    assert any(re.match(told, note) for note in shadow.notes)
    assert shadow.anchor
    assert list(shadow.anchor.disks) == ["vda"]
    shadow.compare(work_dir)
    write_off(horse, "vdb", 2 * K64, K64, 4)
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "reread"}
    assert "does not cover the disk" in (shadow.reasons["vdb"] or "")
    shadow.compare(work_dir)
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "incremental"}
    assert list(image_info(str(image)).bitmaps) == horse.checkpoints()


def test_an_image_below_that_is_on_the_network(
    make_domain: MakeDomain, make_shadow: MakeShadow, short_folder: Path
) -> None:
    """Nobody here sees who writes that: one sentence, and nothing is left behind."""
    horse = make_domain(Disk(size=MiB), start=False)
    below, top, socket = horse.folder / "below.raw", horse.path("vda"), short_folder / "s"
    Disk(size=MiB, format="raw").create(below)
    with subprocess.Popen(["qemu-nbd", "-t", "-r", "-e", "9", "-f", "raw", "-k", str(socket), str(below)]) as server:
        try:
            while not socket.exists():
                assert server.poll() is None
            command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"nbd+unix:///?socket={socket}"]
            subprocess.run([*command, str(top)], check=True)
            with pytest.raises(HypervisorError, match=r"nbd.* cannot be read"):
                make_shadow(horse).begin()
        finally:
            server.terminate()
    assert (horse.checkpoints(), image_info(str(top)).bitmaps) == ([], {})
