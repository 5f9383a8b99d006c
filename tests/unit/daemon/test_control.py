"""The control socket: what it answers, whom it lets in, and that no client can hurt it."""

import contextlib
import grp
import json
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.daemon.states import FakeService, guest, many, queued, running, snapshot
from vmbackup.daemon.control import Bounds, ControlServer
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.errors import ConfigError, NotFoundError, TargetError, VmbackupError

QUICK = Bounds(read=0.5, call=1.0, write=1.0, close=0.5, readers=32)
Serve = Callable[..., Path]


@pytest.fixture
def serve(short_folder: Path) -> Iterator[Serve]:
    """Starts a server around a service; gives the socket's path."""
    with contextlib.ExitStack() as stack:

        def start(service: Any = None, group: str | None = None, bounds: Bounds = QUICK) -> Path:
            path = short_folder / "run" / "control.sock"
            server = ControlServer(path, group, service or FakeService(), bounds)
            server.start()
            stack.callback(server.shutdown)
            return path

        yield start


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        yield client


def received(client: socket.socket) -> bytes:
    """All until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            found += part
    return found


def said(path: Path, raw: bytes) -> tuple[int, dict[str, Any]]:
    """Status and document of the answer to any bytes."""
    with connected(path) as client:
        with contextlib.suppress(BrokenPipeError):
            client.sendall(raw)
        return parsed(received(client))


def parsed(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    return int(head.split()[1]), json.loads(body)


def get(path: Path, target: str) -> tuple[int, dict[str, Any]]:
    return said(path, f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


def post(path: Path, target: str, document: Any) -> tuple[int, dict[str, Any]]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return said(path, f"POST {target} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def test_status_is_the_snapshot(serve: Serve) -> None:
    service = FakeService()
    status, document = get(serve(service), "/status")
    assert (status, document) == (200, service.shown.document())


def test_a_new_snapshot_is_seen_at_once(serve: Serve) -> None:
    service = FakeService()
    path = serve(service)
    assert len(get(path, "/status")[1]["guests"]) == 3
    service.shown = replace(service.shown, guests=())
    assert get(path, "/status")[1]["guests"] == []


def test_curl_understands_it(serve: Serve) -> None:
    """Any HTTP client may be used in scripts."""
    command = ["curl", "-sf", "--unix-socket", str(serve()), "-d", '{"job": "nightly"}', "http://localhost/run"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert json.loads(done.stdout) == {"requests": ["00000000", "00000001", "00000002"]}


def test_what_is_asked_reaches_the_service(serve: Serve) -> None:
    service = FakeService(history=[{"run": "1", "domain": "web01"}, {"run": "2", "domain": "db01"}])
    path = serve(service)
    wanted = {"job": "nightly", "domains": ["web01"], "full": True}
    assert post(path, "/run", wanted) == (200, {"requests": ["00000000"]})
    assert get(path, "/runs?limit=5&domain=db01") == (200, {"runs": [{"run": "2", "domain": "db01"}]})
    assert post(path, "/cancel", {"run": "1a2b"})[1]["run"]["id"] == "1a2b3c4d"
    assert post(path, "/reload", b"") == (200, {"reloaded": True})
    assert service.asked == [
        ("run", "nightly", ("web01",), True),
        ("recent", 5, "db01"),
        ("cancel", "1a2b3c4d"),
        ("reload",),
    ]


def test_errors_are_documents_with_fitting_codes(serve: Serve) -> None:
    path = serve(FakeService(bad_config=True))
    status, document = post(path, "/run", {"job": "nigthly"})
    assert status == 404
    assert document["error"] == {
        "kind": "not_found",
        "message": 'there is no job "nigthly"',
        "hint": 'did you mean "nightly"?',
        "exit_code": 5,
    }
    status, document = post(path, "/reload", b"")
    assert (status, document["error"]["kind"], document["error"]["exit_code"]) == (400, "config", 2)
    status, document = post(path, "/cancel", {"run": "ffff"})
    assert (status, document["error"]["kind"]) == (404, "not_found")
    assert document["error"]["hint"] == "there is 1a2b3c4d (backup of app01), 77aa88bb (backup of db01)"


@pytest.mark.parametrize("name", ["5e6f7081", "5e6f7081-2", "5e6f", "crm"])
def test_a_group_is_cancelled_as_a_whole(serve: Serve, name: str) -> None:
    """By the run's own id, by a part's, by the beginning of either, by its job; nothing else ends."""
    parts = [running(f"crm{n}", id=f"5e6f7081-{n}", job="crm") for n in (1, 2)]
    service = FakeService(snapshot(guest(), runs=(running(), *parts)))
    path = serve(service)
    status, document = post(path, "/cancel", {"run": name})
    assert status == 200
    assert sorted(run["domain"] for run in document["runs"]) == ["crm1", "crm2"]
    assert document["run"] == document["runs"][0]
    assert document["run"]["id"] == (name if "-" in name else "5e6f7081-1")
    assert service.asked == [("cancel", "5e6f7081")]


def test_all_of_a_job_are_cancelled(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just ended keeps no other alive; a job's name is no beginning of an id."""
    service = FakeService(snapshot(guest(), runs=(running(), queued(), running("other", id="nightly1", job="other"))))
    path, ended = serve(service), {"1a2b3c4d"}

    def cancel(run_id: str) -> None:
        service.asked.append(("cancel", run_id))
        if run_id in ended:
            raise NotFoundError("it has ended")

    monkeypatch.setattr(service, "cancel", cancel)
    assert post(path, "/cancel", {"run": "nightly"})[0] == 200
    assert service.asked == [("cancel", "1a2b3c4d"), ("cancel", "77aa88bb")]
    ended.add("77aa88bb")
    assert post(path, "/cancel", {"run": "nightly"})[0] == 404


