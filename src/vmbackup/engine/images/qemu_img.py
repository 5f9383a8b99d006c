"""qemu-img, run."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmbackup.engine.images.target_errors import tool_error
from vmbackup.errors import TargetError

# Of a QEMU that makes a key for LUKS, on a fast machine, now and then: it takes no CPU time for an error (up to 9.2).
_TOO_FAST = "Unable to get accurate CPU usage"
_TRIES = 20


def image_info(path: Path) -> dict[str, Any]:
    """What qemu-img says of an image. Raises TargetError."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise TargetError(f"qemu-img cannot read {path}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def has_data_file(path: Path) -> bool:
    """Whether a qcow2 keeps its data in a file of its own. Raises TargetError."""
    return bool(image_info(path).get("format-specific", {}).get("data", {}).get("data-file"))


def run_tool(command: Sequence[str], path: Path, fds: Sequence[int] = ()) -> None:
    """Runs a tool that makes `path`; it inherits `fds`. Raises TargetError."""
    for _ in range(_TRIES):
        try:
            done = subprocess.run(
                command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL, pass_fds=fds,
                env={**os.environ, "LC_ALL": "C"},  # what it complains of is looked at
            )  # fmt: skip
        except FileNotFoundError:
            raise TargetError(f"{command[0]} is not installed", "apt install qemu-utils") from None
        if done.returncode == 0:
            return
        if _TOO_FAST not in done.stderr:
            break
    raise tool_error(path, done.stderr.strip())
