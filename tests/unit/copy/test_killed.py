"""kill -9 of `vmbackup copy` at many moments: the next one takes it up, and all is as it was."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.copy.pair import Pair, ReplicaPair
from tests.unit.engine.kit import RamKit
from vmbackup.repository.collect import PruneOptions, prune

MIB = 1 << 20
SEED = 20261124
CONFIG = """\
[repositories.here]
url = "file://{folder}/repository"
passphrase_file = "{folder}/passphrase"

[repositories.there]
url = "file://{folder}/there"
passphrase_file = "{folder}/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
"""


class Program:
    """`vmbackup` in processes of its own, on two repositories in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        secret = folder / "passphrase"
        secret.write_text("a passphrase for tests")
        secret.chmod(0o600)

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "vmbackup.cli", "--config", str(self.folder / "config.toml"), "--json", *args]

    def json(self, *args: str) -> dict[str, Any]:
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def objects(self) -> list[Path]:
        """All whole objects of the repository that is copied to."""
        return [p for p in (self.folder / "there").rglob("*") if p.is_file() and not p.name.startswith(".")]

    def packs(self) -> int:
        """Bytes of the data packs there."""
        return sum(p.stat().st_size for p in self.objects() if "/data/" in str(p))

    def kill(self, *args: str, objects: int, then: float) -> None:
        """A run that dies `then` seconds after it has stored so many objects, if it has not ended before."""
        before = len(self.objects())
        pipe = subprocess.PIPE
        with subprocess.Popen(self.command(*args), stdout=pipe, stderr=pipe, text=True) as process:
            while process.poll() is None and len(self.objects()) < before + objects:
                time.sleep(0.002)
            time.sleep(then)
            process.kill()
            _, errors = process.communicate()
        assert "Traceback" not in errors, errors


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.torture)])
@pytest.mark.parametrize("kind", [Pair, ReplicaPair])
def test_killed_copies(tmp_path: Path, kind: type[Pair], kills: int) -> None:
    """What was stored is found again: hardly more is stored than without the kills."""
    chance = random.Random(SEED)
    kit = RamKit(tmp_path, {"vda": 48 * MIB}, 65536)
    for length in (40 * MIB, 3 * MIB):
        kit.disk().write(chance.randrange(8 * MIB), chance.randbytes(length))
        kit.backup()
    pair = kind(kit, chunk_size=65536)
    program = Program(tmp_path)
    for _ in range(kills):
        objects, then = chance.randrange(1, 8), chance.random() / 20
        program.kill("copy", "--from", "here", "--to", "there", objects=objects, then=then)
    done = program.json("copy", "--from", "here", "--to", "there")
    assert len(done["copied"]) + done["skipped"] == 2
    pair.check()
    assert program.packs() < 48 * MIB + kills * 33 * MIB
    prune(pair.there, PruneOptions())
    assert program.packs() < 48 * MIB
    assert [p for p in program.objects() if "/sessions/" in str(p)] == []
