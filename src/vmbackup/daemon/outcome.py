"""How a run ended, out of how its process ended and what it printed."""

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmbackup.daemon.lines import plain
from vmbackup.daemon.work import Outcome, Status
from vmbackup.errors import VmbackupError

WARNED, INTERRUPTED = 3, 130  # exit codes (cli)
_TEXT = 1000  # characters of an error: a page and a metric's label must hold it


@dataclass(frozen=True)
class Ended:
    """A process that has ended: exit code, or minus the signal that killed it; what it printed.

    `output` is None where it was too much.
    """

    code: int
    output: bytes | None = b""
    last_lines: tuple[str, ...] = field(default_factory=tuple)
    cancelled: bool = False


@dataclass(frozen=True)
class _Told:
    error: str | None
    hint: str | None = None
    kind: str | None = None


def judge(ended: Ended) -> Outcome:
    """The outcome of one command."""
    document = _document(ended.output)
    status = _status(ended, document)
    if status is Status.SUCCESS:
        return Outcome(status, ended.code, document=document)
    told = _warning(document) if status is Status.WARNING else _error(ended, document)
    code = None if ended.code < 0 else ended.code
    return Outcome(status, code, _short(told.error), _short(told.hint), told.kind, document)


def refused(error: VmbackupError) -> Outcome:
    """The outcome of a run that could not begin."""
    return Outcome(Status.FAILED, error.exit_code, error.message, error.hint or None, error.kind)


def _document(output: bytes | None) -> Mapping[str, Any]:
    try:
        document = json.loads(output or b"")
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _status(ended: Ended, document: Mapping[str, Any]) -> Status:
    if ended.code == 0:
        return Status.SUCCESS
    if ended.code == WARNED and not (_first(document, "failed") and not document.get("points")):
        return Status.WARNING
    return Status.CANCELLED if ended.cancelled else Status.FAILED


def _error(ended: Ended, document: Mapping[str, Any]) -> _Told:
    """The document's own words; else the signal; else the last words on standard error."""
    if ended.code < 0:
        return _signalled(-ended.code)
    if isinstance(error := document.get("error"), dict):
        return _Told(_text(error, "message"), _text(error, "hint"), _text(error, "kind"))
    if failed := _first(document, "failed"):
        return _Told(_text(failed, "error"), _text(failed, "hint"), _text(failed, "kind"))
    if isinstance(damaged := document.get("damaged"), list) and damaged:
        number = "one object is" if len(damaged) == 1 else f"{len(damaged)} objects are"
        return _Told(f"{number} damaged", "'vmbackup verify --last' tells who suffers", "damaged")
    said = next((line for line in reversed(ended.last_lines) if line.strip()), "")
    return _Told(f"the run's process ended with exit code {ended.code}{': ' if said else ''}{said}", None, "failed")


def _signalled(number: int) -> _Told:
    hint = "'journalctl -k' tells whether the kernel killed it for want of memory" if number == signal.SIGKILL else None
    return _Told(f"the run's process was killed by signal {number}", hint, "killed")


def _warning(document: Mapping[str, Any]) -> _Told:
    """What the restore points, or else the command, warn of."""
    points = document.get("points")
    listed = [point for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    warnings = [str(text) for point in listed for text in _listed(point.get("warnings"))]
    if isinstance(quarantined := document.get("quarantined"), list) and quarantined:
        warnings.append(f"{len(quarantined)} restore points are in quarantine")
    if doubtful := _listed(document.get("doubtful")):
        warnings.append(f"{len(doubtful)} restore points are doubtful, and may be forged")
    if garbage := _listed(document.get("garbage")):
        warnings.append(f"{len(garbage)} objects are garbage, which costs nothing")
    return _Told("; ".join(warnings) or None)


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _first(document: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    listed = _listed(document.get(key))
    return listed[0] if listed and isinstance(listed[0], dict) else None


def _text(document: Mapping[str, Any], key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) and value else None


def _short(text: str | None) -> str | None:
    if text is None:
        return None
    text = plain(text)
    return text if len(text) <= _TEXT else f"{text[: _TEXT - 3]}..."
