"""HTTP/1.1 as far as the control socket needs it (RFC 9112): one request a connection, everything bounded."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

HEAD_BYTES = 16 << 10  # request line and headers: ours have 200 bytes
BODY_BYTES = 256 << 10  # a `run` of 1000 guests by name has 40 KiB
_FIELDS = 16  # of a query
_END_OF_HEAD = b"\r\n\r\n"
_VERSIONS = ("HTTP/1.0", "HTTP/1.1")

Receive = Callable[[], Awaitable[bytes]]


class BadRequest(Exception):
    """What came is no request that can be answered: the status and a sentence say why."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class HttpRequest:
    """A request, read whole."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class HttpAnswer:
    """An answer in JSON."""

    status: HTTPStatus
    document: Mapping[str, Any]

    def encode(self) -> bytes:
        """The bytes to send. The connection is closed behind them."""
        body = json.dumps(self.document).encode() + b"\n"
        head = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
        ]
        return "\r\n".join([*head, "", ""]).encode() + body


async def read_request(receive: Receive) -> HttpRequest:
    """The one request of a connection. Raises BadRequest; EOFError where the other end said nothing at all.

    `receive` gives some bytes, none at the end. The caller limits the time.
    """
    got = bytearray()
    while (end := got.find(_END_OF_HEAD)) < 0:
        if len(got) > HEAD_BYTES:
            message = f"the headers are longer than {HEAD_BYTES} bytes"
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)
        await _more(got, receive)
    request_line, *lines = got[:end].decode("latin-1").split("\r\n")
    method, path, query = _request_line(request_line)
    length = _body_length(lines)
    body = got[end + len(_END_OF_HEAD) :]
    while len(body) < length:
        await _more(body, receive)
    return HttpRequest(method, path, query, bytes(body[:length]))


async def _more(got: bytearray, receive: Receive) -> None:
    part = await receive()
    if not part and not got:
        raise EOFError
    if not part:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the request broke off")
    got += part


def _request_line(line: str) -> tuple[str, str, dict[str, str]]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[2] not in _VERSIONS or not parts[0].isalpha() or not parts[1].startswith("/"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "that is not a request of HTTP/1.1")
    path, _, query = parts[1].partition("?")
    try:
        return parts[0], path, dict(parse_qsl(query, max_num_fields=_FIELDS))
    except ValueError:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the query has too many fields") from None


def _body_length(lines: list[str]) -> int:
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    if any(name == "transfer-encoding" for name, _ in headers):
        raise BadRequest(HTTPStatus.LENGTH_REQUIRED, "the body needs a Content-Length")
    lengths = [value for name, value in headers if name == "content-length"]
    if not lengths:
        return 0
    if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdecimal()):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the Content-Length is not a number")
    if len(lengths[0]) > 9 or int(lengths[0]) > BODY_BYTES:
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {BODY_BYTES} bytes")
    return int(lengths[0])
