"""Fresh mount, network and process namespaces, in which no libvirt runs: the machine's own is not touched.

Who restarts or kills libvirtd does it here: other tests, and people, use the machine's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

_SETUP = """set -e
mount -t tmpfs tmpfs /mnt
cp -a /etc/libvirt /mnt/etc-libvirt
mount --bind /mnt/etc-libvirt /etc/libvirt
for folder in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do mount -t tmpfs tmpfs $folder; done
"$@" || exit 1   # not exec: as process 1 the shell reaps the daemons
exit 0
"""


def python(*arguments: str) -> dict[str, Any]:
    """What `subprocess.run` takes to run this Python there; all that it started ends with it."""
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child",
               "sh", "-c", _SETUP, "sh", sys.executable, *arguments]  # fmt: skip
    return {"args": command, "cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
