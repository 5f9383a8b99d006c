"""`verify`: what is damaged and who suffers, exit code 4; the share to read stands after "=" only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vmbackup.engine.verify
from vmbackup.cli import access
from vmbackup.engine.verify import Damage, VerifySummary
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList

from .conftest import Run
from .samples import point

FIRST = point(0, "aaaa0001")
WELL = VerifySummary(2, 19, 3 << 30, ())
DAMAGED = VerifySummary(
    2,
    19,
    3 << 30,
    (Damage("data/default/x-0", "is missing", ("p1", "p2"), ("vda", "vdb")), Damage("keys/a", "is cut", (), ())),
)

Calls = list[tuple[list[Point] | None, float | None]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return []


@pytest.fixture
def finding(monkeypatch: pytest.MonkeyPatch, calls: Calls) -> dict[str, VerifySummary]:
    """What the engine finds."""
    given = {"summary": WELL}

    class _Repository:
        def survey(self) -> PointList:
            return PointList([FIRST], [], [], set())

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield _Repository()

    def verify(_repository: object, points: list[Point] | None, share: float | None, progress: object) -> VerifySummary:
        calls.append((points, share))
        return given["summary"]

    monkeypatch.setattr(access, "opened_repository", opened)
    monkeypatch.setattr(vmbackup.engine.verify, "verify", verify)
    return given


def test_no_damage(run: Run, finding: dict[str, VerifySummary]) -> None:
    result = run("verify")
    assert (result.code, result.out) == (0, "2 restore points, 19 objects, 3.00 GiB checked: no damage\n")
    assert run("verify", "--json").json == {
        "checked": {"points": 2, "objects": 19, "bytes": 3 << 30},
        "damaged": [],
    }


def test_damage_is_4_and_names_who_suffers(run: Run, finding: dict[str, VerifySummary]) -> None:
    finding["summary"] = DAMAGED
    result = run("verify")
    assert result.code == 4
    assert result.out.splitlines() == [
        "damaged  data/default/x-0: is missing",
        "         suffers: p1 (vda, vdb)",
        "         suffers: p2 (vda, vdb)",
        "damaged  keys/a: is cut",
        "2 restore points, 19 objects, 3.00 GiB checked; damaged: 2 objects; suffering: 2 restore points",
    ]
    result = run("verify", "--json")
    assert result.code == 4
    assert result.json["damaged"][0] == {
        "object": "data/default/x-0",
        "problem": "is missing",
        "points": ["p1", "p2"],
        "disks": ["vda", "vdb"],
    }


@pytest.mark.parametrize(
    ("args", "points", "share"),
    [
        ([], None, None),
        (["--read-data"], None, 1.0),
        (["--read-data=10"], None, 0.1),
        (["--read-data=2.5%"], None, 0.025),
        (["--read-data", FIRST.id], [FIRST], 1.0),
        ([FIRST.id, "--read-data"], [FIRST], 1.0),
        (["web1@latest"], [FIRST], None),
    ],
)
def test_what_is_checked(
    run: Run,
    finding: dict[str, VerifySummary],
    calls: Calls,
    args: list[str],
    points: list[Point] | None,
    share: float | None,
) -> None:
    assert run("verify", *args).code == 0
    assert calls == [(points, share)]


def test_a_new_repository_verifies(run: Run, repository: Path) -> None:
    result = run("verify", "--read-data")
    assert result.code == 0, result.err
    (repository / "config.copy" / "1").unlink()
    result = run("--json", "verify")
    assert result.code == 4
    assert [d["object"] for d in result.json["damaged"]] == ["config.copy/1"]
