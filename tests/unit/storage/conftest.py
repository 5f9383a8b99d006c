"""A local store, a small file system, and what they hold."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vmbackup.storage_backends import (
    Store,
    open_store,
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a tmpfs: run as root")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "new parent" / "store"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(f"file://{root}", create=True)


@pytest.fixture
def overwrite(root: Path) -> Callable[[str, bytes], None]:
    def write(key: str, data: bytes) -> None:
        path = root / key
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    return write


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def every_file(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
