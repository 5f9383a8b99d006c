"""A file of ours is opened to QEMU's user and to nobody else, with the power to give files away and without."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmbackup.hypervisor.tidy import owners

QEMU, OTHER = 64055, 64056
TRY = """
import os, socket
os.setgroups([]); os.setgid({0}); os.setuid({0})
socket.socket(socket.AF_UNIX).connect({1!r})
"""
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def may_connect(user: int, path: Path) -> bool:
    command = [sys.executable, "-c", TRY.format(user, str(path))]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody passes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.mark.parametrize("gives_away", [True, False])
def test_a_socket(open_folder: Path, monkeypatch: pytest.MonkeyPatch, gives_away: bool) -> None:
    """A service that is shut in has no CAP_CHOWN, and gives the right by an access list."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = open_folder / "socket"
    if not gives_away:
        monkeypatch.setattr(os, "chown", refuse)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert not may_connect(QEMU, path)
        owners.let_in(path, (QEMU, QEMU))
        assert may_connect(QEMU, path)
        assert not may_connect(OTHER, path)
    assert path.stat().st_uid == (QEMU if gives_away else 0)
