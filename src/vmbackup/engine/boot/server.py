"""The process that serves a booted guest's restore point: what is known of it, and what it said."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmbackup.durable import replace_file
from vmbackup.engine.boot.records import Booted, BootStore
from vmbackup.errors import AccessError, ConfigError, DamageError, NotFoundError, RepositoryError, VmbackupError
from vmbackup.repository.processes import is_alive, process_mark

_LOG_BYTES = 1 << 20  # of what it says on standard error; then it begins anew
_LINE_BYTES = 64 << 10  # of its answer
_LAST_PIECES = 16  # of what it said, after its end: whoever else holds the pipe may go on writing
_KINDS: dict[int, type[VmbackupError]] = {2: ConfigError, 4: DamageError, 5: NotFoundError, 6: AccessError}


@dataclass(frozen=True)
class ServerState:
    """`mark`: of its process; `ready`: it answers; `error`: why the last one did not come up; `starts`: how many."""

    mark: str = ""
    ready: bool = False
    error: dict[str, Any] | None = None
    starts: int = 0

    @property
    def alive(self) -> bool:
        """Whether its process is there."""
        return is_alive(self.mark)

    def failure(self) -> VmbackupError | None:
        """Its error as one of ours."""
        if self.error is None:
            return None
        kind = _KINDS.get(int(self.error.get("exit_code", 1)), RepositoryError)
        return kind(str(self.error.get("message", "the server ended")), str(self.error.get("hint", "")))


def read_state(store: BootStore, name: str) -> ServerState:
    """What is known of the server; nothing where there is none."""
    try:
        return ServerState(**json.loads(store.path(name, "server").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ServerState()


def write_state(store: BootStore, name: str, state: ServerState) -> None:
    """For others to read, whole or not at all; it need not outlive a crash of the host."""
    replace_file(store.path(name, "server"), json.dumps(asdict(state)).encode(), durable=False)


class Server:
    """A server of a booted guest's point: one that was started here, or one found alive."""

    def __init__(self, pid: int, process: subprocess.Popen[bytes] | None) -> None:
        self.pid, self._process = pid, process
        self._pidfd = os.pidfd_open(pid)
        self._said = b""

    @classmethod
    def start(cls, program: Sequence[str], booted: Booted, log: Path) -> "Server":
        """It leads a session of its own: the death of who started it is not its own. Raises OSError.

        What it says beyond its answer goes to `log`, beside which it keeps the point's object.
        """
        fresh = not log.exists() or log.stat().st_size > _LOG_BYTES
        saved = ["--saved", str(log.with_suffix(".point"))]
        with log.open("wb" if fresh else "ab") as errors:
            process = subprocess.Popen(
                [*program, "--json", *booted.serve, *saved, "--socket", booted.socket],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        return cls(process.pid, process)

    @classmethod
    def found(cls, state: ServerState) -> "Server | None":
        """The one that a former keeper left."""
        if not (state.ready and state.alive):
            return None
        try:
            server = cls(int(state.mark.split(":")[1]), None)
        except OSError:
            return None
        if not state.alive:  # its number was given to another process meanwhile
            server.close()
            return None
        return server

    @property
    def mark(self) -> str:
        """Of its process."""
        return process_mark(self.pid)

    def wait(self, seconds: float) -> bool:
        """Until it has said something, or ended, or that time is over; True where it has ended."""
        out = self._process.stdout if self._process else None
        watched: list[Any] = [self._pidfd, *([out] if out is not None and not out.closed else [])]
        ready, _, _ = select.select(watched, [], [], seconds)
        if out is not None and out in ready:
            piece = os.read(out.fileno(), _LINE_BYTES)
            if piece:
                self._said = (self._said + piece)[-_LINE_BYTES:]
            else:
                out.close()
        return self._pidfd in ready

    @property
    def answer(self) -> dict[str, Any]:
        """What it said on standard output, once that is whole: that it is ready, or an error."""
        try:
            said = json.loads(self._said if self._said.endswith(b"\n") else b"{}")
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}

    def last_words(self) -> None:
        """Takes in what it said before it ended."""
        for _ in range(_LAST_PIECES):
            if self._process and self._process.stdout and not self._process.stdout.closed:
                self.wait(0.1)

    def end(self, patience: float) -> None:
        """Asks it to end, then makes it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                break
            if select.select([self._pidfd], [], [], patience)[0]:
                break
        self.close()

    def close(self) -> None:
        """Lets go of it."""
        if self._process is not None:
            if self._process.stdout is not None:
                self._process.stdout.close()
            if self._process.poll() is None:
                self._process.returncode = 0  # it goes on, and is nobody's child
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
