"""A run in a process of its own, for tests that kill it: `python -P victim.py FOLDER SCRATCH STATE DOMAIN STOP`.

It writes FOLDER/anchor.json when it "commits" and goes on with runs until it is killed, or stops where STOP says:
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


def main(folder: Path, scratch: str, state: str, name: str, stop: str) -> None:
    """Runs for ever."""
    path = folder / "anchor.json"
    with Host.open("qemu:///system", scratch_dir=scratch, state_dir=state) as host:
        while True:
            anchor = Anchor(**json.loads(path.read_text())) if path.exists() else None
            session = f"{int(time.time() * 1000):012x}{secrets.token_hex(10)}"
            domain = host.domain(name)
            with host.begin(domain, repository_id="0123abcd", session=session, parent=anchor) as job:
                reached("begun", stop)
                for disk in job.disks:
                    list(disk.extents())
                reached("read", stop)
                job.seal()
                reached("sealed", stop)
                new = path.with_suffix(".new")
                new.write_text(json.dumps(asdict(job.anchor)) if job.anchor else "")
                os.replace(new, path)
                reached("committed", stop)
                job.finish(committed=True)


def reached(where: str, stop: str) -> None:
    """Says so, and stays there if told."""
    print(where, flush=True)
    while where == stop:
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:6])
