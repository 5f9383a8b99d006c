"""qemu-img, run."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmbackup.engine.images.target_errors import tool_error
from vmbackup.errors import TargetError


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
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL, pass_fds=fds,
            env={**os.environ, "LC_ALL": "C"},  # what it complains of is looked at
        )  # fmt: skip
    except FileNotFoundError:
        raise TargetError(f"{command[0]} is not installed", "apt install qemu-utils") from None
    if done.returncode:
        raise tool_error(path, done.stderr.strip())
