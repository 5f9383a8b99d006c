"""A running guest that writes from the begin on, and somebody who aborts its backup job at a chosen moment."""

from __future__ import annotations

import random
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.lab.session import Lab
from tests.real.engine.kit import Kit
from tests.real.hypervisor.bootsector import SIZE, BootSectorGuest
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.live.readers import LiveReader
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary

MIB = 1 << 20
FIRST, LAST = 2, SIZE // MIB - 1  # mebibytes of the disk that are written; the first holds the guest's code
_ANSWER_TIMEOUT = 60.0  # seconds
_PAUSE = 0.1  # seconds between two writes of the guest: not all of the disk is dirty then


class BusyGuest(BootSectorGuest):
    """Writes mebibytes of the value N at N MiB, as its device does: past libvirt and its locks."""

    size = SIZE

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self._asked = 0
        self._guard = threading.Lock()

    def ask(self, mebibyte: int) -> None:
        """Lets the guest write one; does not wait."""
        with self._guard:
            self.write(mebibyte)
            self._asked += 1

    def settle(self) -> None:
        """Returns when all is written that was asked for, and the image holds it."""
        while self._asked:
            assert self.answer(_ANSWER_TIMEOUT) == "k"
            self._asked -= 1
        self._io("flush")

    def fill(self, mebibyte: int, value: int) -> None:
        """Writes another value there, by the monitor."""
        self._io(f"write -q -P {value} {mebibyte}M 1M")

    def copy(self) -> Path:
        """The disk as it is; the guest has settled."""
        path = self.folder / f"copy-{secrets.token_hex(4)}.raw"
        command = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(self.path), str(path)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return path

    def checkpoints(self) -> list[str]:
        return [c.getName() for c in self.domain.listAllCheckpoints(0)]

    def _io(self, command: str) -> None:
        import libvirt_qemu

        device = "/machine/peripheral/virtio-disk0/virtio-backend"
        answer = libvirt_qemu.qemuMonitorCommand(self.domain, f'qemu-io -d {device} "{command}"', 1).strip()
        assert not answer, answer


@dataclass(frozen=True)
class Moment:
    """When the job is aborted: `at` a read by its number (from 1), or seconds after the begin or the seal's start.

    At a read, the guest has `then` seconds to overwrite what the read asks for, before it is asked for. Nobody waits
    for the abort there: QEMU stands still while it has replies that the reader does not take.
    """

    place: Literal["begun", "read", "seal"]
    at: float = 0.0
    then: float = 0.0


class Meddler:
    """Runs backups of a guest that does not rest, and aborts them; `reads` of the last run."""

    def __init__(self, kit: Kit, guest: BusyGuest, patch: pytest.MonkeyPatch, chance: random.Random) -> None:
        import libvirt

        self._kit, self._guest, self._random = kit, guest, chance
        self._outside = libvirt.open("qemu:///system")
        self._foreign = self._outside.lookupByName(guest.name)
        self._moment: Moment | None = None
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.reads = 0
        self.aborted = False
        self._hook(patch)

    def close(self) -> None:
        self._outside.close()

    def run(self, moment: Moment | None) -> PointSummary:
        """A backup in whose midst the job is aborted. Raises what the backup raises."""
        self._moment, self.reads, self.aborted = moment, 0, False
        self._ended.clear()
        try:
            options = BackupOptions(workers=1)
            return backup(self, self._kit.repository, self._guest.name, options, Silent())  # type: ignore[arg-type]
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()
            self._threads.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kit.host, name)

    def begin(self, *args: Any, **options: Any) -> LiveJob:
        """The host's, and from then on the guest writes."""
        job = self._kit.host.begin(*args, **options)
        self._spawn(self._write_on)
        self._at("begun")
        return job

    def abort(self) -> None:
        """`virsh domjobabort`, from a connection of its own."""
        import libvirt

        try:
            self._foreign.abortJob()
        except libvirt.libvirtError:
            return  # the run has ended its job before
        self.aborted = True

    def _hook(self, patch: pytest.MonkeyPatch) -> None:
        submit, seal = LiveReader.submit, LiveJob.seal

        def submitting(reader: LiveReader, offset: int, buffer: memoryview) -> int:
            self._reading(offset)
            return submit(reader, offset, buffer)

        def sealing(job: LiveJob) -> None:
            self._at("seal")
            seal(job)

        patch.setattr(LiveReader, "submit", submitting)
        patch.setattr(LiveJob, "seal", sealing)

    def _reading(self, offset: int) -> None:
        with self._lock:
            self.reads += 1
            moment = self._moment
            if moment is None or moment.place != "read" or self.reads < moment.at:
                return
            if self.reads == moment.at:
                self._spawn(self.abort)
                time.sleep(moment.then / 2)
            self._guest.ask(max(offset // MIB, FIRST))
            time.sleep(moment.then / 2)

    def _at(self, place: str) -> None:
        moment = self._moment
        if moment is None or moment.place != place:
            return
        if moment.at == 0:
            self.abort()
        else:
            self._spawn(lambda: self._later(moment.at))

    def _later(self, seconds: float) -> None:
        if not self._ended.wait(seconds):
            self.abort()

    def _write_on(self) -> None:
        while not self._ended.wait(_PAUSE):
            self._guest.ask(self._random.randrange(FIRST, LAST + 1))

    def _spawn(self, work: Callable[[], None]) -> None:
        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()
