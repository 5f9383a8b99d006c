"""Guests in memory in one repository, and another one that their restore points are copied to."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.unit.engine.kit import SECRET, RamKit, sha
from vmbackup.engine.care.verify import verify
from vmbackup.engine.replica.copy import Copied, Copier, CopyOptions, History
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary, Repository
from vmbackup.repository.points import Point
from vmbackup.repository.replica import make_replica
from vmbackup.repository.repository import PointList
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import Store, open_store

MIB = 1 << 20


def change(kit: RamKit, number: int, length: int = 300_000) -> str:
    """Random bytes at a place of their own, then a backup; gives its id."""
    kit.disk().write(number * 300_000 % (3 * MIB), random.Random(number).randbytes(length))
    return kit.backup().id


def three_points(root: Path) -> RamKit:
    """A guest of two disks with three points."""
    kit = RamKit(root, {"vda": 4 * MIB, "vdb": MIB})
    kit.disk("vdb").write(5000, b"b" * 9000)
    for number in range(3):
        change(kit, number)
    return kit


class Pair:
    """`kit` has the guests; `there` is the other repository."""

    def __init__(self, kit: RamKit, *, chunk_size: int = 4096, place: str = "there") -> None:
        self.kit = kit
        self.store = open_store(str(kit.root / place), create=True)
        self.there = self._made(chunk_size)
        self.copied: list[PointSummary] = []

    def _made(self, chunk_size: int) -> Repository:
        return Repository.create(self.store, SECRET, Trust(None), chunk_size=chunk_size)[0]

    def reopen(self) -> None:
        """As another process does: nothing is cached."""
        self.kit.reopen()
        self.there = Repository.open(self.store, SECRET, Trust(None))

    def copier(self, **options: Any) -> Copier:
        given = {"workers": 2, **options}
        return Copier(self.kit.repository, self.there, CopyOptions(self.kit.root / "locks", **given), Silent())

    def copy(self, *domains: str, **options: Any) -> Copied:
        """Copies; `copied` then has the new points."""
        self.reopen()
        self.copied = []
        copier = self.copier(**options)
        total = Copied()
        for history in copier.histories(domains):
            done = self.of(copier, history)
            total.skipped += done.skipped
            total.failed += done.failed
        return total

    def of(self, copier: Copier, history: History) -> Copied:
        return copier.copy(history, self.copied.append)

    def found(self) -> PointList:
        return self.there.read_points()

    def restored(self, point: Point) -> dict[str, bytes]:
        here, self.kit.repository = self.kit.repository, self.there
        try:
            return self.kit.restored(point)
        finally:
            self.kit.repository = here

    def check(self, *ids: str) -> None:
        """The other repository has these points (all that were kept, unless told), and each restores as it was."""
        self.reopen()
        points = {point.id: point for point in self.found().points}
        assert set(points) == set(ids or self.kit.kept)
        for point_id, point in points.items():
            disks = self.restored(point)
            assert {t: sha(d) for t, d in disks.items()} == {t: sha(d) for t, d in self.kit.kept[point_id].items()}
            assert self.there.documents(point) == {"domain.xml": b"<domain><name>guest</name></domain>"}
        assert verify(self.there, None, 1.0, Silent()).damaged == ()


class ReplicaPair(Pair):
    """The other repository is a replica."""

    def _made(self, chunk_size: int) -> Repository:
        return make_replica(self.kit.repository, self.store, SECRET, Trust(None), "tests")


def size(store: Store) -> int:
    """Bytes of all packs."""
    return sum(entry.size for folder in ("data/", "meta/") for entry in store.list(folder))
