"""The public command `vmbackup`, as an operator runs it, with a configuration and a repository of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

STOP_TIMEOUT = 60.0   # seconds that an interrupted vmbackup gets to put things right

CONFIG = """\
[libvirt]
uri = "qemu:///system"
scratch_dir = "{folder}/scratch"

[repositories.local]
url = "file://{folder}/repository"
passphrase_file = "{folder}/secrets/passphrase"

[host]
cache_dir = "{folder}/cache"

[daemon]
state_dir = "{folder}/state"
"""


class CliError(Exception):
    """vmbackup ended with an error; the message is its own."""


class Cli:
    """Runs vmbackup with everything it keeps below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.repository = folder / "repository"
        self._program = Path(sys.executable).with_name("vmbackup")
        (folder / "secrets").mkdir(mode=0o700)
        self.config.write_text(CONFIG.format(folder=folder))

    def run(self, *arguments: str) -> dict[str, Any]:
        """Runs `vmbackup --json ARGUMENTS` and returns its document. Raises CliError.

        An interruption is passed on, and vmbackup waited for: it aborts its job and thaws the guest.
        """
        command = [str(self._program), "--config", str(self.config), "--json", "--quiet", *arguments]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                output, errors = process.communicate()
            except BaseException:
                process.send_signal(signal.SIGTERM)
                process.wait(STOP_TIMEOUT)
                raise
        try:
            document: dict[str, Any] = json.loads(output)
        except ValueError:
            document = {}
        if process.returncode:
            raise CliError(f"vmbackup {' '.join(arguments)}: {_complaint(document) or errors.strip()} "
                           f"(exit code {process.returncode})")
        return document


def _complaint(document: dict[str, Any]) -> str:
    """What an error's document says, or that of the domains that failed."""
    errors = [document["error"]] if "error" in document else []
    texts = [f"{error['message']} {error['hint'] or ''}" for error in errors]
    texts += [f"{failed['error']} {failed['hint'] or ''}" for failed in document.get("failed", [])]
    return "; ".join(text.strip() for text in texts)
