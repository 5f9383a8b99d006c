"""A repository, a host and a paused guest: what the tests of the engine work with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.lab.domain import Workhorse
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.restore.flat import Format, RestoreOptions, RestoreSummary, restore
from vmbackup.hypervisor import Host
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary, Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.points import Point
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

SECRET = Secret.passphrase("correct horse", random=True)


@dataclass
class Kit:
    """Folders below `root`; the host is opened anew by `reopen`."""

    root: Path
    scratch: Path
    chunk_size: int = 64 << 10
    options: BackupOptions = field(default_factory=lambda: BackupOptions(workers=2))
    uri: str = "qemu:///system"
    domain_folders: str = ""   # of that libvirt, where they are not in their usual place

    def __post_init__(self) -> None:
        self.store = open_store(str(self.root / "repository"), create=True)
        self.trust = Trust(self.root / "trust")
        self.repository, self.recovery_key = Repository.create(
            self.store, SECRET, self.trust, chunk_size=self.chunk_size
        )
        self.host = self.open_host()
        self._restores = 0

    def open_host(self) -> Host:
        places = {"scratch_dir": str(self.scratch), "state_dir": str(self.root / "state")}
        return Host.open(self.uri, domain_folders=self.domain_folders, **places)

    def reopen(self) -> None:
        self.host.close()
        self.host = self.open_host()
        self.repository = Repository.open(self.store, SECRET, self.trust)

    def close(self) -> None:
        self.host.close()

    def backup(self, horse: Workhorse, **options: object) -> PointSummary:
        return backup(self.host, self.repository, horse.name, replace(self.options, **options), Silent())

    def points(self) -> list[Point]:
        return self.repository.read_points().points

    def point(self, point_id: str) -> Point:
        return next(p for p in self.points() if p.id == point_id)

    def restore(
        self, point_id: str, image_format: Format = "qcow2", disks: tuple[str, ...] | None = None
    ) -> RestoreSummary:
        self._restores += 1
        folder = self.root / f"restore{self._restores}"
        return restore(
            self.repository, self.point(point_id), RestoreOptions(folder, image_format, disks, workers=2), Silent()
        )

    def check(self, horse: Workhorse, point_id: str, image_format: Format = "qcow2") -> None:
        """Restores a point and compares each disk with the source as it is now."""
        for file in self.restore(point_id, image_format).files:
            horse.compare(file.target, file.path)
            file.path.unlink()


def same(a: Path, b: Path) -> None:
    done = subprocess.run(["qemu-img", "compare", "-U", str(a), str(b)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kits(work_dir: Path, scratch_dir: Path, **options: object) -> Iterator[Kit]:
    kit = Kit(work_dir, scratch_dir, **options)
    yield kit
    kit.close()
