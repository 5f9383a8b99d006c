"""The run's side of its watchdog: the process that lets the guest go on if the run does not (watchdog.py)."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import Any

from vmbackup.errors import HypervisorError

# Seconds after the arming at which the watchdog acts unless told otherwise: Windows' own limit, and far more than a
# begin takes.
WATCHDOG_SECONDS = 10.0
# Seconds the watchdog process has to start, and to answer.
_START_SECONDS = 10.0
_ANSWER_SECONDS = 5.0

# Watchdogs that go on after their run: kept so that they are not reported as forgotten.
_left_alone: list[subprocess.Popen[bytes]] = []


class Watchdog:
    """One process. Raises HypervisorError if it cannot start: then nothing may be frozen or paused."""

    def __init__(self, uri: str, uuid: str) -> None:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", script, uri, uuid, str(WATCHDOG_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,  # select must see each line
        )
        if self._read(_START_SECONDS) != b"ready":
            self.stop()
            raise HypervisorError("the watchdog that thaws the guest did not start, so nothing was frozen")

    def hooks(self, document: dict[str, Any]) -> None:
        """What is to be run if the run dies from here on."""
        self._write("hooks " + json.dumps(document))

    def arm(self, seconds: float = WATCHDOG_SECONDS, *what: str) -> None:
        """Its time runs from here; "thaw" and "resume" are what it then does."""
        self._write(" ".join(["arm", str(seconds), *(what or ("thaw",))]))

    def calm(self) -> bool:
        """The guest goes on, only hooks are left. True where it has acted, or is about to."""
        self._write("calm")
        deadline, acted = time.monotonic() + _ANSWER_SECONDS, False
        while (line := self._read(max(0.0, deadline - time.monotonic()))) == b"thawed":
            acted = True
        return acted or line != b"calm"

    def leave(self) -> bool:
        """Lets it go on by itself, to thaw at once and again, but to run no hook. True where it had acted already."""
        acted = self._read(0) == b"thawed"
        self._write("hooks {}")
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        _left_alone.append(self._process)
        return acted

    def stop(self) -> bool:
        """Ends it. True where it has acted, or was about to."""
        assert self._process.stdin
        assert self._process.stdout
        self._write("done")
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        acted = self._read(1.0) == b"thawed"
        try:
            self._process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            acted = True  # it is in the middle of a thaw: let it
        self._process.stdout.close()
        return acted

    def _write(self, line: str) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.write(line.encode() + b"\n")

    def _read(self, timeout: float) -> bytes:
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return b""
        return self._process.stdout.readline().strip()
