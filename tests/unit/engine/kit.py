"""A repository in a folder and guests in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ram import RamDisk, RamGuest, RamHost
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.care.verify import VerifySummary, verify
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import DamageError
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary, Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.points import Point
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import Store, open_store

SECRET = Secret.passphrase("a passphrase for tests", random=True)


class RamKit:
    """`data` of each restore point is kept, so that each can be compared later."""

    def __init__(
        self,
        root: Path,
        sizes: dict[str, int],
        chunk_size: int = 4096,
        store: Store | None = None,
        object_lock_days: int | None = None,
    ) -> None:
        self.root = root
        self.store = store or open_store(str(root / "repository"), create=True)
        self.trust = Trust(root / "trust")
        self.repository, self.recovery_key = Repository.create(
            self.store, SECRET, self.trust, chunk_size=chunk_size, object_lock_days=object_lock_days
        )
        self.guest = RamGuest("guest", {t: RamDisk(bytearray(s)) for t, s in sizes.items()})
        self.host = RamHost(self.guest)
        self.options = BackupOptions(workers=2)
        self.kept: dict[str, dict[str, bytes]] = {}
        self._restores = 0

    def disk(self, target: str = "vda") -> RamDisk:
        return self.guest.disks[target]

    def backup(self, **options: Any) -> PointSummary:
        host: Any = self.host
        point = backup(host, self.repository, "guest", replace(self.options, **options), Silent())
        self.kept[point.id] = {t: bytes(d.data) for t, d in self.guest.disks.items()}
        return point

    def backup_guest(self, name: str) -> PointSummary:
        host: Any = self.host
        return backup(host, self.repository, name, self.options, Silent())

    def reopen(self) -> None:
        self.repository = Repository.open(self.store, SECRET, self.trust)

    def points(self) -> list[Point]:
        return self.repository.read_points().points

    def restored(self, point: Point) -> dict[str, bytes]:
        self._restores += 1
        folder = self.root / f"restore{self._restores}"
        made = restore(self.repository, point, RestoreOptions(folder, "raw", workers=2), Silent())
        found = {f.target: f.path.read_bytes() for f in made.files}
        for file in made.files:
            file.path.unlink()
        return found

    def check_all(self) -> None:
        """Every kept point is there and restores as it was; verify finds nothing."""
        points = {p.id: p for p in self.points()}
        assert set(points) == set(self.kept)
        for point_id, disks in self.kept.items():
            found = self.restored(points[point_id])
            assert {t: sha(d) for t, d in found.items()} == {t: sha(d) for t, d in disks.items()}, point_id
        assert self.verify().damaged == ()

    def check_all_but_damaged(self, damaged: Iterable[str]) -> None:
        """Every kept point restores as it was, but those: they fail, and verify names just them."""
        broken = set(damaged)
        for point in self.points():
            if point.id in broken:
                with pytest.raises(DamageError):
                    self.restored(point)
            else:
                assert self.restored(point) == self.kept[point.id]
        self.reopen()
        assert {p for damage in self.verify().damaged for p in damage.points} == broken

    def verify(self, read_data: float | None = 1.0) -> VerifySummary:
        return verify(self.repository, None, read_data, Silent())


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
