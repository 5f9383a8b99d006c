"""Block devices on files: loop devices, and logical volumes on one."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import machine

_EXTENT = 4 << 20  # bytes: LVM's unit, and as much again for what it notes


class NoDeviceError(Exception):
    """None is to be had here; the message says why."""


@contextlib.contextmanager
def loop_device(path: Path, size: int) -> Iterator[str]:
    """A block device on a new file. Raises NoDeviceError."""
    with path.open("wb") as file:
        file.truncate(size)
    device = _run("losetup", "--find", "--show", str(path))
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def logical_volume(path: Path, size: int) -> Iterator[str]:
    """A volume of LVM, alone in a group on a new file. Raises NoDeviceError where the device mapper is not there."""
    _run("dmsetup", "ls")
    group = f"{machine.PREFIX}{secrets.token_hex(4)}"
    with loop_device(path, size + 2 * _EXTENT) as device:
        _run("vgcreate", "--quiet", group, device)
        try:
            _run("lvcreate", "--quiet", "--yes", "--wipesignatures", "n", "--name", "disk", "--size", f"{size}b", group)
            yield f"/dev/{group}/disk"
        finally:
            subprocess.run(["vgremove", "--quiet", "--force", group], check=True, capture_output=True)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoDeviceError(f"{command[0]} is not installed") from None
    if done.returncode:
        raise NoDeviceError(f"{command[0]}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()
