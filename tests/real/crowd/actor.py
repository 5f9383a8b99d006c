"""One process of a crowd: it writes, prunes or copies until it is killed.

`python -m tests.real.crowd.actor ROLE NUMBER SEED ENDPOINT URL TARGET FOLDER`. What it does stands in FOLDER, a line
of JSON each, written before it matters: "begin" a digest that may come to be a restore point, "done" one that must be
there, "forget" those that may be gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
import types
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.lab.ceph import USERS
from tests.ram import RamDisk, RamGuest, RamHost
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.care.forget import by_name, forget
from vmbackup.engine.replica.copy import Copier, CopyOptions
from vmbackup.errors import UsageError, VmbackupError
from vmbackup.progress import Silent
from vmbackup.repository import layout
from vmbackup.repository.collect import PruneOptions, prune
from vmbackup.repository.keys import Secret
from vmbackup.repository.repository import Repository
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import S3Settings, Store, StoreError, open_store

SECRET = Secret.passphrase("a passphrase for tests", random=True)
CHUNK, CHUNKS = 4096, 128
HOST = "one host"
DEAD_AFTER = 4.0  # seconds: who is stopped for longer may be taken for dead, and must fail cleanly
_DAY = 86400


def opened(endpoint: str, url: str, state: Path) -> Repository:
    """A repository as a fresh process opens it."""
    return Repository.open(store(endpoint, url), SECRET, Trust(state))


def store(endpoint: str, url: str) -> Store:
    """A place in the lab's bucket."""
    access, secret = USERS["vmbackup"]
    return open_store(url, S3Settings(endpoint, access_key=access, secret_key=secret))


class Actor:
    """What all roles have."""

    def __init__(self, role: str, number: int, seed: int, endpoint: str, url: str, target: str, folder: Path) -> None:
        self.number, self.endpoint, self.url, self.target, self.folder = number, endpoint, url, target, folder
        self.chance = random.Random(f"{role} {number} {seed}")
        self._log = os.open(folder / f"{role}-{number}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def say(self, **what: Any) -> None:
        """A line that is there whatever happens next."""
        os.write(self._log, json.dumps(what).encode() + b"\n")

    def repository(self, url: str = "") -> Repository:
        return opened(self.endpoint, url or self.url, self.folder / "trust")

    def write(self) -> None:
        """Backs a guest of its own up: a part of what it writes all guests have."""
        if self.number < 2:
            _move_clock(_DAY if self.number else -_DAY)
        name = f"guest-{self.number}"
        disk = RamDisk(bytearray(CHUNK * CHUNKS))
        guest = RamGuest(name, {"vda": disk}, str(uuid.uuid5(uuid.NAMESPACE_DNS, name)))
        host: Any = RamHost(guest)
        if self.number < 2:
            host.now = lambda: datetime.now(UTC) + timedelta(days=1 if self.number else -1)
        while True:
            for chunk in self.chance.sample(range(CHUNKS), self.chance.choice([3, 20, 80])):
                disk.write(chunk * CHUNK, self._content())
            sha = hashlib.sha256(disk.data).hexdigest()
            self.say(begin=sha, domain=name)
            options = BackupOptions(workers=1, partial_bytes=self.chance.choice([1 << 16, 1 << 30]))
            point = backup(host, self.repository(), name, options, Silent())
            self.say(done=point.id, sha=sha, domain=name)
            time.sleep(self.chance.uniform(0.5, 2.0))

    def _content(self) -> bytes:
        if self.chance.random() < 0.5:
            return random.Random(f"shared {self.chance.randrange(100)}").randbytes(CHUNK)
        return self.chance.randbytes(CHUNK)

    def prune(self) -> None:
        """Forgets some points and collects; the second one rewrites almost every pack that has a dead slot."""
        while True:
            repository = self.repository()
            if not self.number:
                self.forget(repository)
            below = 0.98 if self.number else 0.7
            report = prune(repository, PruneOptions(wait=20.0, dead_after=DEAD_AFTER, repack_below=below, host=HOST))
            self.say(pruned=report.objects, repacked=report.repacked.packs, waited=len(report.waited_for))

    def forget(self, repository: Repository) -> None:
        """A third of the points."""
        found = repository.read_points()
        chosen = [point for point in found.points if self.chance.random() < 0.3]
        self.say(forget=[point.id for point in chosen])
        forget(repository, by_name(found, chosen, allow_last=True), found.twins)

    def copy(self) -> None:
        """Copies all there is to another realm."""
        while True:
            options = CopyOptions(self.folder / "locks")
            copier = Copier(self.repository(), self.repository(self.target), options, Silent())
            for history in copier.histories():
                done = copier.copy(history, lambda point: self.say(copied=point.id))
                for name, error in done.failed:
                    self.say(copy_failed=f"{name}: {error}")
            time.sleep(0.2)


def _move_clock(seconds: int) -> None:
    """Of all that names sessions: what the store is asked for is signed by the right time, or it would refuse."""
    moved: Any = types.SimpleNamespace(**{name: getattr(time, name) for name in dir(time)})
    moved.time = lambda: time.time() + seconds
    layout.time = moved


def main() -> None:
    role, number, seed, endpoint, url, target, folder = sys.argv[1:]
    actor = Actor(role, int(number), int(seed), endpoint, url, target, Path(folder))
    work = {"writer": actor.write, "pruner": actor.prune, "copier": actor.copy}[role]
    while True:
        try:
            work()
        except (VmbackupError, StoreError) as error:
            actor.say(failed=str(error), kind=type(error).__name__)
            time.sleep(0.1 if not isinstance(error, UsageError) else 0.5)


if __name__ == "__main__":
    main()
