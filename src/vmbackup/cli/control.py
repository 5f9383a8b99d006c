"""The client of the service's control socket."""

import grp
import http.client
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from vmbackup.cli.options import State
from vmbackup.config.load import find, load
from vmbackup.config.models import Daemon
from vmbackup.errors import (
    AccessError,
    ConfigError,
    DamageError,
    NotFoundError,
    ServiceError,
    UsageError,
    VmbackupError,
)

_ANSWER_SECONDS = 10.0
_ACTION_SECONDS = 65.0  # the service asks libvirt first
_LARGEST_ANSWER = 256 << 20  # bytes: 300 guests with 60 restore points each have 1 MB
_SOCKET_KEY = re.compile(r"""^\s*(?:daemon\.)?socket\s*=\s*["'](/[^"']+)["']""", re.MULTILINE)
_ERRORS: Mapping[int, type[VmbackupError]] = {2: UsageError, 4: DamageError, 5: NotFoundError, 6: AccessError}


def socket_path(state: State) -> Path:
    """Where the service listens, by the configuration. ConfigError where the named file is not there.

    A file that is wrong, or that only root may read, must not keep anyone from looking at the service.
    """
    file = find(state.config)
    try:
        return load(file).daemon.socket
    except ConfigError:
        if file is None or not file.exists():
            raise
        return _rough_path(file)


def _rough_path(file: Path) -> Path:
    try:
        named = _SOCKET_KEY.search(file.read_text(errors="replace"))
    except OSError:
        named = None
    return Path(named[1]) if named else Daemon().socket


class Control:
    """Asks the service whose socket is at `path`. Methods raise VmbackupError: the service's own, or ServiceError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def status(self) -> dict[str, Any]:
        """All that the service knows: Snapshot.document()."""
        return self._ask("GET", "/status")

    def runs(self, limit: int, domain: str | None = None) -> list[dict[str, Any]]:
        """The runs that ended last, newest first."""
        query = {"limit": limit} | ({"domain": domain} if domain else {})
        found: list[dict[str, Any]] = self._ask("GET", f"/runs?{urlencode(query)}")["runs"]
        return found

    def run(self, job: str, domains: list[str], *, full: bool) -> list[str]:
        """Ask for backups: the ids of the requests."""
        ids: list[str] = self._ask("POST", "/run", {"job": job, "domains": domains, "full": full})["requests"]
        return ids

    def cancel(self, run: str) -> list[dict[str, Any]]:
        """End the run whose id begins so, with all of its group, or all runs of the job: what they were."""
        ended: list[dict[str, Any]] = self._ask("POST", "/cancel", {"run": run})["runs"]
        return ended

    def _ask(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        seconds = _ANSWER_SECONDS if method == "GET" else _ACTION_SECONDS
        try:
            raw = self._exchange(method, target, body, seconds)
            document = json.loads(raw)
        except (FileNotFoundError, ConnectionRefusedError):
            raise ServiceError("the vmbackup service does not run on this host", _START) from None
        except PermissionError:
            raise self._refused() from None
        except TimeoutError:
            raise ServiceError(f"the vmbackup service has not answered for {seconds:.0f} s", _LOOK) from None
        except (OSError, http.client.HTTPException, ValueError):
            raise ServiceError("the vmbackup service broke off its answer", _LOOK) from None
        if not isinstance(document, dict):
            raise ServiceError("the vmbackup service gave an answer that makes no sense", _LOOK)
        if "error" in document:
            raise _told(document["error"])
        return document

    def _exchange(self, method: str, target: str, body: Mapping[str, Any] | None, seconds: float) -> bytes:
        connection = _UnixConnection(self._path, seconds)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            return connection.getresponse().read(_LARGEST_ANSWER)
        finally:
            connection.close()

    def _refused(self) -> AccessError:
        message = f"this user may not talk to the vmbackup service at {self._path}"
        try:
            gid = self._path.stat().st_gid
            name = grp.getgrgid(gid).gr_name
        except (OSError, KeyError):
            return AccessError(message, "run it as root")
        if gid == 0:
            return AccessError(message, "run it as root; socket_group in [daemon] names a group that may, too")
        user = os.environ.get("USER", "USER")
        return AccessError(message, f"be in the group {name} ('usermod -aG {name} {user}' as root, then log in again)")


_START = "'systemctl start vmbackup' starts it; 'systemctl status vmbackup' tells why it ended"
_LOOK = "'journalctl -u vmbackup' tells what it does"


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _told(error: Mapping[str, Any]) -> VmbackupError:
    """The service's error, as if it had been raised here."""
    made = ConfigError if error.get("kind") == "config" else _ERRORS.get(error.get("exit_code", 1), VmbackupError)
    return made(str(error.get("message")), str(error.get("hint") or ""))
