"""The page: its own files, which hold no data, and the data that they show."""

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from vmbackup.daemon.control_http import HttpRequest
from vmbackup.daemon.gate import Gate
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.daemon.web_answer import Answer

_FOLDER = "page"
_NAMES = {"index.html": "/", "login.html": "/login"}
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_JSON = "application/json"
_RUNS, _MOST_RUNS = 20, 200  # of the history in one answer: unless told, at most


class Page:
    """The page: its own files, which hold no data, and the data, for whom the gate lets in."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        picture: Callable[[str], bytes | None],
        recent: Callable[[int, str | None], list[dict[str, Any]]],
    ) -> None:
        self._snapshot, self._picture, self._recent = snapshot, picture, recent
        self._files = _files()
        self._told: tuple[Snapshot | None, bytes] = (None, b"")

    def find(self, request: HttpRequest, gate: Gate) -> Answer | None:
        """The answer, None where there is none. Who has not shown the token gets the form that asks for it."""
        path = request.path
        if path in self._files:
            return self._files["/login" if path == "/" and not gate.lets_in(request) else path]
        if not path.startswith(("/api/", "/pictures/")):
            return None
        if not gate.lets_in(request):
            return Answer.plain(HTTPStatus.UNAUTHORIZED, "the token is missing or wrong")
        if path == "/api/status":
            return Answer(_JSON, self._status())
        if path == "/api/runs":
            return self._runs(request.query)
        return self._shown(path.removeprefix("/pictures/"))

    def _status(self) -> bytes:
        """The same bytes for all who ask while the snapshot is the same."""
        snapshot = self._snapshot()
        told, body = self._told
        if told is not snapshot:
            body = json.dumps(snapshot.document(), separators=(",", ":")).encode()
            self._told = snapshot, body
        return body

    def _runs(self, query: Mapping[str, str]) -> Answer:
        limit = query.get("limit", str(_RUNS))
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 0 < int(limit) <= _MOST_RUNS):
            return Answer.plain(HTTPStatus.BAD_REQUEST, f"limit must be a number from 1 to {_MOST_RUNS}")
        return Answer(_JSON, json.dumps({"runs": self._recent(int(limit), query.get("domain"))}).encode())

    def _shown(self, name: str) -> Answer | None:
        picture = self._picture(name) if name and "/" not in name else None
        return None if picture is None else Answer("image/png", picture)


def _files() -> dict[str, Answer]:
    """The page's files by path: the page at "/", the one that asks for the token at "/login"."""
    found = {}
    for file in (resources.files("vmbackup.daemon") / _FOLDER).iterdir():
        kind = _KINDS.get(PurePosixPath(file.name).suffix)
        if kind is not None:
            found[_NAMES.get(file.name, f"/{file.name}")] = Answer(kind, file.read_bytes())
    return found
