"""`vmbackup status`, `run` and `cancel` as processes, against a real control socket."""

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.states import ERROR, HINT, HOUR, FakeService, guest, many, queued, running, snapshot, three
from vmbackup.cli.run import Waiting, exit_code
from vmbackup.daemon.control import ControlServer
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.progress import Silent

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def entry(run: str = "00000000", status: str = "success", domain: str = "web01", **more: Any) -> dict[str, Any]:
    """A run as the history tells it."""
    time = "2026-11-28T02:00:00+00:00"
    fields = {"id": run, "kind": "backup", "job": "nightly", "domain": domain, "repository": "local", "target": None}
    fields |= {"trigger": "manual", "attempt": 1, "due": time, "started": time, "finished": time, "status": status}
    return fields | {"exit_code": 0, "error": None, "hint": None} | more


@pytest.fixture
def config(short_folder: Path) -> Path:
    path = short_folder / "config.toml"
    path.write_text(f'[daemon]\nsocket = "{short_folder}/control.sock"\n')
    return path


@pytest.fixture
def serve(short_folder: Path) -> Iterator[Callable[[Any], None]]:
    with contextlib.ExitStack() as stack:

        def start(service: Any, group: str | None = None) -> None:
            server = ControlServer(short_folder / "control.sock", group, service)
            server.start()
            stack.callback(server.shutdown)

        yield start


@pytest.fixture
def cli(config: Path) -> Cli:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
        return subprocess.run(command(config, *arguments), capture_output=True, text=True, env=environment)

    return run


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vmbackup.cli", "--config", str(config), *arguments]


def test_status_tells_the_worst_and_its_code(cli: Cli, serve: Callable[[Any], None]) -> None:
    serve(FakeService(three()))
    done = cli("status")
    assert done.returncode == 3
    assert done.stdout.splitlines()[1] == "1 of 3 guests breaks its promise: web01"
    assert ERROR in done.stdout
    assert "\x1b" not in done.stdout


def test_status_of_a_healthy_host_is_0(cli: Cli, serve: Callable[[Any], None]) -> None:
    serve(FakeService(snapshot(guest())))
    done = cli("status")
    assert (done.returncode, done.stderr) == (0, "")
    assert "The promise to web01 is kept" in done.stdout


def test_json_is_the_document(cli: Cli, serve: Callable[[Any], None]) -> None:
    serve(FakeService(many()))
    done = cli("--json", "status")
    assert done.returncode == 3
    assert json.loads(done.stdout) == many().document()
    one = json.loads(cli("status", "guest007", "--json").stdout)
    assert [g["domain"] for g in one["guests"]] == ["guest007"]


def test_one_guest_with_its_runs_and_what_to_do(cli: Cli, serve: Callable[[Any], None]) -> None:
    serve(FakeService(three(), [entry("9f8e7d6c", "failed", error=ERROR), entry("11111111", domain="db01")]))
    done = cli("status", "web01")
    assert done.returncode == 3
    for told in ("The promise is broken", HINT, "9f8e7d6c", "nightly, to repository local"):
        assert told in done.stdout
    assert "db01" not in done.stdout
    unknown = cli("status", "web02")
    assert (unknown.returncode, 'did you mean "web01"?' in unknown.stderr) == (5, True)


def test_no_service_is_one_sentence(cli: Cli, short_folder: Path) -> None:
    done = cli("status")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "error: the vmbackup service does not run on this host"
    assert "systemctl start vmbackup" in done.stderr
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_folder / "control.sock"))
    document = json.loads(cli("--json", "status").stdout)
    assert document["error"]["kind"] == "service"


