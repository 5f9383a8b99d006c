"""What the service tells systemd: that it is ready, what it does, that it is alive (sd_notify(3)).

A datagram of NAME=value lines to the socket that $NOTIFY_SOCKET names. Without that variable, so without systemd,
nothing is sent. Nothing here raises: systemd being busy or gone must not end a backup.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

# Seconds a message may wait for room in systemd's queue: the next one comes soon, a lost READY is seen by its timeout.
_SEND_SECONDS = 5.0
_MOST_STATUS = 500  # characters: `systemctl status` shows one line
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """The line to systemd. May be used from any thread.

    `watchdog_interval`: seconds between two `watchdog()`, half of what systemd allows; None where it does not watch.
    """

    def __init__(self, address: str | None = None, watchdog_interval: float | None = None) -> None:
        self._address = address
        self.watchdog_interval = watchdog_interval if address else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ, pid: int | None = None) -> "Notifier":
        """As systemd asks for it. The variables are taken out: they are not meant for the programs that are run."""
        name, microseconds, watched = (environ.pop(variable, "") for variable in _VARIABLES)
        if watched and watched != str(os.getpid() if pid is None else pid):
            microseconds = ""
        interval = int(microseconds) / 2e6 if microseconds.isdecimal() and int(microseconds) else None
        return cls(_address(name), interval)

    def ready(self) -> None:
        """The start, or a reload, is done."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service ends, by whatever was told to it."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Still alive."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """The start or the stop under way takes `seconds` more, from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.settimeout(_SEND_SECONDS)
            line.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)


def _address(name: str) -> str | None:
    """The socket's address: a path, or an abstract name (unix(7)), which is written with @ for its NUL."""
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _line(text: str) -> str:
    """On one line: a line break in a domain's name would begin another message."""
    return "".join(c if c.isprintable() else " " for c in text)[:_MOST_STATUS]
