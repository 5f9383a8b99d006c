"""The web server: what it answers and to whom, and that no client can hurt it. The page itself: tests/real/daemon."""

import contextlib
import gzip
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import quote

import pytest

from tests.unit.daemon.states import many, snapshot, three
from vmbackup.daemon.control_http import HttpRequest
from vmbackup.daemon.gate import Gate, Tries
from vmbackup.daemon.listener import Bounds
from vmbackup.daemon.metrics import exposition
from vmbackup.daemon.web import WebServer
from vmbackup.errors import ConfigError, TargetError

TOKEN = "correct-horse-battery-staple"
QUICK = Bounds(read=0.5, call=2.0, write=0.5, close=0.5, readers=16, open=24)
HERE = "127.0.0.1"
DATA = ("/api/status", "/api/runs", "/pictures/web01.png")
Serve = Callable[..., WebServer]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, response: HTTPResponse) -> "Answer":
        return cls(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as stack:

        def start(
            listen: str = "127.0.0.1:0", *, page: bool = True, token: str | None = None, **more: Any
        ) -> WebServer:
            says = {"metrics": lambda: exposition(three()), "snapshot": three, "healthy": lambda: None} | more
            says = {"picture": {"web01.png": b"PNG"}.get, "bounds": QUICK} | says
            server = WebServer(listen, page=page, token=token, **says)
            server.start()
            stack.callback(server.shutdown)
            return server

        yield start


def ask(
    server: WebServer, path: str, method: str = "GET", body: str = "", at: str = "127.0.0.1", **headers: str
) -> Answer:
    with contextlib.closing(HTTPConnection(at, server.port, timeout=10)) as client:
        client.request(method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()})
        return Answer.of(client.getresponse())


def login(server: WebServer, token: str, **headers: str) -> Answer:
    return ask(server, "/login", "POST", f"token={quote(token)}", **headers)


def test_metrics(serve: Serve) -> None:
    """In the text format of Prometheus, with no page and no token."""
    answer = ask(serve(page=False), "/metrics")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert answer.body == exposition(three())


