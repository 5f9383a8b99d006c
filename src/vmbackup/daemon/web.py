"""The service over TCP, to be read only: metrics for Prometheus, a word for a health check, and the page."""

import errno
import ipaddress
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from vmbackup.config.checks import loopback
from vmbackup.daemon.control_http import HttpRequest
from vmbackup.daemon.gate import Gate
from vmbackup.daemon.listener import Bounds, Listener
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.daemon.web_answer import HEADERS, Answer
from vmbackup.daemon.web_page import Page
from vmbackup.errors import TargetError

_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_BACKLOG = 128
_log = logging.getLogger("vmbackup.daemon.web")


class WebServer:
    """Listens at `listen`, HOST:PORT, from `start` to `shutdown`.

    `healthy` gives None, or why not. With `page` there is the page too, which asks for `token` unless that is None.
    `recent` gives the last runs of a domain, newest first.
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
        recent: Callable[[int, str | None], list[dict[str, Any]]] | None = None,
    ) -> None:
        """Raises ConfigError for a token that is too short."""
        self._listen = listen
        self._metrics, self._healthy = metrics, healthy
        self._gate = Gate(token if page else None)
        self._page = Page(snapshot, picture, recent or (lambda _limit, _domain: [])) if page else None
        self._listener = Listener("web", self._respond, bounds=bounds)
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that it listens at."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

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
            if self._page and (request.method, request.path) == ("POST", "/login") and self._is_named(request):
                return self._gate.login(request, HEADERS)
            return self._answer(request).encode(request)
        except Exception:
            _log.exception("%s %s", request.method, request.path)
            text = "an error that the service does not know; its log tells: journalctl -u vmbackup"
            return Answer.plain(HTTPStatus.INTERNAL_SERVER_ERROR, text).encode(request)

    def _answer(self, request: HttpRequest) -> Answer:
        if not self._is_named(request):
            return Answer.plain(HTTPStatus.MISDIRECTED_REQUEST, "this service is not known by that name")
        if request.method not in ("GET", "HEAD"):
            return Answer.plain(HTTPStatus.METHOD_NOT_ALLOWED, "nothing can be changed here", Allow="GET, HEAD")
        if request.path == "/metrics":
            return Answer(_METRICS, self._metrics())
        if request.path == "/healthz":
            sick = self._healthy()
            return Answer.plain(HTTPStatus.SERVICE_UNAVAILABLE if sick else HTTPStatus.OK, sick or "ok")
        found = self._page.find(request, self._gate) if self._page else None
        return found or Answer.plain(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _is_named(self, request: HttpRequest) -> bool:
        """Whether the client means this service: a page from elsewhere may point a name of its own at loopback."""
        host = request.headers.get("host", "")
        if not loopback(self._listen) or not host:
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
        try:
            return ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return name.lower() == "localhost"


def _listening(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, int(port)), family=family, backlog=_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise TargetError(f"cannot listen at {listen}: {_told(error)}", _hint(error, port)) from None


def _told(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "somebody listens there already"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine does not have that address"
    return error.strerror or str(error)


def _hint(error: OSError, port: str) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"'ss -ltnp sport = :{port}' shows who; or correct listen in [daemon]"
    return "'ip address' shows the addresses that there are; correct listen in [daemon]"
