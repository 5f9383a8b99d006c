"""OpenSSH's server at a port of its own on loopback, which root may enter by a key of the lab's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from . import machine

START_TIMEOUT = 30.0   # seconds
CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile {folder}/sshd.pid
"""


class Sshd:
    """Runs from entering to leaving. `before` goes before the server: SecondLibvirt.beside, for one on that host."""

    def __init__(self, folder: Path, before: list[str] | None = None) -> None:
        self.folder, self._before = folder, before or []
        self.key = folder / "key"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = int(taken.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def missing() -> str | None:
        """What lacks for it; None if nothing does."""
        if shutil.which("sshd", path="/usr/sbin:/usr/bin") and shutil.which("ssh"):
            return None
        return "it needs an SSH server and client: apt-get install openssh-server openssh-client"

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o700)
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True)
        shutil.copy(self.folder / "key.pub", self.folder / "authorized")
        (self.folder / "config").write_text(CONFIG.format(port=self.port, folder=self.folder))
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)   # where it locks itself in; else its package's to make
        command = [*self._before, machine.program("sshd"), "-D", "-e", "-f", str(self.folder / "config")]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 5).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(START_TIMEOUT)
        shutil.rmtree(self.folder)
