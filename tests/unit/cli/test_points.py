"""`list`, `show` and `restore`: what is printed of restore points."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vmbackup.engine.restore.flat
import vmbackup.repository.usage
from vmbackup.cli import access
from vmbackup.engine.restore.flat import RestoredFile, RestoreOptions, RestoreSummary
from vmbackup.errors import DamageError
from vmbackup.repository import drills
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList

from .conftest import Run
from .samples import UUID, point

FIRST = point(0, "aaaa0001")
SECOND = point(10, "aaaa0002", parent=FIRST.session)
OTHER = point(20, "bbbb0003", domain="db", uuid="00000000-0000-0000-0000-000000000001", lineage=2)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> PointList:
    """What the repository holds."""
    points = PointList([OTHER, SECOND, FIRST], [], [], set())

    class _Repository:
        config = SimpleNamespace(repository=bytes(16))

        def survey(self) -> PointList:
            return points

        def catalog(self, group: str) -> str:
            return group

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield _Repository()

    monkeypatch.setattr(access, "opened_repository", opened)
    monkeypatch.setattr(vmbackup.repository.usage, "freed_bytes", lambda *_: 5 << 20)
    return points


def test_list(run: Run, found: PointList) -> None:
    result = run("list")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "POINT                      DOMAIN  TIME                    MODE  STORED"
    assert [line.split()[:2] for line in lines[1:]] == [[OTHER.id, "db"], [SECOND.id, "web1"], [FIRST.id, "web1"]]
    assert max(map(len, lines)) <= 80


def test_a_point_with_a_warning_is_seen_in_the_list(run: Run, found: PointList) -> None:
    SECOND.public["warnings"] = ["disk vda may be half restored"]
    try:
        lines = run("list").out.splitlines()
    finally:
        SECOND.public["warnings"] = []
    assert lines[0].endswith("STORED  STATUS")
    assert [line.endswith("  warning") for line in lines[1:]] == [False, True, False]


def test_list_of_a_domain_by_name_and_uuid(run: Run, found: PointList) -> None:
    for name in ("web1", UUID):
        assert [p["id"] for p in run("--json", "list", name).json["points"]] == [SECOND.id, FIRST.id]
    document = run("list", "web1", "--json").json
    assert document["points"][0]["parent"] == FIRST.id
    assert document["failed"] == []


def test_list_of_an_unknown_domain_is_5(run: Run, found: PointList) -> None:
    result = run("list", "wbe1")
    assert (result.code, result.err.splitlines()[1].strip()) == (5, 'did you mean "web1"?')


def test_an_empty_list_says_what_to_do(run: Run, found: PointList) -> None:
    found.points.clear()
    result = run("list")
    assert (result.code, "vmbackup backup DOMAIN" in result.out) == (0, True)
    assert run("list", "--json").json == {"points": [], "failed": [], "damaged": [], "quarantined": [], "doubtful": []}


def test_a_damaged_point_is_told_and_the_rest_is_listed(run: Run, found: PointList) -> None:
    found.damaged.append(DamageError("points/x is damaged", object_key="points/x"))
    result = run("list")
    assert result.code == 4
    assert result.err == "warning: a restore point cannot be read: points/x is damaged\n"
    assert FIRST.id in result.out
    document = run("list", "--json").json
    assert document["damaged"] == [{"object": "points/x", "problem": "points/x is damaged"}]


def test_show(run: Run, found: PointList, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drills, "of_history", lambda *_: [])
    result = run("show", "web1@latest")
    assert result.code == 0, result.err
    assert f"point        {SECOND.id}" in result.out
    assert f"parent       {FIRST.id}" in result.out
    assert "would free   5.00 MiB" in result.out
    assert "stood still  0.35 s" in result.out
    document = run("show", SECOND.id, "--json").json
    assert (document["points"][0]["id"], document["points"][0]["freed_bytes"]) == (SECOND.id, 5 << 20)
    assert "drilled      never" in result.out
    assert document["points"][0]["drill"] is None
    assert run("show", "aaaa").code == 2
    assert run("show", "ffff").code == 5


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Point, RestoreOptions]]:
    calls: list[tuple[Point, RestoreOptions]] = []

    def restore(_repository: object, chosen: Point, options: RestoreOptions, progress: object) -> RestoreSummary:
        calls.append((chosen, options))
        image_format = options.format or "qcow2"
        path = (options.output or Path("/")) / f"vda.{image_format}"
        return RestoreSummary(chosen.id, (RestoredFile("vda", path, image_format, 1 << 30, 5 << 20, 7),), 1.23456)

    monkeypatch.setattr(vmbackup.engine.restore.flat, "restore", restore)
    return calls


def test_restore(run: Run, found: PointList, restored: list[tuple[Point, RestoreOptions]]) -> None:
    result = run("restore", "web1", "--output", "/out")
    assert result.code == 0, result.err
    assert restored == [(SECOND, RestoreOptions(Path("/out")))]
    assert result.out.splitlines() == [
        f"web1 as of {SECOND.id}, in 1.2 s:",
        "DISK  FILE            FORMAT      SIZE   WRITTEN",
        "vda   /out/vda.qcow2  qcow2   1.00 GiB  5.00 MiB",
    ]
    result = run("--json", "restore", FIRST.id, "--output", "/out", "--format", "raw", "--disk", "vda", "--disk", "vdb")
    assert restored[-1] == (FIRST, RestoreOptions(Path("/out"), "raw", ("vda", "vdb")))
    assert result.json == {
        "point": FIRST.id,
        "files": [
            {
                "target": "vda",
                "path": "/out/vda.raw",
                "format": "raw",
                "virtual_size": 1 << 30,
                "written_bytes": 5 << 20,
                "fetched_bytes": 7,
            }
        ],
        "duration_seconds": 1.235,
        "warnings": [],
        "point_warnings": [],
        "boot_files": [],
    }


def test_restore_at_a_time(run: Run, found: PointList, restored: list[tuple[Point, RestoreOptions]]) -> None:
    assert run("restore", "web1", "--at", "2026-11-24T11:00Z", "--output", "/out").code == 0
    assert restored[-1][0] is FIRST
    assert run("restore", "web1", "--at", "noon", "--output", "/out").code == 2
    assert run("restore", "web1").code == 2
