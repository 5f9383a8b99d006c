"""kill -9 of a restore: nothing of it goes on, and the next one tidies up."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.unit.engine.kit import RamKit

pytestmark = pytest.mark.real
MIB = 1 << 20
SECONDS = 30.0
CONFIG = """
[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/passphrase"
[host]
cache_dir = "{folder}/cache"
[daemon]
state_dir = "{folder}/state"
"""


def servers(image: Path) -> list[str]:
    """The qemu-nbd processes that hold an image."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-nbd") and str(image).encode() in words:
            found.append(process.name)
    return found


def test_nothing_goes_on(tmp_path: Path) -> None:
    """qemu-nbd ends with the restore that started it; its folder goes with the next restore."""
    kit = RamKit(tmp_path, {"vda": 96 * MIB}, chunk_size=64 << 10)
    kit.disk().write(0, random.Random(1).randbytes(96 * MIB))
    kit.backup()
    (tmp_path / "passphrase").write_text("a passphrase for tests")
    (tmp_path / "passphrase").chmod(0o600)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    command = [sys.executable, "-m", "vmbackup.cli", "--config", str(tmp_path / "config.toml"), "restore", "guest"]
    folder = tmp_path / "restored"
    image = folder / "vda.qcow2.partial"
    with subprocess.Popen([*command, "--output", str(folder)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + SECONDS
        while not servers(image):
            assert process.poll() is None, "the restore ended before it could be killed"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
    left = list(Path(tempfile.gettempdir()).glob(f"vmbackup-restore-{process.pid}-*"))
    assert len(left) == 1
    deadline = time.monotonic() + SECONDS
    while servers(image):
        assert time.monotonic() < deadline, "qemu-nbd goes on without its restore"
        time.sleep(0.05)
    subprocess.run([*command, "--output", str(folder)], check=True, stdout=subprocess.DEVNULL)
    assert sorted(path.name for path in folder.iterdir()) == ["domain.xml", "vda.qcow2"]
    assert not left[0].exists()
