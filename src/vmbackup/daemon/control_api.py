"""What can be asked over the control socket: requests in, answers out; nothing is raised."""

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Protocol

from vmbackup.daemon.control_http import BadRequest, HttpAnswer, HttpRequest, failure, failure_document
from vmbackup.daemon.group import whole
from vmbackup.daemon.snapshot import RunState, Snapshot
from vmbackup.errors import NotFoundError, UsageError, VmbackupError

_RUNS, _MOST_RUNS = 50, 1000  # of the history in one answer: unless told, at most
_SHOWN = 5  # runs that a hint names
_BUG, _LOG = "the service met an error that it does not know", "its log tells: journalctl -u vmbackup"
_log = logging.getLogger("vmbackup.daemon.control")


class Service(Protocol):
    """What answers. Methods are called from several threads at once, and raise VmbackupError."""

    def snapshot(self) -> Snapshot:
        """All that is known now."""

    def run_job(self, name: str, domains: Sequence[str], full: bool) -> list[str]:
        """Ask for backups of a job's guests, of all for no `domains`: the ids of the requests."""

    def cancel(self, run_id: str) -> None:
        """End a run, or take a request out of the queue."""

    def reload(self) -> None:
        """Read the configuration again. ConfigError where it is wrong: then the old one stays."""

    def recent(self, limit: int, domain: str | None) -> list[dict[str, Any]]:
        """The runs that ended last, newest first.

        Each {"id", "kind", "job", "domain", "repository", "target", "trigger", "attempt", "due", "started", "finished",
        "status", "exit_code", "error", "hint"}, times ISO 8601 or null.
        """


class Api:
    """The endpoints."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._encoding = threading.Lock()
        self._kept: tuple[Snapshot, bytes] | None = None
        self._routes: dict[str, dict[str, Callable[[HttpRequest], bytes]]] = {
            "/status": {"GET": self._status},
            "/runs": {"GET": self._runs},
            "/run": {"POST": self._run},
            "/cancel": {"POST": self._cancel},
            "/reload": {"POST": self._reload},
        }

    def respond(self, request: HttpRequest) -> bytes:
        """The bytes that answer any request."""
        try:
            return self._answer(request)
        except Exception:
            _log.exception("%s %s", request.method, request.path)
            return failure_document(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", _BUG, _LOG, 1).encode()

    def _answer(self, request: HttpRequest) -> bytes:
        methods = self._routes.get(request.path)
        if methods is None:
            known = ", ".join(self._routes)
            error = NotFoundError("there is no such place on the control socket", f"there are {known}")
            return failure(error).encode()
        if request.method not in methods:
            wrong = UsageError(f"{request.path} takes {', '.join(methods)} only")
            return failure(wrong, HTTPStatus.METHOD_NOT_ALLOWED).encode()
        try:
            return methods[request.method](request)
        except VmbackupError as error:
            return failure(error).encode()
        except BadRequest as error:
            return failure(UsageError(error.message), error.status).encode()

    def _status(self, _request: HttpRequest) -> bytes:
        """Encoded once a snapshot: many who ask at once cost no more than one."""
        snapshot = self._service.snapshot()
        with self._encoding:
            if self._kept is None or self._kept[0] is not snapshot:
                self._kept = (snapshot, _done(snapshot.document()))
            return self._kept[1]

    def _runs(self, request: HttpRequest) -> bytes:
        limit = request.query.get("limit", str(_RUNS))
        if not (limit.isascii() and limit.isdecimal() and len(limit) < 6 and 0 < int(limit) <= _MOST_RUNS):
            raise UsageError(f"limit is a number from 1 to {_MOST_RUNS}")
        return _done({"runs": self._service.recent(int(limit), request.query.get("domain"))})

    def _run(self, request: HttpRequest) -> bytes:
        asked = _body(request, {"job": str, "domains": list, "full": bool})
        domains = asked.get("domains", [])
        if not all(isinstance(domain, str) for domain in domains):
            raise UsageError('"domains" is a list of names')
        if "job" not in asked:
            raise UsageError('"job" is missing', "name a job of the configuration")
        return _done({"requests": self._service.run_job(asked["job"], domains, asked.get("full", False))})

    def _cancel(self, request: HttpRequest) -> bytes:
        asked = _body(request, {"run": str})
        if not asked.get("run"):
            raise UsageError('"run" is missing', "name a run, the beginning of its id, or a job")
        runs = find_runs(self._service.snapshot().runs, asked["run"])
        self._cancel_each(list(dict.fromkeys(whole(run.id) for run in runs)))
        told = [{"id": r.id, "kind": r.kind, "domain": r.domain, "repository": r.repository} for r in runs]
        return _done({"run": told[0], "runs": told})

    def _cancel_each(self, ids: Sequence[str]) -> None:
        """One that has just ended keeps no other alive. NotFoundError where all have."""
        gone: list[NotFoundError] = []
        for id_ in ids:
            try:
                self._service.cancel(id_)
            except NotFoundError as error:
                gone.append(error)
        if len(gone) == len(ids):
            raise gone[0]

    def _reload(self, _request: HttpRequest) -> bytes:
        self._service.reload()
        return _done({"reloaded": True})


def _done(document: Mapping[str, Any]) -> bytes:
    return HttpAnswer(HTTPStatus.OK, document).encode()


def find_runs(runs: Sequence[RunState], name: str) -> list[RunState]:
    """The run whose id is `name`, all of the job of that name, or the only run whose id begins so.

    All the parts of a group, the one that was named first. NotFoundError, UsageError.
    """
    named = [run for run in runs if run.id == name] or [run for run in runs if run.job == name]
    found = named or [run for run in runs if run.id.startswith(name)]
    if not found:
        hint = f"there is {_listed(runs)}" if runs else "nothing runs, and nothing waits"
        raise NotFoundError(f'there is no run "{name}", and none of a job of that name', hint)
    ids = {whole(run.id) for run in found}
    if not named and len(ids) > 1:
        raise UsageError(f'"{name}" is the beginning of several runs', f"it may be {_listed(found)}")
    return [*found, *(run for run in runs if whole(run.id) in ids and run not in found)]


def _listed(runs: Sequence[RunState]) -> str:
    words = [f"{run.id} ({run.kind} of {run.domain or run.repository})" for run in runs[:_SHOWN]]
    more = [f"{len(runs) - _SHOWN} more"] if len(runs) > _SHOWN else []
    return ", ".join([*words, *more])


def _body(request: HttpRequest, fields: Mapping[str, type]) -> dict[str, Any]:
    """The JSON object of a request, with these fields and no others. BadRequest."""
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
    if not isinstance(document, dict):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "the body is not a JSON object")
    for name, value in document.items():
        if name not in fields:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"a field is not known; known are {', '.join(fields)}")
        if not isinstance(value, fields[name]):
            raise BadRequest(HTTPStatus.BAD_REQUEST, f'"{name}" is of the wrong type')
    return document
