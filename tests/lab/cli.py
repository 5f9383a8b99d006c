"""The public command `vmbackup`, as an operator runs it, with a configuration and a repository of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
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
    """Runs vmbackup with everything it keeps below `folder`.

    `before` goes before the command (SecondLibvirt.beside); `home`: the folder of the Cli whose repository it shares.
    """

    def __init__(
        self, folder: Path, *, before: Sequence[str] = (), home: Path | None = None, uri: str = "qemu:///system"
    ) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.repository = (home or folder) / "repository"
        self._program = [*before, *self.program()]
        if home is None:
            (folder / "secrets").mkdir(mode=0o700)
        text = CONFIG.format(folder=folder).replace("qemu:///system", uri)
        for name in ("repository", "secrets") if home else ():
            text = text.replace(f"{folder}/{name}", f"{home}/{name}")
        self.config.write_text(text)

    @staticmethod
    def program() -> list[str]:
        """The command itself."""
        return [str(Path(sys.executable).with_name("vmbackup"))]

    def command(self, *arguments: str) -> list[str]:
        """The whole command line of `vmbackup --json ARGUMENTS`."""
        return [*self._program, "--config", str(self.config), "--json", "--quiet", *arguments]

    def run(self, *arguments: str, ok: Collection[int] = (0,)) -> dict[str, Any]:
        """Runs `vmbackup --json ARGUMENTS` and returns its document. Raises CliError for an exit code not in `ok`.

        An interruption is passed on, and vmbackup waited for: it aborts its job and thaws the guest.
        """
        with subprocess.Popen(self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
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
        if process.returncode not in ok:
            raise CliError(f"vmbackup {' '.join(arguments)}: {_complaint(document) or errors.strip()} "
                           f"(exit code {process.returncode})")
        return document


def _complaint(document: dict[str, Any]) -> str:
    """What an error's document says, or that of the domains that failed."""
    errors = [document["error"]] if "error" in document else []
    texts = [f"{error['message']} {error['hint'] or ''}" for error in errors]
    texts += [f"{failed['error']} {failed['hint'] or ''}" for failed in document.get("failed", [])]
    return "; ".join(text.strip() for text in texts)