NONSENSE = [
    b"",
    b"garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\n\r\n[]",
]


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_that_makes_no_sense_is_told(cli: Cli, short_folder: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_folder / "control.sock"))
        listener.listen()

        def respond() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=respond)
        thread.start()
        done = cli("status")
        thread.join()
    assert done.returncode == 1
    assert done.stderr.startswith("error: the vmbackup service ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ['socket = "{socket}"\n[jobs\n', '[daemon]\nsocket = "{socket}"\ncolour = 1\n'])
def test_a_wrong_configuration_hides_nothing(
    cli: Cli, config: Path, short_folder: Path, serve: Callable[[Any], None], text: str
) -> None:
    """Just then somebody looks whether the service still runs."""
    serve(FakeService(three()))
    config.write_text(text.format(socket=short_folder / "control.sock"))
    assert "1 of 3 guests" in cli("status").stdout


def test_a_configuration_that_is_not_there_is_told(cli: Cli, config: Path) -> None:
    config.unlink()
    assert cli("status").returncode == 2


def test_watch_asks_for_a_terminal(cli: Cli, serve: Callable[[Any], None]) -> None:
    serve(FakeService(three()))
    for arguments in (("status", "--watch"), ("--json", "status", "--watch")):
        assert cli(*arguments).returncode == 2


def read_until(terminal: int, wanted: bytes, seconds: float = 60) -> bytes:
    found, until = b"", time.monotonic() + seconds
    while wanted not in found and time.monotonic() < until:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                found += os.read(terminal, 65536)
            except OSError:
                break
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_shows_what_changes_until_ctrl_c(config: Path, short_folder: Path, number: int) -> None:
    """Also that the service is gone, and that it is back; the terminal is given back as it was."""
    service = FakeService(snapshot(guest()))
    server = ControlServer(short_folder / "control.sock", None, service)
    server.start()
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    watching = subprocess.Popen(
        command(config, "status", "--watch"), stdin=secondary, stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    try:
        assert b"The promise to web01 is kept" in read_until(primary, b"is kept")
        service.shown = snapshot(guest(ago=30 * HOUR))
        assert b"1 of 1 guest breaks" in read_until(primary, b"1 of 1 guest breaks")
        server.shutdown()
        assert b"does not run" in read_until(primary, b"does not run")
        server = ControlServer(short_folder / "control.sock", None, FakeService(three()))
        server.start()
        assert b"1 of 3 guests" in read_until(primary, b"1 of 3 guests")
        watching.send_signal(number)
        rest = read_until(primary, b"\x1b[?1049l")
        assert b"\x1b[?1049l" in rest
        assert b"Traceback" not in rest
        assert watching.wait(60) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(primary)
        server.shutdown()


def test_colours_on_a_terminal_only_and_not_with_no_color(config: Path, serve: Callable[[Any], None]) -> None:
    serve(FakeService(three()))
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        primary, secondary = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"} | variables
        process = subprocess.Popen(command(config, "status"), stdout=secondary, env=environment)
        os.close(secondary)
        shown = read_until(primary, b"NEVER COMES")
        assert process.wait() == 3
        os.close(primary)
        assert (b"\x1b[1;31m" in shown) is coloured
        assert b"BROKEN" in shown


def test_cancel(cli: Cli, serve: Callable[[Any], None]) -> None:
    service = FakeService(snapshot(guest(), runs=(running(), queued(), queued(id="77bb"))))
    serve(service)
    assert cli("cancel", "1a").stdout == "backup of app01 (1a2b3c4d) is being cancelled\n"
    assert json.loads(cli("--json", "cancel", "77a").stdout)["cancelled"]["id"] == "77aa88bb"
    assert service.asked == [("cancel", "1a2b3c4d"), ("cancel", "77aa88bb")]
    both = cli("cancel", "nightly").stdout.splitlines()
    assert both[:1] == ["backup of app01 (1a2b3c4d) is being cancelled"]
    assert len(both) == 3
    none = cli("cancel", "ff")
    assert none.returncode == 5
    assert "1a2b3c4d (backup of app01)" in none.stderr
    assert cli("cancel", "77").returncode == 2


def test_run_asks_and_ends(cli: Cli, serve: Callable[[Any], None]) -> None:
    service = FakeService()
    serve(service)
    done = cli("run", "nightly", "web01", "web01", "--full")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1 backup asked for: 00000000")
    assert service.asked == [("run", "nightly", ("web01",), True)]
    assert json.loads(cli("--json", "run", "nightly").stdout) == {"requests": ["00000000", "00000001", "00000002"]}
    wrong = cli("run", "nigthly")
    assert (wrong.returncode, 'did you mean "nightly"?' in wrong.stderr) == (5, True)


class _Busy(FakeService):
    """A run that goes on for some looks, and then ends as the history says."""

    looks = 3

    def snapshot(self) -> Snapshot:
        self.looks -= 1
        state = super().snapshot()
        return replace(state, runs=(running("web01", id="00000000"),) if self.looks > 0 else ())


@pytest.mark.parametrize(
    ("ended", "code", "told"),
    [
        (entry(), 0, "web01: done\n"),
        (entry(status="warning"), 3, "web01: done, with warnings\n"),
        (entry(status="failed", exit_code=6, error="no key", hint="find it"), 6, "web01: failed: no key\n  find it\n"),
    ],
)
def test_run_waits_for_the_outcome(
    cli: Cli, serve: Callable[[Any], None], ended: dict[str, Any], code: int, told: str
) -> None:
    serve(_Busy(history=[ended]))
    done = cli("run", "nightly", "web01", "--wait")
    assert (done.returncode, done.stdout) == (code, told)


def test_ctrl_c_ends_the_waiting_only(config: Path, serve: Callable[[Any], None]) -> None:
    service = _Busy()
    service.looks = 10**6
    serve(service)
    waiting = subprocess.Popen(command(config, "run", "nightly", "web01", "--wait"), stderr=subprocess.PIPE, text=True)
    while service.looks > 10**6 - 3:
        time.sleep(0.05)
    waiting.send_signal(signal.SIGINT)
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 130
    assert "The backups go on" in errors
    assert service.asked == [("run", "nightly", ("web01",), False)]


def test_what_is_in_no_history_counts_as_skipped_after_a_while() -> None:
    naps: list[float] = []
    waiting = Waiting(lambda: {"runs": []}, list, Silent(), naps.append)
    (run,) = waiting.wait(["00000000"])
    assert run["status"] == "skipped"
    assert 5 <= sum(naps) <= 20


def test_when_it_is_tried_again_is_told() -> None:
    again = queued("web01", trigger="retry", not_before=1.8e9)
    document = snapshot(runs=(again,)).document()
    waiting = Waiting(lambda: document, lambda: [entry(status="failed")], Silent(), lambda _seconds: None)
    assert waiting.wait(["00000000"])[0]["next_attempt"] == document["runs"][0]["not_before"]


def test_exit_codes_of_several() -> None:
    good, bad, warned = entry(), entry(status="failed", exit_code=4), entry(status="warning")
    assert exit_code([good, good]) == 0
    assert exit_code([good, bad]) == 3
    assert exit_code([bad, bad]) == 1
    assert exit_code([bad]) == 4
    assert exit_code([good, warned]) == 3
    assert exit_code([entry(status="cancelled", exit_code=None)]) == 1


_AS_NOBODY = """
import contextlib, io, os, sys, traceback
from vmbackup.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    main(["--config", {config!r}, "status"])
os.setgroups({groups!r})
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(main(["--config", {config!r}, "status"]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")
def test_a_stranger_is_told_which_group_to_be_in(config: Path, short_folder: Path, serve: Callable[..., None]) -> None:
    serve(FakeService(three()), group="games")
    gid = (short_folder / "control.sock").stat().st_gid

    def asked(*groups: int) -> "subprocess.CompletedProcess[str]":
        """By a process that becomes `nobody` once all is imported: he may not see this Python's files."""
        program = _AS_NOBODY.format(groups=list(groups), config=str(config))
        environment = os.environ | {"USER": "jane"}
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)

    refused = asked()
    assert refused.returncode == 6, refused.stderr
    assert "be in the group games ('usermod -aG games jane' as root" in refused.stderr
    welcome = asked(gid)
    assert welcome.returncode == 3, welcome.stderr
    config.chmod(0o600)  # root's alone: the usual place of the socket is tried
    assert asked(gid).returncode in (1, 6)


def test_a_long_table_ends_with_the_worst(config: Path, serve: Callable[[Any], None]) -> None:
    """The top has left the screen by then."""
    serve(FakeService(many()))
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(command(config, "status"), stdout=secondary, env=environment)
    os.close(secondary)
    shown = read_until(primary, b"NEVER COMES").decode()
    assert process.wait() == 3
    os.close(primary)
    assert "6 of 300 guests break their promise" in shown.splitlines()[-1]
