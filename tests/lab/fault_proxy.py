"""A proxy between a client and an HTTP server that does what networks, gateways and busy servers do."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_PIECE = 64 << 10
_RESET = struct.pack("ii", 1, 0)   # SO_LINGER: the connection ends by a reset, as a cut one does


@dataclass(frozen=True)
class Request:
    """A request as it came: its head without the empty line, and its body."""

    method: str
    path: str
    head: bytes
    body: bytes


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of its being passed on and answered. All at their defaults: nothing.

    `send`: bytes of the body that reach the server before both sides are cut, None for all of them. `swallow`: the
    server is not asked. `status`: answered instead, with `code` in an S3 error. `flip`: a byte of the body is
    changed. `give`: bytes of the answer's body that reach the client before it is cut; 0 cuts before the head.
    `claim`: the answer's body and its Content-Length end here. `delay`: seconds before the answer; `drip`: seconds
    between its pieces.
    """

    send: int | None = None
    swallow: bool = False
    status: int = 0
    code: str = ""
    flip: bool = False
    give: int | None = None
    claim: int | None = None
    delay: float = 0.0
    drip: float = 0.0


Chooser = Callable[[Request], Fault | None]


class FaultProxy:
    """Listens at `http` for a server at `upstream`. A context manager.

    `faults` chooses what happens to a request, in the thread of its connection; `seen` are the requests.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self.faults: Chooser = lambda _: None
        self.seen: list[Request] = []

    def __enter__(self) -> Self:
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError, _CutError):
                    while proxy._serve(self.request):
                        pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.http = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def first(self, count: int, fault: Fault, method: str = "", path: str = "") -> None:
        """The first `count` requests from now on of that method and path (a pattern) meet the fault."""
        left, lock = [count], threading.Lock()

        def choose(request: Request) -> Fault | None:
            if method not in ("", request.method) or not re.search(path, request.path):
                return None
            with lock:
                left[0] -= 1
                return fault if left[0] >= 0 else None

        self.faults = choose

    def count(self, method: str) -> int:
        """How many requests of that method have come."""
        return sum(request.method == method for request in self.seen)

    def _serve(self, client: socket.socket) -> bool:
        """One request; True if the connection may bring another one."""
        request = _read_request(client)
        if request is None:
            return False
        self.seen.append(request)
        fault = self.faults(request) or Fault()
        if fault.send is not None:
            self._pass_on(request, request.body[: fault.send], wait=False)
            _cut(client)
            return False
        if fault.status:
            answer = _answer(request, fault.status, fault.code)
        elif fault.swallow:
            answer = b'HTTP/1.1 200 OK\r\nETag: "00000000000000000000000000000000"\r\nContent-Length: 0\r\n\r\n'
        else:
            body = request.body
            if fault.flip and body:
                body = bytes([body[0] ^ 1]) + body[1:]
            answer = self._pass_on(request, body, wait=True)
        time.sleep(fault.delay)
        return self._give(client, answer, fault)

    def _pass_on(self, request: Request, body: bytes, *, wait: bool) -> bytes:
        with socket.create_connection(self._upstream, timeout=60) as server:
            server.sendall(request.head + b"\r\nConnection: close\r\n\r\n" + body)
            if not wait:
                time.sleep(0.05)   # so that the server has taken what came
                return b""
            answer = bytearray()
            while piece := server.recv(1 << 20):
                answer += piece
        return bytes(answer)

    def _give(self, client: socket.socket, answer: bytes, fault: Fault) -> bool:
        head, _, body = answer.partition(b"\r\n\r\n")
        if fault.give == 0:
            _cut(client)
            return False
        if fault.claim is not None:
            body = body[: fault.claim]
            head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(body), head)
        whole = head + b"\r\n\r\n" + (body if fault.give is None else body[: fault.give])
        for start in range(0, len(whole), _PIECE):
            client.sendall(whole[start : start + _PIECE])
            time.sleep(fault.drip)
        if fault.give is not None:
            time.sleep(0.05)   # a reset overtakes what is still on its way
            _cut(client)
        return False


class _CutError(Exception):
    """The client went away within a request."""


def _read_request(client: socket.socket) -> Request | None:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        piece = client.recv(_PIECE)
        if not piece:
            return None
        data += piece
    raw, _, rest = bytes(data).partition(b"\r\n\r\n")
    lines = raw.split(b"\r\n")
    method, path, _ = lines[0].decode().split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if headers.get(b"expect") == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        lines = [line for line in lines if not line.lower().startswith(b"expect:")]
    body = bytearray(rest)
    length = int(headers.get(b"content-length", 0))
    while len(body) < length:
        piece = client.recv(1 << 20)
        if not piece:
            raise _CutError
        body += piece
    return Request(method, path, b"\r\n".join(lines), bytes(body))


def _answer(request: Request, status: int, code: str) -> bytes:
    """An error in S3's words; to a HEAD it has no body."""
    body = b"" if request.method == "HEAD" else (
        f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>from the proxy</Message></Error>'.encode())
    head = f"HTTP/1.1 {status} {code or 'Error'}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def _cut(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    client.close()
