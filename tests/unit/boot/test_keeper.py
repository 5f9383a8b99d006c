"""The process that keeps a booted guest's point served, with a server of the tests' own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.boot.test_state import BOOTED
from vmbackup.engine.boot.keeper import Keeper, Pace
from vmbackup.engine.boot.keeping import Keeping
from vmbackup.engine.boot.records import Booted, BootStore
from vmbackup.engine.boot.server import ServerState, read_state, write_state
from vmbackup.errors import AccessError, HypervisorError, RepositoryError
from vmbackup.repository.processes import process_mark

SECONDS = 30.0
# Says that it is ready, makes its socket, and lives until it is ended; or fails as `failing` says.
SERVER = """
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
failing = folder / "failing"
if failing.exists():
    print(failing.read_text())
    sys.exit(6)
(folder / "nbd.sock").touch()
print(json.dumps({"ready": True, "address": "x", "exports": ["vda"]}), flush=True)
signal.pause()
"""


class Guest:
    def __init__(self) -> None:
        self.said = "running"
        self.full = False
        self.resumed = threading.Event()

    def state(self) -> str:
        return self.said

    def lacks_space(self) -> bool:
        return self.full

    def resume(self) -> None:
        self.said = "running"
        self.resumed.set()


class Rig:
    """A keeper at work in a thread."""

    def __init__(self, folder: Path) -> None:
        self.store = BootStore(folder / "state")
        self.folder = folder
        self.booted: Booted = replace(BOOTED, folder=str(folder), owner=(os.geteuid(), os.getegid()))
        (folder / "server.py").write_text(SERVER)
        self.store.put(self.booted)
        self.guest = Guest()
        self.threads: list[threading.Thread] = []

    def keep(self) -> None:
        program = [sys.executable, "-c", SERVER, str(self.folder)]
        keeper = Keeper(self.store, self.booted, program, lambda: self.guest)
        self.threads.append(threading.Thread(target=keeper.run))
        self.threads[-1].start()

    def state(self) -> ServerState:
        return read_state(self.store, self.booted.name)

    def until(self, wanted: Callable[[ServerState], bool]) -> ServerState:
        deadline = time.monotonic() + SECONDS
        while not wanted(state := self.state()):
            assert time.monotonic() < deadline, state
            time.sleep(0.01)
        return state

    def ready(self, but: str = "") -> ServerState:
        return self.until(lambda state: state.ready and state.alive and state.mark != but)

    def end(self) -> None:
        self.store.path(self.booted.name, "json").unlink(missing_ok=True)
        for thread in self.threads:
            thread.join()


def pid_of(state: ServerState) -> int:
    return int(state.mark.split(":")[1])


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.end()


def test_a_server_that_is_killed_comes_back(rig: Rig) -> None:
    rig.keep()
    first = rig.ready()
    os.kill(pid_of(first), signal.SIGKILL)
    second = rig.ready(but=first.mark)
    assert (first.starts, second.starts) == (1, 2)
    assert second.error is None


def test_it_ends_with_its_server_when_the_guest_is_no_booted_one_any_more(rig: Rig) -> None:
    rig.keep()
    state = rig.ready()
    rig.end()
    assert process_mark(pid_of(state)) == ""


def test_a_guest_that_was_paused_by_an_error_goes_on(rig: Rig) -> None:
    """But not one that was paused for want of space: it would only be paused again."""
    rig.guest.said, rig.guest.full = "error", True
    rig.keep()
    rig.ready()
    assert not rig.guest.resumed.wait(2.5)
    rig.guest.full = False
    assert rig.guest.resumed.wait(SECONDS)


def test_what_a_server_says_before_it_ends_is_told(rig: Rig) -> None:
    said = '{"error": {"kind": "access", "message": "wrong passphrase", "hint": "correct it", "exit_code": 6}}'
    (rig.folder / "failing").write_text(said)
    rig.keep()
    state = rig.until(lambda state: state.error is not None)
    failure = state.failure()
    assert isinstance(failure, AccessError)
    assert (failure.message, failure.hint) == ("wrong passphrase", "correct it")
    with pytest.raises(AccessError, match="wrong passphrase"):
        Keeping(rig.store, []).wait(rig.booted)
    (rig.folder / "failing").unlink()
    assert rig.ready().error is None


def test_a_second_keeper_does_nothing(rig: Rig) -> None:
    rig.keep()
    state = rig.ready()
    assert not Keeper(rig.store, rig.booted, ["false"], lambda: rig.guest).run()
    assert rig.state() == state


def test_the_server_of_a_keeper_that_was_killed_is_taken_over(rig: Rig) -> None:
    """It is not started again, and when it is killed, the new keeper notices although it is not its child."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:  # a keeper that dies of SIGKILL
        try:
            os.close(read)
            program = [sys.executable, "-c", SERVER, str(rig.folder)]
            Keeper(rig.store, rig.booted, program, lambda: rig.guest).run()
        finally:
            os._exit(1)
    os.close(write)
    try:
        first = rig.ready()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    finally:
        os.close(read)
    rig.keep()
    time.sleep(0.5)
    assert rig.state() == first
    os.kill(pid_of(first), signal.SIGKILL)
    second = rig.ready(but=first.mark)
    assert second.starts == 2