def test_answers_are_packed_where_that_is_asked_for(serve: Serve) -> None:
    shown = many(300)
    server = serve(snapshot=lambda: shown, metrics=lambda: b"some_metric 1\n" * 1000)
    for path in ("/metrics", "/api/status"):
        plain, packed = ask(server, path), ask(server, path, Accept_Encoding="br, gzip;q=1.0")
        assert packed.headers["content-encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 5
        assert "content-encoding" not in ask(server, path, Accept_Encoding="gzip;q=0").headers


def test_health(serve: Serve) -> None:
    sick: list[str] = []
    server = serve(page=False, healthy=lambda: sick[0] if sick else None)
    assert (ask(server, "/healthz").status, ask(server, "/healthz").body) == (200, b"ok\n")
    sick.append("the scheduler has given no sign of life for 200 s")
    assert (ask(server, "/healthz").status, ask(server, "/healthz").body) == (503, sick[0].encode() + b"\n")


def test_what_fails_is_told_without_its_details(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> bytes:
        raise RuntimeError("details")

    answer = ask(serve(metrics=fail), "/metrics")
    assert (answer.status, b"details" in answer.body) == (500, False)
    assert "details" in caplog.text


def test_the_page_is_off_unless_it_is_asked_for(serve: Serve) -> None:
    server = serve(page=False)
    assert {ask(server, path).status for path in ("/", "/login", "/app.js", *DATA)} == {404}
    assert login(server, "").status == 405


def test_the_page_and_its_data(serve: Serve) -> None:
    """Each file with its type, the snapshot, the history of a guest, pictures by name."""
    history = [{"id": "1", "domain": "web01"}, {"id": "2", "domain": "web01"}]
    asked: list[tuple[int, str | None]] = []

    def recent(limit: int, domain: str | None) -> list[dict[str, Any]]:
        asked.append((limit, domain))
        return history[:limit]

    server = serve(recent=recent)
    assert b'<script type="module" src="/app.js">' in ask(server, "/").body
    kinds = {path: ask(server, path).headers["content-type"] for path in ("/style.css", "/app.js", "/icon.svg")}
    assert list(kinds.values()) == ["text/css; charset=utf-8", "text/javascript; charset=utf-8", "image/svg+xml"]
    assert json.loads(ask(server, "/api/status").body) == three().document()
    assert json.loads(ask(server, "/api/runs?limit=1&domain=web01").body) == {"runs": history[:1]}
    assert asked == [(1, "web01")]
    assert ask(server, "/pictures/web01.png").body == b"PNG"
    assert {ask(server, f"/api/runs?limit={limit}").status for limit in ("0", "x", "-1", "9" * 5000)} == {400}
    missing = (
        "/pictures/other",
        "/pictures/",
        "/pictures/../web01.png",
        "/api/",
        "/../app.js",
        "/index.html",
        "/%2e%2e/x",
    )
    assert {ask(server, path).status for path in missing} == {404}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_nothing_can_be_changed(serve: Serve, method: str) -> None:
    server = serve()
    for path in ("/", "/metrics", "/healthz", "/api/status", "/nowhere"):
        answer = ask(server, path, method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_a_body(serve: Serve) -> None:
    server = serve(snapshot=snapshot)
    for path in ("/", "/api/status", "/healthz"):
        one, other = ask(server, path), ask(server, path, "HEAD")
        assert (other.headers["content-length"], other.body) == (str(len(one.body)), b"")


def test_headers_forbid_all_that_is_not_needed(serve: Serve) -> None:
    server = serve(token=TOKEN)
    answers = [ask(server, path) for path in ("/", "/metrics", "/nowhere", *DATA)] + [login(server, TOKEN)]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == (
            "nosniff",
            "no-referrer",
        )
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control-") for name in answer.headers)


def test_the_token_guards_the_data(serve: Serve) -> None:
    """Without it there is the form, and no data; metrics and health are for everybody."""
    server = serve(token=TOKEN)
    assert b'action="/login"' in ask(server, "/").body
    assert {ask(server, path).status for path in DATA} == {401}
    assert {ask(server, path, Authorization="Bearer wrong").status for path in DATA} == {401}
    assert {ask(server, path, Authorization=f"Bearer {TOKEN}").status for path in DATA} == {200}
    assert {ask(server, path).status for path in ("/metrics", "/healthz", "/app.js")} == {200}


def test_the_form_gives_a_cookie(serve: Serve) -> None:
    """Which opens the page, is no token, and no script or other site has a use of it."""
    server = serve(token=TOKEN)
    answer = login(server, TOKEN)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert set(attributes) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    assert TOKEN not in cookie
    assert {ask(server, path, Cookie=cookie).status for path in DATA} == {200}
    assert b"app.js" in ask(server, "/", Cookie=f"other=1; {cookie}").body
    wrong = ("vmbackup=", "vmbackup=\xff", f"vmbackup={TOKEN}", cookie[:-1], f'{cookie}"', "\x01=;;,")
    assert {ask(server, "/api/status", Cookie=shown).status for shown in wrong} == {401}
    assert "; Secure" in login(server, TOKEN, X_Forwarded_Proto="https").headers["set-cookie"]


def test_a_wrong_token_leads_back_to_the_form(serve: Serve) -> None:
    server = serve(token=TOKEN)
    answers = [login(server, "wrong") for _ in range(Tries.AT_ONCE + 1)]
    assert {"set-cookie" in answer.headers for answer in answers} == {False}
    assert answers[0].headers["location"] == "/#wrong"
    assert answers[-1].headers["location"] == "/#wait"
    assert login(server, TOKEN).headers["location"] == "/#wait"
    bodies = ("", "token", "a=1&b=2&c=3&d=4&e=5", "token=%ff%00")
    assert {ask(server, "/login", "POST", body).status for body in bodies} == {303}


def test_too_many_wrong_tries_keep_out_only_their_own_address() -> None:
    """For a while; who is in already stays in."""
    now = [1000.0]
    gate = Gate(TOKEN, lambda: now[0])

    def shows(token: str, peer: str) -> bool:
        return gate.lets_in(HttpRequest("GET", "/", headers={"authorization": f"Bearer {token}"}, peer=peer))

    for _ in range(3 * Tries.AT_ONCE):
        assert not shows("wrong", "2001:db8::1")
    assert [shows(TOKEN, peer) for peer in ("2001:db8::1", "2001:db8::2", "2001:db8:1::1")] == [False, False, True]
    now[0] += Tries.REFILL_SECONDS + 0.1
    assert shows(TOKEN, "2001:db8::1")


def test_few_addresses_are_remembered() -> None:
    tries = Tries(lambda: 0.0)
    for number in range(5000):
        tries.wrong(f"10.0.{number // 256}.{number % 256}")
    assert len(tries._full_at) == Tries.ADDRESSES


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(ConfigError, match="less than 16 characters"):
        Gate("short")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "localhost.evil.example", "127.0.0.1.x"]
)
def test_other_names_for_loopback_are_refused(serve: Serve, host: str) -> None:
    """DNS rebinding: a site of somebody's whose name leads here."""
    server = serve(token=TOKEN)
    assert {ask(server, path, Host=host).status for path in ("/", "/metrics", "/api/status")} == {421}
    assert ask(server, "/login", "POST", f"token={TOKEN}", Host=host).status == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9847", "127.0.0.1", "127.0.0.1:9847", "[::1]:9847", "[::1]"])
def test_its_own_names_are_not(serve: Serve, host: str) -> None:
    assert ask(serve(), "/", Host=host).status == 200


def test_beyond_loopback_any_name_will_do(serve: Serve) -> None:
    assert ask(serve("0.0.0.0:0", token=TOKEN), "/healthz", Host="hv1.example.org").status == 200


def test_ipv6(serve: Serve) -> None:
    """An address of IPv6; and that of all, which is for IPv4 too."""
    assert ask(serve("[::1]:0"), "/healthz", at="::1").status == 200
    server = serve("[::]:0", token=TOKEN)
    assert [ask(server, "/healthz", at=at).status for at in ("::1", "127.0.0.1")] == [200, 200]


def test_a_port_in_use_is_told(serve: Serve) -> None:
    port = serve().port
    with pytest.raises(
        TargetError, match=f"cannot listen at 127.0.0.1:{port}: somebody listens there already"
    ) as error:
        serve(f"127.0.0.1:{port}")
    assert f"ss -ltnp sport = :{port}" in error.value.hint


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:9847"])
def test_an_address_of_another_machine_is_told(serve: Serve, listen: str) -> None:
    with pytest.raises(TargetError, match=f"cannot listen at {listen}: ") as error:
        serve(listen)
    assert "ip address" in error.value.hint


def test_curl_understands_it(serve: Serve) -> None:
    """With a password that its command line does not hold."""
    server = serve(token=TOKEN)
    command = ["curl", "-sf", "--compressed", "-H", "@-", f"http://localhost:{server.port}/api/status"]
    done = subprocess.run(command, input=f"Authorization: Bearer {TOKEN}\n".encode(), capture_output=True, check=True)
    assert json.loads(done.stdout) == three().document()


def test_the_snapshot_is_told_once(serve: Serve) -> None:
    """All who ask while nothing has changed get the same bytes."""
    shown = [three()]
    server = serve(snapshot=lambda: shown[0])
    first = ask(server, "/api/status").body
    object.__setattr__(shown[0], "host", "changed behind its back")
    assert ask(server, "/api/status").body == first
    shown[0] = three()
    assert ask(server, "/api/status").body == first
    shown[0] = snapshot()
    assert ask(server, "/api/status").body != first


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 50000,
        b"GET / HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20000,
        b"POST /login HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /login HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
    ],
)
def test_noise_does_no_harm(serve: Serve, raw: bytes) -> None:
    server = serve()
    client = socket.create_connection((HERE, server.port), timeout=10)
    with client, contextlib.suppress(OSError):  # it may be let go at any time: not connected, then
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass
    assert ask(server, "/healthz").status == 200


def test_many_silent_and_slow_clients_do_no_harm(serve: Serve) -> None:
    """Those who say nothing, and those who never take their answer: others are answered, threads do not grow."""
    server = serve(metrics=lambda: b"x" * (8 << 20))
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            if number % 2:
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert ask(server, "/healthz").status == 200
        assert threading.active_count() <= before + QUICK.calls
        assert len(server._listener._open) <= QUICK.open


def test_a_stop_does_not_wait_for_clients(serve: Serve) -> None:
    """May be asked for twice, and before the start."""
    server = serve()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        began = time.monotonic()
        server.shutdown()
        server.shutdown()
        assert time.monotonic() - began < 5
    WebServer("127.0.0.1:0", lambda: b"", three, lambda: None, False, None, lambda _name: None).shutdown()
