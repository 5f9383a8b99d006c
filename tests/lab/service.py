"""`vmbackup daemon` as a process, with everything it keeps below one folder: started, asked, signalled, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from .cli import CONFIG

START_TIMEOUT = 90.0   # seconds
STOP_TIMEOUT = 60.0    # seconds: what the service promises


class ServiceError(Exception):
    """The service did not do what it was asked for; the message has the end of its log."""


class Service:
    """The service of `config`, a file that names the control socket and the port below. A context manager."""

    def __init__(self, config: Path, control: Path, port: int, *, environment: dict[str, str] | None = None) -> None:
        self.config, self.control, self.port = config, control, port
        self.log = config.with_name("daemon.log")
        self._environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT + 10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def start(self) -> None:
        """Starts it, and waits until it runs."""
        command = [str(Path(sys.executable).with_name("vmbackup")), "--config", str(self.config), "daemon"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        self.wait_for(lambda: self.status()["state"] == "running", START_TIMEOUT)

    def stop(self) -> int:
        """SIGTERM; gives the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT)

    def status(self) -> dict[str, Any]:
        """GET /status of the control socket."""
        return self.ask("GET", "/status")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Any request to the control socket; an error's document too."""
        with contextlib.closing(_UnixConnection(self.control)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            document: dict[str, Any] = json.loads(connection.getresponse().read())
        return document

    def metrics(self) -> str:
        """GET /metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    def wait_for(self, condition: Callable[[], Any], seconds: float) -> Any:
        """Until the condition gives something true, which is returned. ServiceError."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError, StopIteration, http.client.HTTPException):  # not there yet
                if found := condition():
                    return found
            if self.process is not None and self.process.poll() is not None:
                raise ServiceError(f"the service ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServiceError(f"not within {seconds:.0f} s:\n{self.tail()}")
            time.sleep(0.1)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def free_port() -> int:
    """A port of this machine that nobody listens at, a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


MORE = """\
socket = "{folder}/run/control.sock"
listen = "127.0.0.1:{port}"
{daemon}
{jobs}
"""


def make_service(folder: Path, jobs: str, daemon: str = "") -> Service:
    """A service with a repository of its own, all below `folder`; `jobs`, `daemon`: the rest of its configuration."""
    port = free_port()
    config = folder / "config.toml"
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    (folder / "run").mkdir(exist_ok=True)
    config.write_text(CONFIG.format(folder=folder) + MORE.format(folder=folder, port=port, jobs=jobs, daemon=daemon))
    program = Path(sys.executable).with_name("vmbackup")
    if not (folder / "repository").exists():
        subprocess.run([str(program), "--config", str(config), "init"], check=True, capture_output=True)
    return Service(config, folder / "run" / "control.sock", port)