def test_tries_come_further_apart_until_none_was_needed_for_a_while() -> None:
    now = 0.0
    pace = Pace(lambda: now)
    waits = []
    for _ in range(9):
        waits.append(pace.wait())
        now += waits[-1]
    assert waits == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0]
    assert pace.due()
    pace.wait()
    assert not pace.due()
    now += 100
    assert pace.wait() == 0


def test_a_keeper_that_does_not_appear_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbackup.engine.boot.keeping._APPEAR_SECONDS", 0.2)
    with pytest.raises(RepositoryError, match="is not served") as failed:
        Keeping(rig.store, []).wait(rig.booted)
    assert str(rig.store.path(rig.booted.name, "log")) in failed.value.hint


def test_a_keeper_that_cannot_be_started_is_said(rig: Rig) -> None:
    keeping = Keeping(rig.store, ["/nowhere/vmbackup"], systemd=False, run=_refuse)
    with pytest.raises(HypervisorError, match="cannot be started"):
        keeping.start(rig.booted)


def _refuse(*_: object, **__: object) -> None:
    raise OSError("no such program")


def test_the_keeper_is_nobodys_child_and_is_ended_with_its_server(rig: Rig) -> None:
    """It leads a session of its own and has no parent of ours; `end` leaves no process."""
    code = (
        "import sys; from pathlib import Path; from vmbackup.engine.boot.records import BootStore; "
        "from vmbackup.engine.boot.keeper import Keeper\n"
        f"store = BootStore(Path({str(rig.store.folder.parent)!r}))\n"
        "class Guest:\n    def state(self): return 'running'\n"
        f"server = [sys.executable, '-c', {SERVER!r}, {str(rig.folder)!r}]\n"
        "try:\n    Keeper(store, store.require(sys.argv[1]), server, Guest).run()\n"
        "except KeyboardInterrupt:\n    pass\n"
    )
    code = "import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n" + code
    keeping = Keeping(rig.store, [sys.executable, "-c", code], systemd=False)
    keeping.start(rig.booted)
    keeping.wait(rig.booted)
    state = rig.state()
    keeper = int(rig.store.path(rig.booted.name, "keeper").read_text())
    fields = Path(f"/proc/{keeper}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    assert int(fields[3]) != os.getsid(0)
    assert os.getsid(pid_of(state)) == pid_of(state)  # what ends the keeper's session does not end the server
    keeping.start(rig.booted)  # one is enough
    assert rig.state() == state
    keeping.end(rig.booted)
    assert not keeping.is_kept(rig.booted.name)
    assert not state.alive
    keeping.end(rig.booted)


def test_a_server_without_a_keeper_is_ended_too(rig: Rig) -> None:
    rig.keep()
    state = rig.ready()
    rig.end()
    with subprocess.Popen(["sleep", "60"]) as orphan:
        write_state(rig.store, rig.booted.name, replace(state, mark=process_mark(orphan.pid)))
        ender = threading.Thread(target=orphan.wait)
        ender.start()
        Keeping(rig.store, []).end(rig.booted)
        ender.join()
    assert orphan.returncode == -signal.SIGTERM


def test_under_systemd_it_is_a_unit_of_its_own(tmp_path: Path) -> None:
    """So that it survives the session of who logged in, and its own death by SIGKILL."""
    ran: list[list[str]] = []
    store = BootStore(tmp_path)
    store.put(BOOTED)

    def run(command: list[str], **_: object) -> None:
        ran.append(command)

    Keeping(store, ["vmbackup", "boot", "--keep"], systemd=True, run=run).start(BOOTED)
    (command,) = ran
    assert command[:3] == ["systemd-run", "--quiet", "--collect"]
    assert "--unit=vmbackup-boot-web-rescue" in command
    assert "--property=Restart=on-failure" in command
    assert command[command.index("--") + 1 :] == ["vmbackup", "boot", "--keep", "web-rescue"]
