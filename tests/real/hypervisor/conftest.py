"""A host on real libvirt, and a reader that does with a job's disks what the engine does."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from vmbackup.hypervisor import Anchor, Host
from vmbackup.hypervisor.live import job
from vmbackup.hypervisor.live.job import LiveJob
from vmbackup.hypervisor.source import DiskInfo, DiskSource
from vmbackup.nbd import Extent, Kind

URI = "qemu:///system"
REPOSITORY = "0123abcd"
OTHER_REPOSITORY = "89ef4567"
_READ = 1 << 20


def open_host(lab: Lab, scratch_dir: Path, state_dir: Path, keep: int = 1) -> Host:
    """A Host on the libvirt that the lab's domains are in."""
    return Host.open(
        lab.uri, scratch_dir=str(scratch_dir), state_dir=str(state_dir), domain_folders=lab.domain_folders, keep=keep
    )


def new_session() -> str:
    """A session id: 48 bits of milliseconds, 80 of chance."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"


def read_disk(source: DiskSource, old: bytearray | None) -> tuple[bytearray, list[Extent]]:
    """The disk's bytes at the point in time: UNCHANGED from `old`, the rest as the extents say."""
    image = bytearray(source.size)
    runs = list(source.extents())
    reader = source.open_reader()
    view = memoryview(image)
    for offset, length, kind in runs:
        if kind == Kind.UNCHANGED:
            assert old is not None
            view[offset : offset + length] = old[offset : offset + length]
        elif kind == Kind.DATA:
            for at in range(offset, offset + length, _READ):
                reader.submit(at, view[at : min(at + _READ, offset + length)])
                reader.wait()
    reader.close()
    assert sum(run.length for run in runs) == source.size
    return image, runs


class Shadow:
    """Restore points of one domain, each disk held as bytes: what a repository would give back."""

    def __init__(self, host: Host, horse: Workhorse, repository_id: str = REPOSITORY) -> None:
        self.host, self.horse, self.repository_id = host, horse, repository_id
        self.anchor: Anchor | None = None
        self.earlier: dict[str, DiskInfo] = {}
        self.images: dict[str, bytearray] = {}
        self.committed: set[str] = set()
        self.runs: dict[str, list[Extent]] = {}
        self.modes: dict[str, str] = {}
        self.reasons: dict[str, str | None] = {}
        self.notes: list[str] = []

    def begin(self, **options: object) -> LiveJob:
        """Begins a run on the newest committed anchor."""
        arguments = {
            "repository_id": self.repository_id,
            "session": new_session(),
            "parent": self.anchor,
            "earlier": self.earlier,
            "committed": lambda name: str(name) in self.committed if name.repository_id == self.repository_id else None,
        } | options
        return self.host.begin(self.host.domain(self.horse.name), **arguments)  # type: ignore[arg-type]

    def read(self, running: LiveJob) -> dict[str, bytearray]:
        """Reads all disks of the job."""
        self.modes = {disk.info.target: disk.mode for disk in running.disks}
        self.reasons = {disk.info.target: disk.reason for disk in running.disks}
        images = {}
        for disk in running.disks:
            images[disk.info.target], self.runs[disk.info.target] = read_disk(disk, self._grown(disk))
        return images

    def commit(self, running: LiveJob, images: dict[str, bytearray]) -> None:
        """What the repository's commit does, then the end of the run."""
        self.images, self.anchor = images, running.anchor
        self.earlier = {disk.info.target: disk.info for disk in running.disks}
        if running.anchor:
            self.committed.add(running.anchor.checkpoint)
        running.finish(committed=True)
        self.notes = list(running.notes)

    def run(self, **options: object) -> None:
        """A whole run."""
        with self.begin(**options) as running:
            images = self.read(running)
            running.seal()
            self.commit(running, images)

    def compare(self, folder: Path) -> None:
        """Raises unless the newest restore point is what the paused domain's disks are now."""
        for target, image in self.images.items():
            path = folder / f"{target}.raw"
            path.write_bytes(image)
            self.horse.compare(target, path)
            path.unlink()

    def kinds(self, target: str) -> dict[Kind, int]:
        """Bytes of each kind in the last map of a disk."""
        total = dict.fromkeys(Kind, 0)
        for run in self.runs[target]:
            total[run.kind] += run.length
        return total

    def _grown(self, disk: DiskSource) -> bytearray | None:
        old = self.images.get(disk.info.target)
        return None if old is None else old + bytearray(max(0, disk.size - len(old)))


@pytest.fixture
def host(lab: Lab, scratch_dir: Path, work_dir: Path) -> Iterator[Host]:
    """A host whose runs leave neither intents nor scratch files: the test fails if they do."""
    with open_host(lab, scratch_dir, work_dir / "state") as opened:
        yield opened
        left = opened.intents()
    assert not left, f"intents left behind: {left}"


@pytest.fixture
def short_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of anything but the seal: its waiting would be most of their time."""
    monkeypatch.setattr(job, "PROOF_WAIT", 0.05)


@pytest.fixture
def make_shadow(host: Host, short_seal: None) -> Callable[..., Shadow]:
    """Makes the restore points of a domain: `make_shadow(horse, repository_id)`."""
    return lambda horse, repository_id=REPOSITORY: Shadow(host, horse, repository_id)