NONSENSE = [
    ("GET", "/nothing", None, 404),
    ("GET", "/run", None, 405),
    ("DELETE", "/status", None, 405),
    ("GET", "/runs?limit=0", None, 400),
    ("GET", "/runs?limit=99999999999999999999", None, 400),
    ("GET", "/runs?limit=²", None, 400),
    ("GET", "/runs?" + "a=1&" * 100, None, 400),
    ("POST", "/run", b"", 400),
    ("POST", "/run", b"[]", 400),
    ("POST", "/run", b"\xff\xfe", 400),
    ("POST", "/run", b"[" * 100_000, 400),
    ("POST", "/run", b'{"job": 5}', 400),
    ("POST", "/run", b'{"domains": []}', 400),
    ("POST", "/run", b'{"job": "nightly", "domains": [1]}', 400),
    ("POST", "/run", b'{"job": "nightly", "colour": "blue"}', 400),
    ("POST", "/cancel", b"{}", 400),
    ("POST", "/cancel", b'{"run": ""}', 400),
]


@pytest.mark.parametrize(("method", "target", "body", "status"), NONSENSE)
def test_what_makes_no_sense_is_refused(
    serve: Serve, method: str, target: str, body: bytes | None, status: int
) -> None:
    head = f"{method} {target} HTTP/1.1\r\n" + (f"Content-Length: {len(body)}\r\n" if body is not None else "")
    service = FakeService()
    found, document = said(serve(service), head.encode() + b"\r\n" + (body or b""))
    assert found == status
    assert document["error"]["message"]
    assert service.asked == []


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 1_000_000, 431),
        (b"A" * 1_000_000, 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /status\r\n\r\n", 400),
        (b"GET /status HTTP/2.0\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET //[ HTTP/1.1\r\n\r\n", 404),
        (b"POST /run HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /run HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /run HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /run HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET /status HTTP/1.1\r\nHost:", 408),
        (b"POST /run HTTP/1.1\r\nContent-Length: 5\r\n\r\n{", 408),
    ],
)
def test_hostile_bytes_are_answered_and_hurt_nobody(serve: Serve, raw: bytes, status: int) -> None:
    path = serve()
    assert said(path, raw)[0] == status
    assert get(path, "/status")[0] == 200


def test_half_a_request_and_a_hang_up(serve: Serve) -> None:
    path = serve()
    for raw in (b"", b"GET /sta", b"POST /run HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"):
        with connected(path) as client:
            client.sendall(raw)
    assert get(path, "/status")[0] == 200


def test_a_client_that_drips_is_ended(serve: Serve) -> None:
    """The time is for the whole request: a byte now and then does not prolong it."""
    begun = time.monotonic()
    with connected(serve()) as client, contextlib.suppress(BrokenPipeError):
        while time.monotonic() - begun < 60:
            client.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() - begun < 30


def test_a_client_that_does_not_read_is_ended(serve: Serve) -> None:
    path = serve(FakeService(many(1000)), bounds=Bounds(write=0.2))
    with connected(path) as client:
        client.sendall(b"GET /status HTTP/1.1\r\n\r\n")
        begun = client.recv(65536)  # the answer has begun
        time.sleep(1)
        whole = len(json.dumps(many(1000).document()))
        assert len(begun) + len(received(client)) < whole


def test_a_hundred_silent_connections_keep_nobody_out(serve: Serve) -> None:
    path = serve(bounds=Bounds(read=60, readers=32))
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(path)) for _ in range(100)]
        begun = time.monotonic()
        assert get(path, "/status")[0] == 200
        assert time.monotonic() - begun < 30
        assert threading.active_count() <= threads + 1
        assert received(clients[0]) == b""  # the oldest made room


def test_a_hundred_questions_at_once_are_all_answered(serve: Serve) -> None:
    path = serve(FakeService(), bounds=Bounds())
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(get(path, "/status")[0])) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 100


class _Stuck(FakeService):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def snapshot(self) -> Snapshot:
        self.go.wait(30)
        return super().snapshot()


