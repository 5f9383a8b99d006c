"""Answers of the web server: forbidding headers, gzip where it is asked for."""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from vmbackup.daemon.control_http import HttpRequest, encoded

# Nothing from elsewhere, nothing inline, no frame around it: a name that a guest chose can only be text.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding, Cookie, Authorization",
}
_TEXT = "text/plain; charset=utf-8"
_WORTH_PACKING = 1024  # bytes: below, gzip saves no packet
_LEVEL = 3  # of gzip: a tenth of the size for a few milliseconds


@dataclass(frozen=True)
class Answer:
    """What is sent, before it is packed."""

    kind: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def plain(cls, status: HTTPStatus, text: str, **headers: str) -> "Answer":
        """A sentence."""
        return cls(_TEXT, f"{text}\n".encode(), status, headers)

    def encode(self, request: HttpRequest) -> bytes:
        """The bytes, with gzip where it is asked for."""
        body, headers = self.body, {**HEADERS, **self.headers}
        if len(body) >= _WORTH_PACKING and _takes_gzip(request):
            body, headers["Content-Encoding"] = gzip.compress(body, _LEVEL, mtime=0), "gzip"
        return encoded(self.status, self.kind, body, headers, without_body=request.method == "HEAD")


def _takes_gzip(request: HttpRequest) -> bool:
    for coding in request.headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = coding.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
