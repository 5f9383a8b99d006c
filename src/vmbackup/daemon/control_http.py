"""HTTP/1.1 as far as the service needs it (RFC 9112): one request a connection, everything bounded."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from vmbackup.errors import VmbackupError

HEAD_BYTES = 16 << 10  # request line and headers: ours have 200 bytes
BODY_BYTES = 256 << 10  # a `run` of 1000 guests by name has 40 KiB
_FIELDS = 16  # of a query
_END_OF_HEAD = b"\r\n\r\n"
_VERSIONS = ("HTTP/1.0", "HTTP/1.1")

_STATUS_OF_KIND = {
    "usage": HTTPStatus.BAD_REQUEST,
    "config": HTTPStatus.BAD_REQUEST,
    "access": HTTPStatus.FORBIDDEN,
    "not_found": HTTPStatus.NOT_FOUND,
    "job_conflict": HTTPStatus.CONFLICT,
}

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
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case; of several the last
    peer: str = ""  # the address of the client, "" on a unix socket


@dataclass(frozen=True)
class HttpAnswer:
    """An answer in JSON."""

    status: HTTPStatus
    document: Mapping[str, Any]

    def encode(self) -> bytes:
        """The bytes to send. The connection is closed behind them."""
        return encoded(self.status, "application/json", self.body())

    def body(self) -> bytes:
        """The document alone."""
        return json.dumps(self.document).encode() + b"\n"


def encoded(
    status: HTTPStatus, kind: str, body: bytes, headers: Mapping[str, str] | None = None, *, without_body: bool = False
) -> bytes:
    """The bytes of an answer of that content type. The connection is closed behind them."""
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Connection: close",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if without_body else body)


def failure(error: VmbackupError, status: HTTPStatus | None = None) -> HttpAnswer:
    """An expected failure as an answer, with the status of its kind unless told."""
    status = status or _STATUS_OF_KIND.get(error.kind, HTTPStatus.INTERNAL_SERVER_ERROR)
    return failure_document(status, error.kind, error.message, error.hint, error.exit_code)


def failure_document(status: HTTPStatus, kind: str, message: str, hint: str, exit_code: int) -> HttpAnswer:
    """Any failure as an answer, in the JSON of the command line."""
    return HttpAnswer(status, {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": exit_code}})


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
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    length = _body_length(headers)
    body = got[end + len(_END_OF_HEAD) :]
    while len(body) < length:
        await _more(body, receive)
    return HttpRequest(method, path, query, bytes(body[:length]), dict(headers))


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


def _body_length(headers: list[tuple[str, str]]) -> int:
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
