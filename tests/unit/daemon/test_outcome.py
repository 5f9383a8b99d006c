"""How runs ended, out of exit codes and documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmbackup.daemon.outcome import Ended, judge
from vmbackup.daemon.work import Outcome, Status

POINT = {"id": "p", "status": "warning", "warnings": ["one", "two"]}
FAILED = {"domain": "a", "error": "no such disk", "hint": "look", "kind": "not_found"}
ERROR = {"kind": "access", "message": "wrong key", "hint": "", "exit_code": 6}


def outcome(code: int, document: Any = None, **more: Any) -> Outcome:
    output = more.pop("output", b"" if document is None else json.dumps(document).encode())
    return judge(Ended(code, output, **more))


CASES = [
    (0, {"points": [POINT]}, Status.SUCCESS, None, None),
    (0, None, Status.SUCCESS, None, None),
    (1, {"error": ERROR, "failed": [FAILED]}, Status.FAILED, "wrong key", "access"),
    (1, {"failed": [FAILED]}, Status.FAILED, "no such disk", "not_found"),
    (1, {"failed": []}, Status.FAILED, "the run's process ended with exit code 1", "failed"),
    (1, {"failed": "?", "error": 7, "damaged": 8}, Status.FAILED, "the run's process ended with exit code 1", "failed"),
    (3, {"points": [POINT], "failed": []}, Status.WARNING, "one; two", None),
    (3, {"points": [{**POINT, "warnings": []}], "copies": [{"failed": [FAILED]}]}, Status.WARNING, None, None),
    (3, {"copied": [POINT], "failed": [FAILED]}, Status.FAILED, "no such disk", "not_found"),
    (3, {"damaged": [], "quarantined": [1, 2]}, Status.WARNING, "2 restore points are in quarantine", None),
    (3, None, Status.WARNING, None, None),
    (4, {"damaged": [{}]}, Status.FAILED, "one object is damaged", "damaged"),
    (130, {"error": {"kind": "interrupted", "message": "interrupted"}}, Status.FAILED, "interrupted", "interrupted"),
    (-9, None, Status.FAILED, "the run's process was killed by signal 9", "killed"),
    (-11, {"error": ERROR}, Status.FAILED, "the run's process was killed by signal 11", "killed"),
]


@pytest.mark.parametrize(("code", "document", "status", "error", "kind"), CASES)
def test_outcomes(code: int, document: Any, status: Status, error: str | None, kind: str | None) -> None:
    found = outcome(code, document)
    assert (found.status, found.error, found.kind) == (status, error, kind)
    assert found.exit_code == (code if code >= 0 else None)
    assert found.document == (document or {})


@pytest.mark.parametrize(("code", "status"), [(0, Status.SUCCESS), (3, Status.WARNING), (130, Status.CANCELLED),
                                              (1, Status.CANCELLED), (-15, Status.CANCELLED)])  # fmt: skip
def test_after_a_cancel(code: int, status: Status) -> None:
    """What was done all the same is done."""
    assert outcome(code, cancelled=True).status is status


@pytest.mark.parametrize("output", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, None])
def test_what_is_no_document(output: bytes | None) -> None:
    """The exit code still counts."""
    assert outcome(0, output=output).status is Status.SUCCESS
    found = outcome(1, output=output, last_lines=("first", "the reason", " "))
    assert (found.status, found.document) == (Status.FAILED, {})
    assert found.error == "the run's process ended with exit code 1: the reason"


def test_errors_are_bounded_and_plain() -> None:
    found = outcome(1, {"error": {"message": "\x1b]0;" + "x" * 5000, "hint": "y" * 5000}})
    assert found.error
    assert found.hint
    assert (len(found.error), len(found.hint)) == (1000, 1000)
    assert found.error.startswith("?]0;x")


def test_memory_is_the_usual_suspect() -> None:
    assert outcome(-9).hint == "'journalctl -k' tells whether the kernel killed it for want of memory"
