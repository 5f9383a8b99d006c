"""`vmbackup serve` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any


class Served:
    """The command in a process of its own, as far as its ready line."""

    def __init__(self, config: Path, *args: str) -> None:
        command = [sys.executable, "-m", "vmbackup.cli", "--config", str(config), "serve", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.line = self.process.stdout.readline()

    @property
    def ready(self) -> dict[str, Any]:
        return json.loads(self.line)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


def passphrase_beside(folder: Path) -> None:
    """The passphrase of a RamKit, where the tests' configuration looks for it."""
    secrets = folder / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "passphrase").write_text("a passphrase for tests\n")
    (secrets / "passphrase").chmod(0o600)
