"""A backup of a guest in memory, in a process of its own: `... FOLDER NAME MIB BYTES_PER_SECOND` (0: no limit).

It says "ready", waits for a line, then prints JSON: the times (CLOCK_MONOTONIC) of its first read and of its end, and
bytes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.ram import RamDisk, RamGuest, RamHost
from vmbackup.engine.backup.run import BackupOptions, backup
from vmbackup.engine.pipeline.pace import Limit
from vmbackup.progress import Silent
from vmbackup.repository import Repository
from vmbackup.repository.keys import Secret
from vmbackup.repository.trust import Trust
from vmbackup.storage_backends import open_store


def main(folder: Path, name: str, mib: int, rate: int) -> None:
    store = open_store(str(folder / name), create=True)
    secret = Secret.passphrase("a passphrase for tests", random=True)
    repository, _ = Repository.create(store, secret, Trust(None))
    host: Any = RamHost(RamGuest("guest", {"vda": RamDisk(bytearray(random.randbytes(1 << 20) * mib))}))
    first: list[float] = []
    host.on_read = lambda: first.append(time.monotonic())
    limit = Limit(folder / "pace" / "nightly", rate) if rate else None
    print("ready", flush=True)
    sys.stdin.readline()
    point = backup(host, repository, "guest", BackupOptions(workers=2, limit=limit), Silent())
    print(json.dumps({"first": first[0], "end": max(first), "bytes": point.disks[0].read_bytes}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
