"""A user's own libvirt (qemu:///session): everything in a folder of his, no root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from . import machine

START_TIMEOUT = 60.0   # seconds


class UserSession:
    """Runs from entering to leaving as QEMU's user; `folder` is a new one of his.

    `connection` is root's way into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection: Any = None
        self._daemon: subprocess.Popen[bytes] | None = None
        uid, gid = machine.qemu_user()
        environment = [f"{name}={value}" for name, value in self._environment().items()]
        as_user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
        self.before: Sequence[str] = ["env", *environment, *as_user]
        """What goes before a command of the user's."""

    @property
    def run_folder(self) -> Path:
        """Where libvirt has the pid files of its domains: with `qemu/` below it."""
        return self.folder / "run/libvirt"

    def _environment(self) -> dict[str, str]:
        places = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
        return {"HOME": str(self.folder)} | {name: f"{self.folder}/{place}" for name, place in places.items()}

    def __enter__(self) -> Self:
        import libvirt

        for name in ("run", "config", "cache"):
            path = self.folder / name
            path.mkdir(mode=0o700)
            os.chown(path, *machine.qemu_user())
        with (self.folder / "log").open("wb") as log:
            self._daemon = subprocess.Popen([*self.before, machine.program("libvirtd")], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.connection = libvirt.open(f"qemu+unix:///session?socket={self.run_folder}/libvirt-sock")
                return self
            except libvirt.libvirtError:
                if self._daemon.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        assert self._daemon is not None
        self.connection.close()
        self._daemon.send_signal(signal.SIGTERM)
        self._daemon.wait(START_TIMEOUT)
        shutil.rmtree(self.folder)
