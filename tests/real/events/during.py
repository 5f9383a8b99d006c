"""What may happen to a guest while it is backed up: at the begin, at a read, or at the seal."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

from tests.lab.disk import MiB
from tests.real.events.scene import BLOCK, EXTRA, SIZE, Scene
from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.live.readers import LiveReader

Place = Literal["begun", "read", "seal"]
PLACES: tuple[Place, ...] = ("begun", "read", "seal")


@dataclass(frozen=True)
class During:
    """An event. `ends`: the run fails by it, with one of these words in its sentence; else it makes its point.

    `surely`: the places at which it must; at the others all may have been read by then. `then`: why the next backup
    reads whole. `late` undoes or waits for what is left of it after the run.
    """

    act: Callable[[Scene], None]
    ends: tuple[str, ...] = ()
    surely: tuple[Place, ...] = PLACES
    then: str | None = None
    late: Callable[[Scene], None] = lambda _scene: None


class Moment:
    """Lets an event happen once, at a place of a run: acts as the engine's host meanwhile."""

    def __init__(self, scene: Scene, place: Place, act: Callable[[Scene], None]) -> None:
        self._scene, self._place, self._act = scene, place, act
        self._guard = threading.Lock()
        self.happened = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scene.kit.host, name)

    def begin(self, *args: Any, **options: Any) -> LiveJob:
        job = Host.begin(self._scene.kit.host, *args, **options)
        with job_ended_on_error(job):
            self._at("begun")
        return job

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        submit, seal = LiveReader.submit, LiveJob.seal

        def submitting(reader: LiveReader, offset: int, buffer: memoryview) -> int:
            self._at("read")
            return submit(reader, offset, buffer)

        def sealing(job: LiveJob) -> None:
            self._at("seal")
            seal(job)

        with patch.object(LiveReader, "submit", submitting), patch.object(LiveJob, "seal", sealing):
            yield

    def _at(self, place: Place) -> None:
        with self._guard:
            if place != self._place or self.happened:
                return
            self.happened = True
            self._act(self._scene)


@contextlib.contextmanager
def job_ended_on_error(job: LiveJob) -> Iterator[None]:
    """The test's own mistakes must not leave a job."""
    try:
        yield
    except BaseException:
        job.finish(committed=False)
        raise


def shut_down(scene: Scene) -> None:
    scene.horse.stop()


def started_again(scene: Scene) -> None:
    if not scene.horse.running:
        scene.horse.start()


def reset(scene: Scene) -> None:
    scene.domain.reset(0)


def went_on_and_paused(scene: Scene) -> None:
    scene.domain.resume()
    scene.domain.suspend()


def killed(scene: Scene) -> None:
    os.kill(scene.horse.pid, signal.SIGKILL)
    scene.wait(lambda: not scene.horse.running, "libvirt to see QEMU's death")


def aborted(scene: Scene) -> None:
    scene.domain.abortJob()


def nbd_server_lost(scene: Scene) -> None:
    scene.horse.monitor({"execute": "nbd-server-stop"})


def restarted_libvirtd(scene: Scene) -> None:
    scene.end_libvirt(signal.SIGTERM)
    scene.start_libvirt()


def killed_libvirtd(scene: Scene) -> None:
    scene.end_libvirt(signal.SIGKILL)
    scene.start_libvirt()


def plugged(scene: Scene) -> None:
    if EXTRA not in scene.horse.disks:
        scene.plug()


def pulled(scene: Scene) -> None:
    """libvirt refuses it while the disk is read."""
    _refused(lambda: scene.domain.detachDeviceFlags(_disk_xml(scene), 1), "active block job", "blockjob")


def resized(scene: Scene) -> None:
    """QEMU refuses it while the disk is read."""
    _refused(lambda: scene.domain.blockResize("vda", SIZE + MiB, 1), "in use", "blockjob")


def scratch_filled(scene: Scene) -> None:
    """By somebody else's file; then the guest writes."""
    filler = scene.kit.scratch / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)
    with contextlib.suppress(RuntimeError):
        for at in range(0, SIZE, MiB):
            scene.horse.write("vda", at, BLOCK, 0x99)


def scratch_emptied(scene: Scene) -> None:
    (scene.kit.scratch / "filler").unlink(missing_ok=True)


def snapshot_and_back(scene: Scene) -> None:
    """Asked for during the run, libvirt takes it when the run is over."""
    thread = threading.Thread(target=_snapshot, args=(scene,))
    thread.start()
    scene_threads.append(thread)


def snapshot_over(scene: Scene) -> None:
    while scene_threads:
        scene_threads.pop().join()
    path = scene.horse.path("vda")
    scene.domain.blockCommit("vda", None, None, 0, 4)  # active
    scene.wait(lambda: _pivoted(scene), "the commit")
    scene.wait(lambda: not scene.domain.blockJobInfo("vda", 0), "the pivot")
    path.with_suffix(".overlay").unlink()


scene_threads: list[threading.Thread] = []


def _snapshot(scene: Scene) -> None:
    overlay = scene.horse.path("vda").with_suffix(".overlay")
    others = "".join(f"<disk name='{name}' snapshot='no'/>" for name in scene.horse.disks if name != "vda")
    xml = (
        f"<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='{overlay}'/></disk>"
        f"{others}</disks></domainsnapshot>"
    )
    scene.domain.snapshotCreateXML(xml, 16 | 4 | 128)  # disk only, no metadata, atomic


def _pivoted(scene: Scene) -> bool:
    """False while there is something to copy, or libvirt has yet to hear from QEMU that there is not."""
    import libvirt

    try:
        scene.domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_BLOCK_COPY_ACTIVE:
            raise
        return False
    return True


def _refused(call: Callable[[], Any], *words: str) -> None:
    import libvirt
    import pytest

    with pytest.raises(libvirt.libvirtError, match="|".join(words)):
        call()


def _disk_xml(scene: Scene) -> str:
    import xml.etree.ElementTree as ET

    for disk in ET.fromstring(scene.domain.XMLDesc(0)).iterfind("devices/disk"):
        place = disk.find("target")
        if place is not None and place.get("dev") == "vda":
            return ET.tostring(disk, "unicode")
    raise KeyError("vda")


_LOST = ("ended while it was read", "stopped while it was read", "cannot be proved", "could not be read")
DURING: dict[str, During] = {
    "shut_down": During(shut_down, _LOST, late=started_again),
    "reset": During(reset),
    "went_on_and_paused": During(went_on_and_paused),
    "killed": During(killed, _LOST, then="bitmap_broken", late=started_again),
    "aborted": During(aborted, _LOST),
    "nbd_server_lost": During(nbd_server_lost, _LOST, ("begun", "read")),
    "restarted_libvirtd": During(restarted_libvirtd),
    "killed_libvirtd": During(killed_libvirtd),
    "plugged": During(plugged),
    "pulled": During(pulled),
    "resized": During(resized),
    "scratch_filled": During(scratch_filled, ("scratch", "Scratch"), ("begun",), late=scratch_emptied),
    "snapshot_and_back": During(snapshot_and_back, late=snapshot_over),
}


def one_sentence(error: VmbackupError) -> None:
    """What an operator reads: one line of what is wrong, one of what to do."""
    assert error.exit_code == 1, error
    for text in (error.message, error.hint):
        assert text, f"nothing said: {error!r}"
        assert "\n" not in text, text
        assert "Traceback" not in text
