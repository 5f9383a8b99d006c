"""kill -9 of a restore: nothing of it goes on, nothing half-written has a name; the same command goes on with it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.engine.kit import RamKit

pytestmark = pytest.mark.real
MIB = 1 << 20
SIZE = 192 * MIB
SECONDS = 60.0
# Fetched after a kill at two thirds: what lay in tables that QEMU had not written yet is lost with it.
MOST = SIZE * 0.7
CONFIG = """
[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/passphrase"
[host]
cache_dir = "{folder}/cache"
[daemon]
state_dir = "{folder}/state"
"""
# The command itself, but that what was written is synced all the time, and that it stops once two thirds are.
PROGRAM = """
import os, sys, threading
from vmbackup.cli import main
from vmbackup.engine.images import direct_qcow2
from vmbackup.engine.images import nbd_target
from vmbackup.engine.restore import flat as restore
left = iter(range(int(sys.argv.pop(1))))
for kind in (nbd_target.NbdWriter, direct_qcow2._DirectQcow2Writer):
    def stopping(self, offset, pieces, write=kind.write):
        if next(left, None) is None:
            os.write(2, b"late\\n")  # at once: two threads come here
            threading.Event().wait()
        write(self, offset, pieces)
    kind.write = stopping
options = restore.RestoreOptions.__init__
restore.RestoreOptions.__init__ = lambda self, *args, **named: options(self, *args, **{"sync_seconds": 0, **named})
main()
"""


def servers(image: Path) -> list[str]:
    """The qemu-nbd processes that hold an image."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"qemu-nbd") and any(str(image).encode() in word for word in words):
            found.append(process.name)
    return found


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    made = RamKit(tmp_path, {"vda": SIZE}, chunk_size=64 << 10)
    made.disk().write(0, random.Random(1).randbytes(SIZE))
    made.backup()
    (tmp_path / "passphrase").write_text("a passphrase for tests")
    (tmp_path / "passphrase").chmod(0o600)
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path))
    return made


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--config", str(folder / "config.toml"), "--json", "restore", "guest", *more]


def kill_late(folder: Path, *more: str) -> int:
    """Starts the restore, and kills it once two thirds are written; gives the number of its process."""
    command = [sys.executable, "-c", PROGRAM, "128", *arguments(folder, *more)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "late\n":
                break
        else:
            pytest.fail("the restore ended before it could be killed")
        process.send_signal(signal.SIGKILL)
    return process.pid


def go_on(folder: Path, *more: str) -> tuple[dict[str, Any], str]:
    """The same command, to its end: what it made, and what it told."""
    command = [sys.executable, "-m", "vmbackup.cli", *arguments(folder, *more)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["files"][0], done.stderr


def content(path: Path, folder: Path) -> bytes:
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(folder / "raw")], check=True)
    subprocess.run(["qemu-img", "check", "-q", str(path)], check=True)
    return (folder / "raw").read_bytes()


def test_a_new_image(kit: RamKit, tmp_path: Path) -> None:
    """What was written is not fetched again; nothing is left beside the image."""
    folder = tmp_path / "restored"
    kill_late(tmp_path, "--output", str(folder))
    assert sorted(os.listdir(folder)) == ["vda.qcow2.partial", "vda.qcow2.partial.json"]
    file, told = go_on(tmp_path, "--output", str(folder))
    assert f"going on with {folder}/vda.qcow2.partial" in told
    assert 0 < file["fetched_bytes"] < MOST
    assert sorted(os.listdir(folder)) == ["domain.xml", "vda.qcow2"]
    assert content(folder / "vda.qcow2", tmp_path) == kit.disk().data


def test_an_existing_image(kit: RamKit, tmp_path: Path) -> None:
    """It is half written, and nothing holds it; the same command reads what is there, and goes on."""
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(SIZE)], check=True)
    killed = kill_late(tmp_path, "--to", f"vda={image}")
    assert len(os.listdir(tmp_path / "state/restores")) == 1
    left = list(Path(tempfile.gettempdir()).glob(f"vmbackup-restore-{killed}-*"))
    assert len(left) == 1
    deadline = time.monotonic() + SECONDS
    while servers(image):
        assert time.monotonic() < deadline, "qemu-nbd goes on without its restore"
        time.sleep(0.05)
    file, told = go_on(tmp_path, "--to", f"vda={image}")
    assert f"{image} is half written by the same restore" in told
    assert 0 < file["fetched_bytes"] < MOST
    assert content(image, tmp_path) == kit.disk().data
    assert os.listdir(tmp_path / "state/restores") == []
    assert not left[0].exists()
