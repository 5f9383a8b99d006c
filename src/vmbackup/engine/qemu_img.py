"""qemu-img, run."""

import json
import subprocess
from pathlib import Path

from vmbackup.errors import TargetError


def image_info(path: Path) -> dict[str, object]:
    """What qemu-img says of an image."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise TargetError(f"qemu-img cannot read {path}: {done.stderr.strip()}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def run_tool(command: list[str], path: Path) -> None:
    """Runs a tool that makes `path`. Raises TargetError."""
    try:
        done = subprocess.run(command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise TargetError(f"{command[0]} is not installed", "apt install qemu-utils") from None
    if done.returncode:
        raise TargetError(f"cannot make {path}: {done.stderr.strip()}")
