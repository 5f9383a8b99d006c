"""The service over TCP, to be read only: metrics for Prometheus, a word for a health check, and the page."""

import ipaddress
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from importlib import resources
from pathlib import PurePosixPath

from vmbackup.config.checks import loopback
from vmbackup.daemon.control_http import HttpAnswer, HttpRequest, encoded
from vmbackup.daemon.gate import Gate
from vmbackup.daemon.listener import Bounds, Listener
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.errors import TargetError

_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_FOLDER = "page"
# Nothing from elsewhere, nothing inline, no frame around it: a name that a guest chose can only be text.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_BACKLOG = 128
_log = logging.getLogger("vmbackup.daemon.web")


class WebServer:
    """Listens at `listen`, HOST:PORT, from `start` to `shutdown`.

    `healthy` gives None, or why not. With `page` there is the page too, which asks for `token` unless that is None.
    """

    def __init__(
        self,
        listen: str,
        metrics: Callable[[], bytes],
        snapshot: Callable[[], Snapshot],
        healthy: Callable[[], str | None],
        page: bool,
        token: str | None,
        picture: Callable[[str], bytes | None],
        bounds: Bounds | None = None,
    ) -> None:
        self._listen = listen
        self._metrics, self._snapshot, self._healthy, self._picture = metrics, snapshot, healthy, picture
        self._page = page
        self._gate = Gate(token)
        self._files = _files() if page else {}
        self._listener = Listener("web", self._respond, bounds=bounds)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen. TargetError where that address cannot be had."""
        self._socket = _listening(self._listen)
        self._listener.start(self._socket)

    def shutdown(self) -> None:
        """Stop listening. May be called twice, and before `start`."""
        self._listener.shutdown()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _respond(self, request: HttpRequest) -> bytes:
        """The bytes that answer any request; nothing is raised."""
        try:
            return self._answer(request)
        except Exception:
            _log.exception("%s %s", request.method, request.path)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, "an error: the service's log tells")

    def _answer(self, request: HttpRequest) -> bytes:
        if not self._is_named(request.headers.get("host", "")):
            return _plain(HTTPStatus.MISDIRECTED_REQUEST, "this service is not known by that name")
        if self._page and request.path == "/login" and request.method == "POST":
            return self._gate.login(request, _HEADERS)
        if request.method not in ("GET", "HEAD"):
            return _plain(
                HTTPStatus.METHOD_NOT_ALLOWED, "GET only: nothing can be changed here", {"Allow": "GET, HEAD"}
            )
        status, kind, body = self._found(request)
        return encoded(status, kind, body, _HEADERS, without_body=request.method == "HEAD")

    def _found(self, request: HttpRequest) -> tuple[HTTPStatus, str, bytes]:
        path = request.path
        if path == "/metrics":
            return HTTPStatus.OK, _METRICS, self._metrics()
        if path == "/healthz":
            sick = self._healthy()
            status = HTTPStatus.SERVICE_UNAVAILABLE if sick else HTTPStatus.OK
            return status, _TEXT, f"{sick or 'ok'}\n".encode()
        if self._page and path in self._files:
            return self._file(request)
        if self._page and (path == "/api/status" or path.startswith("/pictures/")):
            return self._guarded(request)
        return HTTPStatus.NOT_FOUND, _TEXT, b"there is nothing here\n"

    def _file(self, request: HttpRequest) -> tuple[HTTPStatus, str, bytes]:
        """The page's own files hold no data; who has not shown the token gets the page that asks for it."""
        name = request.path
        if name == "/" and not self._gate.lets_in(request):
            name = "/login"
        kind, body = self._files[name]
        return HTTPStatus.OK, kind, body

    def _guarded(self, request: HttpRequest) -> tuple[HTTPStatus, str, bytes]:
        if not self._gate.lets_in(request):
            return HTTPStatus.UNAUTHORIZED, _TEXT, b"the token is missing or wrong\n"
        if request.path == "/api/status":
            answer = HttpAnswer(HTTPStatus.OK, self._snapshot().document())
            return HTTPStatus.OK, "application/json", answer.body()
        picture = self._picture(request.path.removeprefix("/pictures/"))
        if picture is None:
            return HTTPStatus.NOT_FOUND, _TEXT, b"there is no such picture\n"
        return HTTPStatus.OK, "image/png", picture

    def _is_named(self, host: str) -> bool:
        """Whether the client means this service: a page from elsewhere may point a name of its own at loopback."""
        if not loopback(self._listen):
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        try:
            return not name or ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return name == "localhost"


def _plain(status: HTTPStatus, text: str, headers: dict[str, str] | None = None) -> bytes:
    return encoded(status, _TEXT, f"{text}\n".encode(), {**_HEADERS, **(headers or {})})


def _files() -> dict[str, tuple[str, bytes]]:
    """Content type and bytes by path: the page at "/", the one that asks for the token at "/login"."""
    found = {}
    for file in (resources.files("vmbackup.daemon") / _FOLDER).iterdir():
        kind = _KINDS.get(PurePosixPath(file.name).suffix)
        if kind is not None:
            names = {"index.html": "/", "login.html": "/login"}
            found[names.get(file.name, f"/{file.name}")] = kind, file.read_bytes()
    return found


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
    except OSError as error:
        told = "somebody listens there already" if error.errno == 98 else error.strerror or str(error)
        hint = f"'ss -ltnp sport = :{port}' shows who; or correct listen in [daemon]"
        raise TargetError(f"cannot listen at {listen}: {told}", hint) from None
