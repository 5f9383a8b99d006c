"""`verify`: what is damaged and who suffers, exit code 4; the share to read stands after "=" only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vmbackup.engine.care.verify
from vmbackup.cli import access
from vmbackup.engine.care.findings import Damage
from vmbackup.engine.care.verify import VerifySummary
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList

from .conftest import Run
from .samples import point

FIRST = point(0, "aaaa0001")
WELL = VerifySummary(2, 19, 3 << 30, (), domains=("web1", 'w"2'))
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
        config = SimpleNamespace(repository=bytes(16))

        def survey(self, *, live: bool = False) -> PointList:
            return PointList([FIRST], [], [], set())

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield _Repository()

    def verify(
        _repository: object, points: list[Point] | None, share: float | None, progress: object, *, suspects: object
    ) -> VerifySummary:
        calls.append((points, share))
        return given["summary"]

    monkeypatch.setattr(access, "opened_repository", opened)
    monkeypatch.setattr(vmbackup.engine.care.verify, "verify", verify)
    return given


def test_no_damage(run: Run, finding: dict[str, VerifySummary]) -> None:
    result = run("verify")
    assert (result.code, result.out) == (0, "2 restore points, 19 objects, 3.00 GiB checked: no damage\n")
    assert run("verify", "--json").json == {
        "checked": {"points": 2, "objects": 19, "bytes": 3 << 30},
        "read": None,
        "share": None,
        "damaged": [],
        "known_damaged": 0,
        "quarantined": [],
        "doubtful": [],
        "garbage": [],
    }


@pytest.mark.parametrize(
    ("how", "share", "told"),
    [
        ("decoded", 1.0, "all data decoded"),
        ("decoded", 0.025, "2.5 % of the data decoded"),
        ("checksums", 0.1, "10 % of the data compared with its checksums (this key cannot decode it)"),
    ],
)
def test_how_data_was_read_is_said(
    run: Run, finding: dict[str, VerifySummary], how: Any, share: float, told: str
) -> None:
    finding["summary"] = replace(WELL, read=how, share=share)
    assert run("verify").out == f"2 restore points, 19 objects, 3.00 GiB checked, {told}: no damage\n"
    document = run("verify", "--json").json
    assert (document["read"], document["share"]) == (how, share)


def test_the_last_result_is_kept(run: Run, finding: dict[str, VerifySummary]) -> None:
    """--last tells it without looking at the repository; what was read before is remembered by a look at sizes."""
    assert run("verify", "--last").code == 5
    finding["summary"] = replace(WELL, read="decoded", share=0.1)
    run("verify")
    finding["summary"] = DAMAGED
    run("verify")
    result = run("verify", "--last")
    assert result.code == 4
    assert [line.partition(": ")[0] for line in result.out.splitlines()[-3:]] == ["verified", "data read", "damaged"]
    document = run("verify", "--last", "--json").json
    assert (document["read"], document["share"], len(document["damaged"])) == ("decoded", 0.1, 2)
    assert datetime.now(UTC) - datetime.fromisoformat(document["time"]) < timedelta(minutes=1)
    finding["summary"] = WELL
    run("verify")
    assert run("verify", "--last").code == 0
    assert run("verify", "--last", "--read-data").code == 2


def test_one_point_adds_what_it_finds(run: Run, finding: dict[str, VerifySummary]) -> None:
    """What is known to be damaged elsewhere stays known; what was looked at again does not, where it is well now."""
    finding["summary"] = DAMAGED
    run("verify")
    looked_at = frozenset({"keys/a", "data/default/y-0"})
    finding["summary"] = replace(WELL, keys=looked_at, damaged=(Damage("data/default/y-0", "is cut", (), ()),))
    document = run("verify", "--json", FIRST.id).json
    assert (len(document["damaged"]), document["known_damaged"]) == (1, 2)
    known = [damage["object"] for damage in run("verify", "--json", "--last").json["damaged"]]
    assert known == ["data/default/x-0", "data/default/y-0"]


def test_metrics_for_node_exporter(run: Run, finding: dict[str, VerifySummary], tmp_path: Path) -> None:
    """A series a domain and one of the repository, in a file that others may read, replaced whole."""
    file = tmp_path / "vmbackup.prom"
    assert run("verify", FIRST.id, "--textfile", str(file)).code == 0
    assert 'domain="web1",job_name="nightly",repository="local"} 0.0\n' in file.read_text()
    finding["summary"] = replace(DAMAGED, domains=("scratch-1", 'w"2'))
    assert run("verify", "--textfile", str(file)).code == 4
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    named = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}
    assert set(named) == {
        'vmbackup_last_verified_timestamp_seconds{domain="scratch-1",job_name="",repository="local"}',
        'vmbackup_last_verified_timestamp_seconds{domain="w\\"2",job_name="nightly",repository="local"}',
        'vmbackup_repository_damaged_objects{repository="local"}',
    }
    assert lines[-1].endswith("} 2.0")
    assert abs(next(iter(named.values())) - datetime.now(UTC).timestamp()) < 60
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.glob("*vmbackup.prom*")] == ["vmbackup.prom"]
    assert run("verify", "--textfile", str(tmp_path / "none" / "x.prom")).code == 1
    assert not (tmp_path / "none").exists()


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
