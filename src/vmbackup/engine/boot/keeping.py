"""Starting and ending the keeper of a booted guest's server: a process that is nobody's child."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vmbackup.engine.boot.records import Booted, BootStore, holder
from vmbackup.engine.boot.server import read_state
from vmbackup.errors import HypervisorError, RepositoryError
from vmbackup.repository.processes import is_alive, process_mark

SYSTEMD = Path("/run/systemd/system")  # sd_booted(3)
# Seconds for the server to answer: a bucket is asked for minutes before it is called unreachable, and says so then.
READY_SECONDS = 900.0
_APPEAR_SECONDS = 30.0  # for the keeper to be there: the start of a program on a busy machine
_END_SECONDS = 20.0
_POLL = 0.02

Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Keeping:
    """`command` is the one that keeps a guest, without its name. `run` starts programs."""

    def __init__(
        self,
        store: BootStore,
        command: Sequence[str],
        *,
        run: Run = subprocess.run,
        systemd: bool | None = None,
    ) -> None:
        self._store, self._command, self._run = store, tuple(command), run
        self._systemd = SYSTEMD.is_dir() and bool(shutil.which("systemd-run")) if systemd is None else systemd

    def is_kept(self, name: str) -> bool:
        """Whether a keeper is at work."""
        return holder(self._store.path(name, "keeper")) is not None

    def start(self, booted: Booted) -> None:
        """Starts a keeper unless one is at work. Raises HypervisorError."""
        if self.is_kept(booted.name):
            return
        if not read_state(self._store, booted.name).alive:
            self._store.path(booted.name, "server").unlink(missing_ok=True)  # what a former one said counts no more
        command = [*self._detached(booted.name), *self._command, booted.name]
        with self._store.path(booted.name, "log").open("ab") as log:
            try:
                self._run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, text=True)
            except (OSError, subprocess.SubprocessError) as error:
                raise HypervisorError(
                    f"the process that serves {booted.name} cannot be started: {error}",
                    f"{self._store.path(booted.name, 'log')} tells more",
                ) from error

    def _detached(self, name: str) -> list[str]:
        """What starts a process that outlives this one, its terminal and its service."""
        if not self._systemd:
            return ["setsid", "--fork", "--"]
        # As a unit it is not ended with the session of who logged in, and is started again however it was killed.
        properties = ["--property=Restart=on-failure", "--property=RestartSec=1", "--property=KillMode=mixed"]
        return ["systemd-run", "--quiet", "--collect", f"--unit=vmbackup-boot-{name}", *properties, "--"]

    def wait(self, booted: Booted, seconds: float = READY_SECONDS) -> None:
        """Until the point is served. Raises what the server said where it ended."""
        start = time.monotonic()
        while not (state := read_state(self._store, booted.name)).ready or not state.alive:
            failure = None if state.alive else state.failure()
            if failure is not None:
                raise failure
            waited = time.monotonic() - start
            if waited > seconds or (waited > _APPEAR_SECONDS and not self.is_kept(booted.name)):
                raise RepositoryError(
                    f"restore point {booted.point} is not served after {waited:.0f} s",
                    f"{self._store.path(booted.name, 'log')} tells more",
                )
            time.sleep(_POLL)

    def end(self, booted: Booted) -> None:
        """Ends the keeper with its server, and a server without a keeper. Raises HypervisorError."""
        path = self._store.path(booted.name, "keeper")
        keeper = process_mark(holder(path) or 0)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if _gone(lambda: holder(path) is None and not is_alive(keeper), holder(path), number):
                break
        else:
            raise HypervisorError(f"the process that serves {booted.name} cannot be ended", "look at it with 'ps'")
        state = read_state(self._store, booted.name)
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = int(state.mark.split(":")[1]) if state.alive else None
            if _gone(lambda: not read_state(self._store, booted.name).alive, pid, number):
                break


def _gone(is_gone: Callable[[], bool], pid: int | None, number: int) -> bool:
    """Asks a process to end and waits for that."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + _END_SECONDS
    while not is_gone():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
