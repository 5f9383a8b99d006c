"""Commands inside a guest, through QEMU's guest agent."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

ANSWER_TIMEOUT = 30   # seconds for one answer of the agent; a guest under TCG is slow
POLL_INTERVAL = 0.05  # seconds between two looks whether a command has ended
FILE_PIECE = 1 << 16  # bytes a request; the agent was lost over one of 1 MiB


class GuestCommandError(Exception):
    """A command in the guest failed; the message ends with what it printed."""


class Agent:
    """The guest agent of one running domain (a libvirt domain object)."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def call(self, command: str, **arguments: Any) -> Any:
        """One command of the agent's protocol. Raises libvirtError."""
        import libvirt_qemu

        request = {"execute": command, "arguments": arguments}
        answer = libvirt_qemu.qemuAgentCommand(self._domain, json.dumps(request), ANSWER_TIMEOUT, 0)
        return json.loads(answer)["return"]

    def wait(self, timeout: float) -> float:
        """Waits until the agent answers; the seconds that took. Raises TimeoutError."""
        import libvirt

        start = time.monotonic()
        while True:
            try:
                self.call("guest-ping")
            except libvirt.libvirtError as error:
                if time.monotonic() - start > timeout or not self._domain.isActive():
                    waited = time.monotonic() - start
                    raise TimeoutError(f"no answer of the guest agent in {waited:.0f} s: {error}") from error
                time.sleep(0.5)
            else:
                return time.monotonic() - start

    def run(self, command: str, *, timeout: float = 120.0) -> str:
        """Runs a shell command as root and returns its output. Raises GuestCommandError, TimeoutError."""
        arguments = {"path": "/bin/sh", "arg": ["-c", command], "capture-output": True}
        pid = self.call("guest-exec", **arguments)["pid"]
        deadline = time.monotonic() + timeout
        while not (status := self.call("guest-exec-status", pid=pid))["exited"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"`{command}` has not ended in the guest after {timeout:.0f} s")
            time.sleep(POLL_INTERVAL)
        output = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
        if status.get("exitcode") != 0:
            errors = base64.b64decode(status.get("err-data", "")).decode(errors="replace") or output
            raise GuestCommandError(f"`{command}` failed in the guest ({status.get('exitcode')}): {errors.strip()}")
        return output

    def put(self, path: str, data: bytes) -> None:
        """Writes a file in the guest."""
        handle = self.call("guest-file-open", path=path, mode="w")
        try:
            for start in range(0, len(data), FILE_PIECE):
                piece = base64.b64encode(data[start:start + FILE_PIECE]).decode()
                self.call("guest-file-write", handle=handle, **{"buf-b64": piece})
        finally:
            self.call("guest-file-close", handle=handle)

    def get(self, path: str) -> bytes:
        """Reads a file of the guest."""
        handle = self.call("guest-file-open", path=path, mode="r")
        data = bytearray()
        try:
            while not (answer := self.call("guest-file-read", handle=handle, count=FILE_PIECE))["eof"]:
                data += base64.b64decode(answer["buf-b64"])
            data += base64.b64decode(answer["buf-b64"])
        finally:
            self.call("guest-file-close", handle=handle)
        return bytes(data)
