"""A disk that changes at random, backed up each time it has: what was stored must be what it was."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.hypervisor import Host
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary, Repository
from vmbackup.repository.points import Point

SEED_VARIABLE = "VMBACKUP_TEST_SEED"
SECTOR = 512
_HOT = 512 << 10  # bytes at the disk's start that get every second change: over a large disk old data is rarely met
_PIECE = 1 << 20


def seed_of(default: int) -> int:
    """The seed of a random test: the default, or what VMBACKUP_TEST_SEED says."""
    return int(os.environ.get(SEED_VARIABLE, default))


def content(image: Path, fmt: str) -> str:
    """SHA-256 of the disk that an image holds."""
    if fmt != "raw":
        raw = image.with_name(f"{image.name}.{secrets.token_hex(4)}.raw")
        subprocess.run(["qemu-img", "convert", "-U", "-f", fmt, "-O", "raw", str(image), str(raw)],
                       check=True, capture_output=True, text=True)  # fmt: skip
        try:
            return content(raw, "raw")
        finally:
            raw.unlink()
    found = hashlib.sha256()
    with image.open("rb") as file:
        while piece := file.read(_PIECE):
            found.update(piece)
    return found.hexdigest()


@dataclass
class Evolution:
    """One guest with one disk (`vda`), its history and its restore points.

    `repository` and `host` may be shared with other evolutions in other threads. `kept` is the content of each point.
    """

    horse: Workhorse
    host: Host
    repository: Repository
    folder: Path
    seed: int
    kept: dict[str, str] = field(default_factory=dict)
    modes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._broken = True  # no bitmap is to be found by the next run

    @classmethod
    def make(cls, kit: Kit, make_domain: Callable[..., Workhorse], cluster_size: int, seed: int) -> Evolution:
        """A new guest in the kit's repository."""
        horse = make_domain(Disk("vda", size=16 * MiB, cluster_size=cluster_size))
        folder = kit.root / horse.name
        folder.mkdir()
        return cls(horse, kit.host, kit.repository, folder, seed)

    @property
    def size(self) -> int:
        return self.horse.disks["vda"].size

    def round(self) -> None:
        """Changes, a backup, a restore, a comparison with the source as it stands."""
        self._change()
        point = self._backup()
        self.kept[point.id] = self._now()
        self.restore(point.id, "qcow2" if self.random.random() < 0.1 else "raw")

    def restore(self, point_id: str, fmt: str = "raw", found: Mapping[str, Point] | None = None) -> None:
        """Raises AssertionError unless the point restores as the disk was. `found`: all points, if at hand."""
        folder = self.folder / secrets.token_hex(4)
        point = (found or self.points())[point_id]
        options = RestoreOptions(folder, fmt, workers=2)  # type: ignore[arg-type]
        path = restore(self.repository, point, options, Silent()).files[0].path
        if list(self.kept)[-1] == point_id:
            different = same_content(self.horse.path("vda"), path)
            assert different is None, f"{point_id}: {different}"
        assert content(path, fmt) == self.kept[point_id], f"{point_id} is not what the disk was"
        path.unlink()
        (folder / "domain.xml").unlink()
        folder.rmdir()

    def restore_many(self, most: int | None = None) -> None:
        """Restores points (a sample of `most`) in random order."""
        points, found = list(self.kept), self.points()
        for point in self.random.sample(points, min(most or len(points), len(points))):
            self.restore(point, found=found)

    def points(self) -> dict[str, Point]:
        """The repository's."""
        return {point.id: point for point in self.repository.read_points().points}

    def forget_host(self) -> None:
        """All of libvirt's checkpoints go."""
        self.host.purge(self.host.domain(self.horse.name))
        assert self.horse.checkpoints() == []
        self._broken = True

    def expect(self, *, broken: bool) -> None:
        """Whether the next backup is to find no bitmap."""
        self._broken = broken

    def _backup(self) -> PointSummary:
        from vmbackup.engine.backup.run import BackupOptions, backup

        full = self.random.random() < 0.03
        options = BackupOptions(full=full, workers=2, verify_uploads="all")
        point = backup(self.host, self.repository, self.horse.name, options, Silent())
        mode = point.disks[0].mode
        wanted = "full" if full or not self.kept else "reread" if self._broken else "incremental"
        assert mode == wanted, f"{mode}, not {wanted}: {point.disks[0].reason}"
        self.modes.append(mode)
        self._broken = False
        assert len(self.horse.checkpoints()) == 1
        return point

    def _now(self) -> str:
        self.horse.flush("vda")
        return content(self.horse.path("vda"), "qcow2")

    def _change(self) -> None:
        for _ in range(self.random.choice((0, 1, 1, 2, 3, 5, 8, 20))):
            self._write()
        chance = self.random.random()
        if chance < 0.05 and self.size < 40 * MiB:
            self.horse.grow("vda", self.size + self.random.randrange(1, 4 * MiB // SECTOR) * SECTOR)
        elif chance < 0.08:
            self.horse.stop()  # in good order: the bitmaps are kept
            self.horse.start()
        elif chance < 0.10:
            self.horse.flush("vda")
            self.horse.kill()
            self.horse.start()
            self._broken = True

    def _write(self) -> None:
        where, length = self._place()
        action = self.random.choices(
            (self._pattern, self._data, self.horse.zero, self.horse.zero_unmap, self._zeros, self.horse.discard),
            (6, 2, 2, 2, 1, 3),
        )[0]
        action("vda", where, length)

    def _place(self) -> tuple[int, int]:
        length = int(2 ** self.random.uniform(9, 19 if self.random.random() < 0.9 else 21))
        unit = self.random.choice((SECTOR, 4096, 65536))
        length = max(unit, length // unit * unit)
        area = _HOT if self.random.random() < 0.5 else self.size
        where = self.random.randrange(0, area, unit)
        if self.random.random() < 0.1:
            where = self.size // SECTOR * SECTOR - length  # the disk's end
        return where, min(length, (self.size - where) // SECTOR * SECTOR)

    def _pattern(self, target: str, where: int, length: int) -> None:
        self.horse.write(target, where, length, self.random.randrange(1, 256))

    def _zeros(self, target: str, where: int, length: int) -> None:
        self.horse.write(target, where, length, 0)  # a write whose data is zeros, unlike write-zeroes

    def _data(self, target: str, where: int, length: int) -> None:
        self.horse.write_data(target, where, self.random.randbytes(length))
