"""Looks into a restored image without booting it and without mounting it: e2fsprogs reads ext4 from a file."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

from . import machine


class FileSystemDamagedError(AssertionError):
    """e2fsck is not content with a restored file system."""


def to_raw(image: Path, raw: Path) -> Path:
    """A sparse raw copy of an image, which e2fsprogs can read."""
    _run("qemu-img", "convert", "-O", "raw", str(image), str(raw))
    return raw


def check_ext4(raw: Path) -> None:
    """Raises FileSystemDamagedError unless the file system is clean, its journal empty (e2fsck -fn)."""
    done = subprocess.run([machine.program("e2fsck"), "-fn", str(raw)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise FileSystemDamagedError(f"{raw}: {done.stdout.strip()[-500:]}")


def hashes(raw: Path, folders: Iterable[str], work: Path) -> dict[str, str]:
    """SHA-256 of each regular file below these folders of an ext4 image, by its path. `work` is an empty folder."""
    for folder in folders:
        _run("debugfs", "-R", f"rdump {folder} {work}", str(raw))
    return {f"/{path.relative_to(work)}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in work.rglob("*") if path.is_file() and not path.is_symlink()}


def _run(name: str, *arguments: str) -> None:
    subprocess.run([machine.program(name), *arguments], check=True, capture_output=True, text=True)
