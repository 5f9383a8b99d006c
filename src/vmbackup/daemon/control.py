"""The control socket: `vmbackup status`, `run`, `cancel` and scripts talk to the service here, in HTTP and JSON."""

import socket
from pathlib import Path

from vmbackup.daemon.control_api import Api, Service
from vmbackup.daemon.control_http import HttpAnswer, failure
from vmbackup.daemon.control_socket import ControlSocket
from vmbackup.daemon.listener import Bounds, Listener
from vmbackup.daemon.peers import Guard
from vmbackup.errors import AccessError


class ControlServer:
    """Listens at `path` from `start` to `shutdown`. `group`: who may use it beside root and the service's own user."""

    def __init__(self, path: Path, group: str | None, service: Service, bounds: Bounds | None = None) -> None:
        self._path, self._group = path, group
        self._listener = Listener("control", Api(service).respond, self._refuse, bounds)
        self._socket: ControlSocket | None = None

    def start(self) -> None:
        """Listen. Raises ConfigError, TargetError, VmbackupError (another service answers there)."""
        self._socket = ControlSocket(self._path, self._group)
        self._guard = Guard(self._socket.gid)
        self._listener.start(self._socket.socket)

    def shutdown(self) -> None:
        """Stop listening, and end what is under way after a moment. May be called twice, and before `start`."""
        if self._socket is None:
            return
        self._listener.shutdown()
        self._socket.close()
        self._socket = None

    def _refuse(self, connection: socket.socket) -> bytes | None:
        return None if self._guard.lets_in(connection) else self._refusal().encode()

    def _refusal(self) -> HttpAnswer:
        if self._group is None:
            return failure(AccessError("only root may use the control socket", "socket_group in [daemon] lets others"))
        hint = f"root can add you: 'usermod -aG {self._group} USER'; then log in again"
        return failure(AccessError(f'only root and the group "{self._group}" may use the control socket', hint))


__all__ = ["Bounds", "ControlServer", "Service"]
