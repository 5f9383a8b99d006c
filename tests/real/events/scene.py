"""One guest whose life is hard: what it holds, what the next backup is to find, and the proof that it was right."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.lab import machine
from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.engine.evolution import content
from tests.real.engine.kit import Kit
from tests.real.engine.program import Program
from vmbackup.daemon.reasons import whole_read

SIZE = 8 * MiB
BLOCK = 65536
PATIENCE = 60.0  # seconds for a daemon to come or go on a busy machine
EXTRA = "vdb"  # the disk that is plugged in and out
OPTIONS = ("-d",)


@dataclass
class Scene:
    """A paused guest with a disk `vda`, a repository, and a libvirt that nobody else uses.

    `expected` is why the next backup reads `vda` whole, as the metric's label; None: it is incremental.
    `kept`: point -> target -> SHA-256 of what the disk was. `orphans`: our bitmaps of an older copy of the image, which
    go with the next restore point.
    """

    lab: Lab
    kit: Kit
    horse: Workhorse
    random: random.Random
    expected: str | None = "full"
    kept: dict[str, dict[str, str]] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    older: Path | None = None
    orphans: set[str] = field(default_factory=set)

    @property
    def domain(self) -> Any:
        return self.horse.domain

    @property
    def program(self) -> Program:
        """The command, with the kit's repository, state and scratch."""
        made = Program(self.kit.root, self.kit.scratch, self.kit.root / "repository")
        (made.folder / "passphrase").write_text("correct horse\n")
        (made.folder / "passphrase").chmod(0o600)
        made.configure()
        return made

    # The guest's life

    def change(self) -> None:
        """A few writes, zeros and discards, most of them where there were some before."""
        for _ in range(self.random.choice((0, 1, 2, 5, 12))):
            area = SIZE // 8 if self.random.random() < 0.6 else SIZE
            where = self.random.randrange(area // 4096) * 4096
            length = min(self.random.choice((4096, 65536, 200 * 1024)), SIZE - where)
            act = self.random.choice((self._write, self._write, self.horse.zero_unmap, self.horse.discard))
            act("vda", where, length)

    def _write(self, target: str, where: int, length: int) -> None:
        self.horse.write(target, where, length, self.random.randrange(1, 256))

    def contents(self) -> dict[str, str]:
        """Target -> SHA-256 of what the disk is now."""
        found = {}
        for target in self.horse.disks:
            if self.horse.running:
                self.horse.flush(target)
            found[target] = content(self.horse.path(target), "qcow2")
        return found

    def restart(self) -> None:
        """In good order: bitmaps are kept."""
        self.horse.stop()
        self.horse.start()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """With the guest off."""
        self.horse.stop()
        yield
        self.horse.start()

    def plug(self) -> None:
        """A second disk."""
        self.horse.attach(Disk(EXTRA, size=MiB))

    def unplug(self) -> None:
        """Takes it out, with the guest off: one without a system does not answer to hot unplug."""
        import xml.etree.ElementTree as ET

        with self.off():
            for disk in ET.fromstring(self.domain.XMLDesc(0)).iterfind("devices/disk"):
                place = disk.find("target")
                if place is not None and place.get("dev") == EXTRA:
                    self.domain.detachDeviceFlags(ET.tostring(disk, "unicode"), 2)
            self.horse.path(EXTRA).unlink()
            self.horse.forget(EXTRA)

    # libvirt's life

    def end_libvirt(self, how: signal.Signals) -> None:
        """Ends libvirtd; QEMU lives on. Returns when it is gone."""
        pid = int(Path("/run/libvirtd.pid").read_text())
        os.kill(pid, how)
        self.wait(lambda: not alive(pid), "libvirtd to end")

    def start_libvirt(self) -> None:
        """Starts it again; the lab's and the guest's handles are opened anew."""
        import libvirt

        from tests.lab.libvirtd import answers

        self.wait(self._libvirt_starts, "libvirtd to start")
        self.wait(answers, "libvirtd to answer")
        self.lab.connection = libvirt.open("qemu:///system")
        self.horse.reconnect(self.lab.connection)

    def _libvirt_starts(self) -> bool:
        """At times not at the first try, beside others that start: systemd would try again as well."""
        done = subprocess.run([machine.program("libvirtd"), *OPTIONS], check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"libvirtd: {done.stderr}", file=sys.stderr)
        return done.returncode == 0

    def wait(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
            time.sleep(0.02)

    # Backups, and what they must leave

    def succeed(self, point: Any, contents: dict[str, str]) -> str | None:
        """A point was made: it is what the guest was, and says why it was read whole. That label, None where not."""
        (vda,) = (disk for disk in point.disks if disk.target == "vda")
        label = whole_read({"mode": vda.mode, "reason": vda.reason})
        assert label == self.expected, f"{vda.mode}, {vda.reason}: not {self.expected or 'incremental'}"
        newest = next(reversed(self.kept), None)
        assert point.parent == newest, f"{point.id} builds on {point.parent}, not on {newest}"
        self.kept[point.id] = contents
        self.expected = None
        self.orphans.clear()
        self.check(point.id)
        self.clean()
        return label

    def check(self, point_id: str) -> None:
        """Restores the point: each disk is what it was."""
        for file in self.kit.restore(point_id, "raw").files:
            assert content(file.path, "raw") == self.kept[point_id][file.target], f"{point_id}: {file.target} differs"
            file.path.unlink()

    def clean(self) -> None:
        """Of our own only the newest point's checkpoint and its bitmaps are there; of others' all of theirs."""
        ours = [name for name in self.horse.checkpoints() if name.startswith("vmbackup-")]
        newest = next(reversed(self.kept), "").rsplit("-", 1)[-1]
        wanted = [] if self.expected == "checkpoint_gone" else [newest]
        assert [name.rsplit("-", 1)[1][:8] for name in ours] == wanted, ours
        assert sorted(set(self.horse.checkpoints()) - set(ours)) == sorted(self.foreign)
        self.no_job()
        if self.horse.running:
            for target in self.horse.disks:
                found = {name for name in self.horse.bitmaps(target) if name.startswith("vmbackup-")}
                assert found <= {*ours, *self.orphans}, f"bitmaps left on {target}: {found}"

    def no_job(self) -> None:
        """No job, socket, scratch file, intent, session or server of an image is left."""
        if self.horse.running:
            assert self.domain.jobInfo()[0] == 0
        left = [*Path("/var/lib/libvirt/qemu").glob("domain-*/vmbackup-*"), *self.kit.scratch.iterdir()]
        for folder in (self.kit.root / "state" / "intents", self.kit.root / "repository" / "sessions"):
            left += [path for path in folder.rglob("*") if path.is_file()]
        assert left == []
        assert [name for name in commands() if "qemu-nbd" in name] == []


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def commands() -> list[str]:
    """The command lines of all processes of this namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
