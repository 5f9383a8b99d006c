"""A guest of any size whose every chunk is new, and a store that keeps sizes alone.

An eighth of each chunk is random, the rest compresses away, so that 4 TiB take less than an hour.

`python -m tests.torture.synthetic BYTES FOLDER` backs one up and prints JSON: peak memory, seconds, stored bytes.
"""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ram import RamDisk, RamGuest, RamHost
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.hypervisor.source import DiskInfo
from vmbackup.nbd.extents import Extent, Kind
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.run import PARTIAL_BYTES
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store

CHUNK = 64 << 10
BASE = (random.Random(1).randbytes(CHUNK // 8) + bytes(CHUNK - CHUNK // 8)) * 16


class SizeStore:
    """Data packs are counted and forgotten; all else goes to a folder."""

    def __init__(self, folder: Path) -> None:
        self._inner = open_store(str(folder), create=True)
        self.url, self.place = self._inner.url, self._inner.place
        self.packs = self.bytes = 0

    def put(self, key: str, data: Any) -> None:
        if key.startswith("data/"):
            self.packs += 1
            self.bytes += len(data)
        else:
            self._inner.put(key, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Reader:
    def __init__(self) -> None:
        self._cookies: list[int] = []

    outstanding = 0

    def submit(self, offset: int, buffer: memoryview) -> int:
        buffer[:] = BASE[: len(buffer)]
        for at in range(0, len(buffer), CHUNK):
            struct.pack_into(">Q", buffer, at, offset + at + 1)
        self._cookies.append(offset)
        return offset

    def wait(self) -> int:
        return self._cookies.pop(0)

    def close(self) -> None:
        self._cookies.clear()


class SyntheticSource:
    mode, reason = "full", None

    def __init__(self, size: int) -> None:
        self.size = size
        self.info = DiskInfo("vda", "qcow2", size, "/synthetic", None, "virtio", {})

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[Extent]:
        stop = self.size if end is None else end
        for at in range(start, stop, 1 << 31):
            yield Extent(at, min(1 << 31, stop - at), Kind.DATA)

    def open_reader(self) -> _Reader:
        return _Reader()


def main(size: int, folder: Path) -> None:
    store: Any = SizeStore(folder / "repository")
    repository, _ = Repository.create(store, Secret.passphrase("x" * 40, random=True), Trust(None))
    host: Any = RamHost(RamGuest("synthetic", {"vda": RamDisk(bytearray(1))}))
    begin = host.begin

    def synthetic(*args: Any, **kwargs: Any) -> Any:
        job = begin(*args, **kwargs)
        job.disks = [SyntheticSource(size)]
        job.finish = lambda committed: None
        return job

    host.begin = synthetic
    started = time.monotonic()
    partial = int(os.environ.get("VMBACKUP_PARTIAL_BYTES", str(PARTIAL_BYTES)))
    point = backup(host, repository, "synthetic", BackupOptions(workers=2, partial_bytes=partial), Silent())
    found = repository.read_points()
    print(
        json.dumps(
            {
                "bytes": size,
                "seconds": round(time.monotonic() - started, 1),
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "packs": store.packs,
                "stored_bytes": store.bytes,
                "read_bytes": point.disks[0].read_bytes,
                "partials": len(found.partials),
                "map_bytes": sum(e.size for e in store.list("meta/")),
                "point_bytes": sum(e.size for e in store.list("points/")),
                "index_bytes": sum(e.size for e in store.list("index/")),
            }
        )
    )
    os.sync()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
