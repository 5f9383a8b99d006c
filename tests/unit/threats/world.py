"""A repository of a few guests, in a bucket with object lock or without, and who has got hold of something of it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from tests.unit.collection.steps import MemoryStore
from tests.unit.engine.kit import RamKit
from vmbackup.repository import Repository, enrolling
from vmbackup.repository.trust import Trust
from vmbackup.repository.writers import WriterKeys
from vmbackup.storage_backends import DeleteRefused, ObjectMissing

LOCK_DAYS = 30
DAY = 86400.0


class Bucket(MemoryStore):
    """What is locked is deleted by nobody before its time, whatever key he has (real ones: tests/real/storage)."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.time()
        self.locked: dict[str, float] = {}

    def lock(self, key: str, seconds: float) -> float:
        if key not in self.objects:
            raise ObjectMissing(key)
        self.locked[key] = max(self.locked.get(key, 0.0), self.now + seconds)
        return self.locked[key]

    def delete(self, key: str) -> None:
        if self.locked.get(key, 0.0) > self.now:
            raise DeleteRefused(key, self.locked[key])
        super().delete(key)

    def wipe(self) -> None:
        """All that a thief with an access key that deletes can do."""
        for key in list(self.objects):
            try:
                self.delete(key)
            except DeleteRefused:
                continue


class Kit(RamKit):
    """Three restore points of a guest; `bucket` is the store."""

    def __init__(self, root: Path, *, locked: bool) -> None:
        store: Any = Bucket()
        self.bucket: Bucket = store
        super().__init__(root, {"vda": 64 << 10}, store=store, object_lock_days=LOCK_DAYS if locked else None)
        for seed in range(3):
            self.change(seed)
            self.backup()

    def change(self, seed: int) -> None:
        self.disk().write(seed % 4 * 8192, random.Random(seed).randbytes(8192))

    def enrolled(self, name: str, role: str = "backup", group: str = "default") -> WriterKeys:
        made = enrolling.new_writer(self.repository, name, group, role)
        enrolling.enrol(self.repository, made)
        return made

    def thief(self, keys: WriterKeys) -> Repository:
        """Somebody with a writer's key file, who asks nobody whether he may."""
        return Thief.open(self.store, keys, Trust(None))


class Thief(Repository):
    """A program that heeds no rule which a program could leave out."""

    def check_enrolled(self) -> None:
        pass

    def check_may_write(self, group: str | None = None) -> None:
        pass

    def check_may_collect(self, group: str | None = None) -> None:
        pass