def test_a_service_that_hangs_is_told(serve: Serve) -> None:
    """More such requests than there are threads: the other questions get an answer too, as soon as one is free."""
    service = _Stuck()
    path = serve(service, bounds=Bounds(call=0.3, calls=2))
    for _ in range(4):
        status, document = get(path, "/status")
        assert (status, document["error"]["message"]) == (504, "the service did not answer in time")
    service.go.set()
    assert get(path, "/status")[0] == 200


def test_a_service_that_raises_is_told(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeService):
        def snapshot(self) -> Snapshot:
            raise ZeroDivisionError("secret")

    status, document = get(serve(Broken()), "/status")
    assert (status, document["error"]["kind"]) == (500, "internal")
    assert "secret" not in json.dumps(document)
    assert "ZeroDivisionError" in caplog.text


def test_shutdown_ends_open_connections(short_folder: Path) -> None:
    path = short_folder / "control.sock"
    server = ControlServer(path, None, FakeService(), QUICK)
    server.start()
    with connected(path) as client:
        begun = time.monotonic()
        server.shutdown()
        assert time.monotonic() - begun < 30
        received(client)
    server.shutdown()
    assert not path.exists()


class _Fresh(FakeService):
    """Nothing can be kept of its snapshots."""

    def snapshot(self) -> Snapshot:
        return replace(self.shown)


def test_status_of_300_guests_takes_milliseconds(serve: Serve) -> None:
    path = serve(_Fresh(many()), bounds=Bounds())
    get(path, "/status")
    times = []
    for _ in range(5):
        begun = time.process_time()  # other work of this machine is not measured
        assert get(path, "/status")[0] == 200
        times.append(time.process_time() - begun)
    assert min(times) < 0.1


def test_mode_and_folder(serve: Serve) -> None:
    before = os.umask(0o077)
    try:
        path = serve()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert sorted(p.name for p in path.parent.iterdir()) == ["control.sock", "control.sock.lock"]


def test_a_second_service_is_refused(serve: Serve) -> None:
    path = serve()
    with pytest.raises(VmbackupError, match=f"another vmbackup daemon answers at {path}"):
        serve()
    path.with_name("control.sock.lock").unlink()  # as a cleaner of old files may do
    with pytest.raises(VmbackupError, match="another vmbackup daemon answers"):
        serve()
    assert get(path, "/status")[0] == 200


def test_what_a_dead_service_left_is_replaced(serve: Serve, short_folder: Path) -> None:
    (short_folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(short_folder / "run" / "control.sock"))
    assert get(serve(), "/status")[0] == 200


def test_a_file_in_the_way_stays(serve: Serve, short_folder: Path) -> None:
    (short_folder / "run").mkdir()
    (short_folder / "run" / "control.sock").write_text("mine")
    with pytest.raises(TargetError, match="is in the way"):
        serve()
    assert (short_folder / "run" / "control.sock").read_text() == "mine"


def test_names_that_cannot_be(serve: Serve, short_folder: Path) -> None:
    with pytest.raises(ConfigError, match='no group "no-such-group"'):
        serve(group="no-such-group")
    with pytest.raises(ConfigError, match="too long"):
        ControlServer(short_folder / ("a" * 120), None, FakeService()).start()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")


def _as_nobody(path: Path, *groups: int) -> "subprocess.CompletedProcess[str]":
    """What curl gets as the user `nobody` with these groups, the first of them the primary one."""
    supplementary = ["--groups", ",".join(map(str, groups[1:]))] if groups[1:] else ["--clear-groups"]
    command = ["setpriv", "--reuid", "65534", "--regid", str(groups[0]), *supplementary]
    command += ["curl", "-s", "--unix-socket", str(path), "http://localhost/status"]
    return subprocess.run(command, capture_output=True, text=True)


@as_root
def test_strangers_are_refused_by_the_file_and_by_the_server(serve: Serve) -> None:
    path = serve()
    assert _as_nobody(path, 65534).stdout == ""
    path.chmod(0o666)
    document = json.loads(_as_nobody(path, 65534).stdout)
    assert document["error"]["kind"] == "access"
    assert document["error"]["exit_code"] == 6
    assert document["error"]["message"] == "only root may use the control socket"


@as_root
def test_members_of_the_group_are_let_in(serve: Serve) -> None:
    """By their primary group or by a supplementary one, however many they have."""
    games = grp.getgrnam("games").gr_gid
    path = serve(group="games")
    assert path.stat().st_gid == games
    for groups in ((games,), (65534, games), (65534, *range(2000, 2200), games), (65534, *range(2000, 2400), games)):
        assert json.loads(_as_nobody(path, *groups).stdout)["host"] == "hv1", groups
    path.chmod(0o666)
    assert '"games"' in json.loads(_as_nobody(path, 65534, 2000).stdout)["error"]["message"]
