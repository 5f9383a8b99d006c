"""qemu-img, run."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmbackup.errors import TargetError

_SOUND = (0, 3)  # exit codes of qemu-img check: no errors, clusters that nothing uses


def image_info(path: Path) -> dict[str, object]:
    """What qemu-img says of an image."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=False, text=True
    )
    if done.returncode:
        raise TargetError(f"qemu-img cannot read {path}: {done.stderr.strip()}")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def run_tool(command: Sequence[str], path: Path, fds: Sequence[int] = ()) -> None:
    """Runs a tool that makes `path`; it inherits `fds`. Raises TargetError."""
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL, pass_fds=fds
        )
    except FileNotFoundError:
        raise TargetError(f"{command[0]} is not installed", "apt install qemu-utils") from None
    if done.returncode:
        raise TargetError(f"cannot make {path}: {done.stderr.strip()}")


def check_qcow2(path: Path, *, repair_leaks: bool) -> None:
    """Raises TargetError for an image whose tables are damaged: a write to it could destroy other data.

    `repair_leaks` gives back clusters that a writer which was killed has left unused.
    """
    command = ["qemu-img", "check", "-q", "-f", "qcow2", *(["-r", "leaks"] if repair_leaks else []), str(path)]
    done = subprocess.run(command, capture_output=True, check=False, text=True, stdin=subprocess.DEVNULL)
    if done.returncode not in _SOUND and " lock" not in done.stderr:  # who has it is told by who opens it next
        told = (done.stderr.strip().splitlines() or ["qemu-img check fails"])[-1]
        raise TargetError(f"the image {path} is damaged: {told}", "restore to a new image with --output")
