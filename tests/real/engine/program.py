"""`vmbackup` as an operator has it: processes, with a configuration, repository, state and scratch of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

CONFIG = """\
[libvirt]
uri = "{uri}"
scratch_dir = "{scratch}"

[repositories.local]
url = "file://{repository}"
passphrase_file = "{folder}/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
"""


@dataclass
class Program:
    """What it keeps lies below `folder`; `repository` and `scratch` may be elsewhere."""

    folder: Path
    scratch: Path
    repository: Path
    uri: str = "qemu:///system"

    @classmethod
    def make(cls, folder: Path, scratch: Path, repository: Path | None = None) -> Self:
        """With a new repository."""
        program = cls(folder, scratch, repository or folder / "repository")
        program.configure()
        program.json("init")
        return program

    def configure(self) -> None:
        """Writes the configuration file."""
        path = self.folder / "config.toml"
        places = {"uri": self.uri, "scratch": self.scratch, "repository": self.repository, "folder": self.folder}
        path.write_text(CONFIG.format(**places))
        path.chmod(0o600)

    def arguments(self, *args: str) -> list[str]:
        return ["--config", str(self.folder / "config.toml"), *args]

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "vmbackup.cli", *self.arguments(*args)]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """One run in a process; none ends with a traceback."""
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def json(self, *args: str, code: int = 0) -> dict[str, Any]:
        """The JSON document of a run that ends with this exit code."""
        done = self.run("--json", *args)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def refusal(self, *args: str, code: int, says: str) -> str:
        """Runs it twice, for people and as JSON: the exit code, one sentence that has `says` in it, and one hint."""
        done = self.run(*args)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        lines = done.stderr.splitlines()
        assert len(lines) == 2, done.stderr
        assert lines[0].startswith("error: "), done.stderr
        assert says in lines[0], done.stderr
        assert lines[1].startswith("       "), done.stderr
        assert done.stdout == "", done.stdout
        error = self.json(*args, code=code)["error"]
        assert set(error) >= {"kind", "message", "hint", "exit_code"}
        assert error["exit_code"] == code
        assert says in error["message"]
        assert error["hint"], error
        return str(error["kind"])
