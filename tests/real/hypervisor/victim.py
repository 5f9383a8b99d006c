"""A run in a process of its own, for tests that kill it: `python -P victim.py FOLDER SCRATCH STATE DOMAIN STOP`.

It writes FOLDER/point.json when it "commits" and goes on with runs until it is killed, or stops where STOP says:
"begun", "read", "sealed", "committed".
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from dataclasses import asdict
from pathlib import Path

from vmbackup.hypervisor import Anchor, Host
from vmbackup.hypervisor.source import DiskInfo


def main(folder: Path, scratch: str, state: str, name: str, stop: str) -> None:
    """Runs for ever."""
    path = folder / "point.json"
    with Host.open("qemu:///system", scratch_dir=scratch, state_dir=state) as host:
        while True:
            anchor, disks = read_point(path)
            session = f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
            domain = host.domain(name)
            with host.begin(domain, repository_id="0123abcd", session=session, parent=anchor, earlier=disks) as job:
                reached("begun", stop)
                for disk in job.disks:
                    list(disk.extents())
                reached("read", stop)
                job.seal()
                reached("sealed", stop)
                new = path.with_suffix(".new")
                assert job.anchor
                infos = {disk.info.target: asdict(disk.info) for disk in job.disks}
                new.write_text(json.dumps({"anchor": asdict(job.anchor), "disks": infos}))
                os.replace(new, path)
                reached("committed", stop)
                job.finish(committed=True)


def read_point(path: Path) -> tuple[Anchor | None, dict[str, DiskInfo]]:
    """The anchor and the disks of the last committed run."""
    if not path.exists():
        return None, {}
    point = json.loads(path.read_text())
    return Anchor(**point["anchor"]), {target: DiskInfo(**info) for target, info in point["disks"].items()}


def reached(where: str, stop: str) -> None:
    """Says so, and stays there if told."""
    print(where, flush=True)
    while where == stop:
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:6])
