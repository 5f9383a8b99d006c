"""A repository of many restore points, written by the repository's own layer, with chunks that nobody reads again.

`python -m tests.torture.scale FOLDER DOMAINS POINTS CHUNKS CHANGED` makes one: each domain has a disk of CHUNKS
chunks and POINTS points an hour apart, each of which but the first changes CHANGED chunks, half of them in one place.
Data packs are kept as files of holes: their names and sizes are there.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from blake3 import blake3

from vmbackup.repository.keys import Secret
from vmbackup.repository.maps import MapUpdater
from vmbackup.repository.nodes import KEEP, Run
from vmbackup.repository.packs import MAX_SLOTS, PackBuilder
from vmbackup.repository.points import Point
from vmbackup.repository.records import DiskRecord
from vmbackup.repository.repository import Repository
from vmbackup.repository.run import Run as WriterRun
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

PASSPHRASE = "a passphrase for tests"
CHUNK = 4096
FIRST = datetime(2026, 11, 1, tzinfo=UTC)


class HoleStore:
    """A folder whose data packs are files of holes: all of an object but its bytes. Nothing waits for a disk."""

    def __init__(self, folder: Path) -> None:
        self._inner = open_store(str(folder), create=True)
        self._folder = folder
        self.url, self.place = self._inner.url, self._inner.place

    def put(self, key: str, data: Any) -> None:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            if key.startswith("data/"):
                file.truncate(len(data))
            else:
                file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Writer:
    """Writes points of guests that have one disk each."""

    def __init__(self, repository: Repository, chunks: int, seed: int = 1) -> None:
        self._repository, self._chunks = repository, chunks
        self._chance = random.Random(seed)
        self._builder = PackBuilder()
        self._id_key = repository.group().chunk_id_key()
        self._content = 0

    def point(self, name: str, number: int, changed: int) -> Point:
        """The point `number` of a guest, `number` hours after the first."""
        guest = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        run = WriterRun.open(self._repository, self._repository.lineage("libvirt", guest), "host")
        old = run.parent.disks[0].root if run.parent else None
        runs = list(self._full(run) if old is None else self._changes(run, changed))
        root = MapUpdater(CHUNK, run.load_node(CHUNK), run.store_node, run.uses).update(old, runs, self._chunks)
        stored = run.stored_bytes
        disk = DiskRecord(
            "vda", "vda", "qcow2", self._chunks * CHUNK, CHUNK, root, "incremental" if old else "full", None,
            changed * CHUNK, changed * CHUNK, stored, {"path": f"/images/{name}.qcow2", "bus": "virtio"},
        )  # fmt: skip
        public = {
            "domain": {"name": name, "uuid": guest}, "source": "libvirt",
            "time": (FIRST + timedelta(hours=number)).isoformat(), "consistency": "filesystem",
            "anchor": {"kind": "libvirt", "checkpoint": f"vmbackup-{name}-{number}", "xml": "<x/>" * 100, "disks": {}},
            "freeze_seconds": 0.05, "quiesce_note": None, "disks": [disk.to_json()], "duration_seconds": 1.0,
            "seal_seconds": 1.0, "versions": {"vmbackup": "0", "libvirt": "9.0.0", "qemu": "7.2.0"}, "warnings": [],
        }  # fmt: skip
        document = {"name": "domain.xml", "type": "libvirt-domain-xml", "data": os.urandom(4000).hex()}
        return run.commit(public, [document])

    def _full(self, run: WriterRun) -> Iterator[Run]:
        return self._store(run, self._chunks)

    def _changes(self, run: WriterRun, changed: int) -> Iterator[Run]:
        """Half of the changes in one place, the others anywhere."""
        start = self._chance.randrange(self._chunks - changed)
        places = {*range(start, start + changed // 2), *self._chance.sample(range(self._chunks), changed // 2)}
        stored = self._store(run, len(places))
        at = 0
        part: Run | None = None
        for place in sorted(places):
            if place > at:
                yield Run(place - at, KEEP, 0, 0)
            part = next(stored) if part is None else part
            yield part._replace(chunks=1)
            part = part._replace(chunks=part.chunks - 1, slot=part.slot + 1) if part.chunks > 1 else None
            at = place + 1
        if at < self._chunks:
            yield Run(self._chunks - at, KEEP, 0, 0)

    def _store(self, run: WriterRun, chunks: int) -> Iterator[Run]:
        """That many new chunks, in packs as full as they get."""
        builder, id_key, rest = self._builder, self._id_key, bytes(CHUNK - 8)
        while chunks:
            count = min(chunks, MAX_SLOTS)
            session = run.begin_pack(builder)
            for _ in range(count):
                self._content += 1
                plain = struct.pack(">Q", self._content) + rest
                builder.add(blake3(plain, key=id_key).digest(), plain)
            number = builder.number
            session.put_pack(builder)
            yield Run(count, session.number, number, 0)
            chunks -= count


def build(repository: Repository, domains: int, points: int, chunks: int, changed: int) -> int:
    """Points of each domain in turn, as a schedule makes them; gives the number of chunks stored."""
    writer = Writer(repository, chunks)
    for number in range(points):
        for domain in range(domains):
            writer.point(f"guest{domain:02}", number, changed)
    return writer._content


def main(folder: Path, domains: int, points: int, chunks: int, changed: int) -> None:
    """Makes the repository FOLDER/repository with a configuration, passphrase and state beside it."""
    store: Any = HoleStore(folder / "repository")
    repository, _ = Repository.create(
        store, Secret.passphrase(PASSPHRASE), Trust(folder / "state" / "repositories"), chunk_size=CHUNK
    )
    (folder / "passphrase").write_text(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    (folder / "config.toml").write_text(
        f'[repositories.local]\nurl = "file://{folder}/repository"\npassphrase_file = "{folder}/passphrase"\n'
        f'[host]\ncache_dir = "{folder}/cache"\n[daemon]\nstate_dir = "{folder}/state"\n'
    )
    print(build(repository, domains, points, chunks, changed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(text) for text in sys.argv[2:]))
