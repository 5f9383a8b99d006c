"""Thaws a guest whatever becomes of the run that froze it: a small process of its own session.

    python -P watchdog.py URI DOMAIN-UUID SECONDS

It says "ready" on standard output once it is connected, then reads lines. Without an "arm" it ends: nothing was
frozen. After the "arm", "done" (the run has thawed by itself) ends it silently; the end of the input (the run
died) or SECONDS without a line make it thaw, again and again for up to 5 minutes, and say "thawed". SIGTERM does not
end it: a service that is stopped sends it to all its processes. It imports nothing of the project, for it must start
in a moment.
"""

import contextlib
import os
import select
import signal
import sys
import time

_GIVE_UP_SECONDS = 300.0
_AGENT_TIMEOUT_SECONDS = 5
_LONGEST_WAIT = 16.0


def main(uri: str, uuid: str, seconds: float) -> int:
    """Runs the watch. Returns 0 when nothing is frozen any more as far as it knows, else 1."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import libvirt

    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open(uri)
    domain = connection.lookupByUUIDString(uuid)
    _say("ready")
    if _line(None) != "arm" or _line(seconds) == "done":
        return 0
    deadline = time.monotonic() + _GIVE_UP_SECONDS
    wait = 0.5
    while time.monotonic() < deadline:
        try:
            if not connection.isAlive():
                connection = libvirt.open(uri)
                domain = connection.lookupByUUIDString(uuid)
            if not domain.isActive():
                return 0
            domain.agentSetResponseTimeout(_AGENT_TIMEOUT_SECONDS, 0)
            domain.fsThaw()
            _say("thawed")
            return 0
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return 0
        time.sleep(wait)
        wait = min(wait * 2, _LONGEST_WAIT)
    return 1


def _line(seconds: float | None) -> str:
    """The next line of the input, unbuffered so that select sees the one after it; "" at its end or in time."""
    line = b""
    while select.select([0], [], [], seconds)[0]:
        byte = os.read(0, 1)
        if byte in (b"", b"\n"):
            break
        line += byte
    return line.decode("ascii", "replace")


def _say(word: str) -> None:
    # Where the run is dead nobody listens.
    with contextlib.suppress(OSError):
        print(word, flush=True)  # noqa: T201 (the protocol with the run that started it)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
