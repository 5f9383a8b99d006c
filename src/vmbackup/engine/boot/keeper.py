"""Keeps a booted guest's restore point served: a process of its own, which starts the server again when it ends.

A guest that is paused because it could not be served goes on when it can. The keeper ends when the guest stands alone
or was discarded; when it is killed, the server goes on, and the next keeper takes it over.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from vmbackup.engine.boot.records import Booted, BootStore, held
from vmbackup.engine.boot.server import Server, ServerState, read_state, write_state
from vmbackup.errors import VmbackupError

_log = logging.getLogger(__name__)
# Seconds between two looks at the guest: so long it stays paused after the server is back.
_LOOK = 1.0
# Seconds to wait before the server is started again, and before a guest is let go on again, which fails again and
# again: twice as long each time.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 10.0
_STEADY = 30.0  # seconds after which the last failure is forgotten
_PATIENCE = 10.0  # seconds for the server to end


class Guest(Protocol):
    """What the keeper needs of the domain."""

    def state(self) -> str:
        """`error` where a disk could not be read or written."""

    def lacks_space(self) -> bool:
        """Whether that was for want of space."""

    def resume(self) -> None:
        """Lets it go on."""


class Keeper:
    """`guest` makes the connection to the domain when it is needed. `program` is vmbackup's, without arguments."""

    def __init__(
        self,
        store: BootStore,
        booted: Booted,
        program: Sequence[str],
        guest: Callable[[], Guest],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._booted, self._program = store, booted, program
        self._make_guest = guest
        self._guest: Guest | None = None
        self._clock = clock
        self._server = Pace(clock)
        self._resumes = Pace(clock)
        self._state = ServerState()
        self._current: Server | None = None

    def run(self) -> bool:
        """Until the guest is no booted one any more, or this process is interrupted; False where one keeps it."""
        with held(self._store.path(self._booted.name, "keeper")) as got:
            if not got:
                return False
            self._state = read_state(self._store, self._booted.name)
            self._current = Server.found(self._state)
            try:
                while self._wanted():
                    self._step()
            except KeyboardInterrupt:
                self._end()
                raise
            self._end()  # after any other error it goes on: a guest hangs on it
        return True

    def _step(self) -> None:
        self._current = server = self._current or self._start()
        if server is None:
            return
        if server.wait(_LOOK):
            self._current = None
            self._ended(server)
        else:
            self._look(server)

    def _end(self) -> None:
        if self._current is not None:
            self._current.end(_PATIENCE)
            self._current = None

    def _wanted(self) -> bool:
        return self._store.path(self._booted.name, "json").exists()

    def _start(self) -> Server | None:
        time.sleep(self._server.wait())
        log = self._store.path(self._booted.name, "log")
        try:
            server = Server.start(self._program, self._booted, log)
        except OSError as error:
            self._tell(ServerState(error={"message": f"the server cannot be started: {error}"}))
            return None
        self._tell(ServerState(server.mark, starts=self._state.starts + 1, error=self._state.error))
        return server

    def _look(self, server: Server) -> None:
        if not self._state.ready and server.answer.get("ready"):
            self._open_to_qemu()
            self._tell(ServerState(self._state.mark, ready=True, starts=self._state.starts))
        if self._state.ready:
            self._wake()

    def _ended(self, server: Server) -> None:
        server.last_words()
        error = server.answer.get("error") or {"message": "the server of the restore point was killed"}
        _log.warning("server=%s ended: %s", server.pid, error.get("message"))
        server.close()
        self._tell(ServerState(starts=self._state.starts, error=error))

    def _open_to_qemu(self) -> None:
        with contextlib.suppress(OSError):  # it has just ended
            os.chown(self._booted.socket, *self._booted.owner)

    def _wake(self) -> None:
        """Lets a guest go on that was paused because it could not be served."""
        try:
            self._guest = self._guest or self._make_guest()
            if self._guest.state() == "error" and self._resumes.due() and not self._guest.lacks_space():
                self._resumes.wait()
                self._guest.resume()
                _log.warning("guest=%s goes on", self._booted.name)
        except VmbackupError as error:
            _log.warning("guest=%s cannot be looked at: %s", self._booted.name, error)

    def _tell(self, state: ServerState) -> None:
        self._state = state
        write_state(self._store, self._booted.name, state)


class Pace:
    """How long to wait before something is tried again: longer each time, until it was not needed for a while."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._last = float("-inf")

    def due(self) -> bool:
        """Whether it may be tried now."""
        return self._clock() - self._last >= self._next

    def wait(self) -> float:
        """Counts a try; gives the seconds to wait before it."""
        now = self._clock()
        if now - self._last > _STEADY + self._next:
            self._next = 0.0
        wait = self._next
        self._next = min(max(self._next * 2, _FIRST_WAIT), _LONGEST_WAIT)
        self._last = now
        return wait
