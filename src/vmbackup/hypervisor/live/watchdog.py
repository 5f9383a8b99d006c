"""Thaws a guest whatever becomes of the run that froze it: a small process of its own session.

    python -P watchdog.py URI DOMAIN-UUID SECONDS

It says "ready" on standard output once it is connected, then reads lines:

    arm [SECONDS [thaw] [resume]]  from here on the guest may be frozen, paused: unless there is another line within
                                   SECONDS, or when the input ends (the run died), it thaws and resumes it, again and
                                   again for up to 5 minutes, and says "thawed"
    hooks JSON                     what else is to be run when the run dies: {"guest": [...], "host": [...],
                                   "environment": {...}, "seconds": n}
    calm                           the guest goes on: only the hooks are left; answered with "calm"
    done                           all is well: it ends

SIGTERM does not end it: a service that is stopped sends it to all its processes. It imports nothing of the project, for
it must start in a moment.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

_GIVE_UP_SECONDS = 300.0
_AGENT_TIMEOUT_SECONDS = 5
_LONGEST_WAIT = 16.0
_POLL_SECONDS = 0.2
_PAUSED_BY_USER = [3, 1]  # VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_USER


def main(uri: str, uuid: str, seconds: float) -> int:
    """Runs the watch. Returns 0 when nothing stands still any more as far as it knows, else 1."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    guest = _Guest(libvirt, uri, uuid)
    _say("ready")
    todo: tuple[str, ...] = ()
    limit: float | None = None
    hooks: dict[str, Any] = {}
    good = True
    while True:
        line = _line(limit)
        verb, _, rest = (line or "").partition(" ")
        if line == "done":
            return 0
        if verb == "hooks":
            hooks = json.loads(rest)
        elif verb == "arm":
            told = rest.split() or [str(seconds), "thaw"]
            limit, todo = float(told[0]), tuple(told[1:])
        elif verb == "calm":
            limit, todo = None, ()
            _say("calm")
        else:  # no line in time, or the end of the input
            good = not todo or guest.set_free(todo)
            limit, todo = None, ()
        if line == "":
            if hooks:
                guest.run(hooks)
            return 0 if good else 1


class _Guest:
    """The domain, on a connection that is opened again where it has died."""

    def __init__(self, libvirt: Any, uri: str, uuid: str) -> None:
        self._libvirt, self._uri, self._uuid = libvirt, uri, uuid
        self._connection = libvirt.open(uri)
        self._connection.lookupByUUIDString(uuid)

    def _domain(self) -> Any:
        if not self._connection.isAlive():
            self._connection = self._libvirt.open(self._uri)
        return self._connection.lookupByUUIDString(self._uuid)

    def set_free(self, todo: tuple[str, ...]) -> bool:
        """Resumes and thaws. False where that could not be done in time."""
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        wait = 0.5
        while time.monotonic() < deadline:
            try:
                domain = self._domain()
                if not domain.isActive():
                    return True
                if "resume" in todo and domain.state() == _PAUSED_BY_USER:
                    domain.resume()
                if "thaw" in todo:
                    domain.agentSetResponseTimeout(_AGENT_TIMEOUT_SECONDS, 0)
                    domain.fsThaw()
                _say("thawed")
                return True
            except self._libvirt.libvirtError as error:
                if error.get_error_code() == self._libvirt.VIR_ERR_NO_DOMAIN:
                    return True
            time.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)
        return False

    def run(self, hooks: dict[str, Any]) -> None:
        """The hooks that the dead run owes; nobody is left to be told how they end."""
        if hooks.get("guest"):
            with contextlib.suppress(self._libvirt.libvirtError, KeyError, ValueError):
                self._run_inside(hooks["guest"], hooks["seconds"])
        if hooks.get("host"):
            environment = {**os.environ, **hooks.get("environment", {})}
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(
                    hooks["host"], env=environment, timeout=hooks["seconds"], check=False,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip

    def _run_inside(self, command: list[str], seconds: float) -> None:
        pid = self._ask("guest-exec", path=command[0], arg=command[1:])["pid"]
        deadline = time.monotonic() + seconds
        while not self._ask("guest-exec-status", pid=pid)["exited"] and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        import libvirt_qemu

        request = json.dumps({"execute": command, "arguments": arguments})
        answer = libvirt_qemu.qemuAgentCommand(self._domain(), request, _AGENT_TIMEOUT_SECONDS, 0)
        found: dict[str, Any] = json.loads(answer)["return"]
        return found


def _line(seconds: float | None) -> str | None:
    """The next line, unbuffered so that select sees the one after it; "" at the input's end, None in time."""
    line = b""
    while select.select([0], [], [], seconds)[0]:
        byte = os.read(0, 1)
        if byte == b"":
            return ""
        if byte == b"\n":
            return line.decode("utf-8", "replace")
        line += byte
    return None


def _say(word: str) -> None:
    # Where the run is dead nobody listens.
    with contextlib.suppress(OSError):
        print(word, flush=True)  # noqa: T201 (the protocol with the run that started it)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
