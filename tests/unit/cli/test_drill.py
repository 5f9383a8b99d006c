"""`drill` of one and of several guests: what is drilled, by whose checks, what is printed, what the exit code says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import vmbackup.engine.drill.drill
from vmbackup.cli import access
from vmbackup.engine.drill.checks import Check, Checked
from vmbackup.engine.drill.drill import DrillFailedError, DrillOptions, DrillReport
from vmbackup.errors import AccessError, JobConflictError
from vmbackup.repository.drills import Seen
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList

from .conftest import Run
from .samples import START, point

WEB = "f707ff3b-b71b-4e4e-8f78-acacb883c7e3"
DB = "00000000-0000-0000-0000-000000000001"
POINTS = [
    point(20, "bbbb0003", domain="db", uuid=DB, lineage=2),
    point(10, "aaaa0002"),
    point(0, "aaaa0001", domain="web1-old"),
]
DRILL = """
[jobs.nightly.drill]
schedule = "@weekly"
boot_within = "3m"
checks_within = "20s"
memory = "512MiB"
services = ["ssh"]
files = ["/etc/hostname"]
commands = [["/bin/ready", "-q"]]
[jobs.other]
domains = ["db"]
drill = { schedule = "@weekly", console = "login:" }
"""


def report(chosen: Point, *, success: bool = True, booted: bool = True) -> DrillReport:
    checks = [Checked(Check("service", ("ssh",)), None if success else "is \x1b[31minactive")]
    told = ((check.check.name, check.problem is None) for check in checks)
    problem = None if success else "service ssh: is inactive"
    seen = Seen(START + timedelta(hours=1), success, 21.5 if booted else None, 30.0, "hv1", tuple(told), problem)
    return DrillReport(chosen.id, chosen.domain, chosen.uuid, seen, checks, ["login:"], b"\x89PNG", ("host devices",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Point, DrillOptions]]:
    """What the engine was asked to drill."""
    return []


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Point, DrillOptions]]) -> dict[str, BaseException]:
    """What the engine raises, by domain; else the guest boots."""
    given: dict[str, BaseException] = {}

    class Repository:
        def check_may_read(self) -> None:
            if "key" in given:
                raise given["key"]

        def survey(self) -> PointList:
            return PointList(list(POINTS), [], [], set())

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield Repository()

    def drill(_host: object, _repository: object, chosen: Point, options: DrillOptions, *_: object) -> DrillReport:
        asked.append((chosen, options))
        if chosen.domain in given:
            raise given[chosen.domain]
        return report(chosen)

    monkeypatch.setattr(access, "opened_host", opened)
    monkeypatch.setattr(access, "opened_repository", opened)
    monkeypatch.setattr(access, "host_name", lambda: "hv1")
    monkeypatch.setattr(vmbackup.engine.drill.drill, "drill", drill)
    return given


Asked = list[tuple[Point, DrillOptions]]
Answers = dict[str, BaseException]


def failure(chosen: Point) -> DrillFailedError:
    hint = "its console showed last: login:"
    return DrillFailedError("service ssh: is inactive", hint, report(chosen, success=False))


def test_one_guest(run: Run, answers: Answers, asked: Asked, tmp_path: Path) -> None:
    result = run("drill", "web1")
    assert (result.code, result.err) == (0, "")
    picture = f"{tmp_path}/state/pictures/{WEB}-{int((START + timedelta(hours=1)).timestamp())}-local.png"
    assert result.out.splitlines() == [
        f"web1: booted in 22 s, 1 check held ({POINTS[1].id})",
        f"  its screen: {picture}",
    ]
    assert Path(picture).read_bytes() == b"\x89PNG"
    assert asked == [(POINTS[1], DrillOptions("hv1"))]


def test_one_that_fails(run: Run, answers: Answers) -> None:
    answers["web1"] = failure(POINTS[1])
    result = run("drill", "web1")
    assert result.code == 1
    assert result.err == "error: web1: service ssh: is inactive\n"
    lines = result.out.splitlines()
    assert lines[0].startswith("web1: booted in 22 s (")
    assert lines[1:5] == [
        "  service ssh: is ?[31minactive",
        "  it was booted without host devices",
        "  its console's last lines:",
        "    login:",
    ]
    answers["web1"] = failure(POINTS[1])
    document = run("--json", "drill", "web1").json
    assert (document["error"]["kind"], document["error"]["exit_code"]) == ("drill", 1)
    assert document["error"]["hint"] == "its console showed last: login:"
    (check,) = document["drills"][0]["checks"]
    assert check == {"name": "service ssh", "success": False, "problem": "is \x1b[31minactive"}
    assert set(document["drills"][0]) == {
        "point", "domain", "domain_uuid", "time", "success", "boot_seconds", "duration_seconds", "checks", "problem",
        "console", "picture", "left_out",
    }  # fmt: skip


def test_all_and_some_fail(run: Run, answers: Answers, asked: Asked) -> None:
    """The newest point of each guest, whatever it was called before."""
    answers["db"] = JobConflictError("another drill of db goes on")
    result = run("drill", "--all")
    assert result.code == 3
    assert [chosen for chosen, _ in asked] == [POINTS[0], POINTS[1]]
    assert result.out.splitlines()[-1] == "1 of 2 domains booted; failed: db"
    answers["web1"] = failure(POINTS[1])
    assert run("drill", "--all").code == 1


def test_a_point_and_a_guest_twice(run: Run, answers: Answers, asked: Asked) -> None:
    assert run("drill", POINTS[2].id, "web1", "web1").code == 0
    assert [chosen for chosen, _ in asked] == [POINTS[2], POINTS[1]]


def test_the_checks_of_the_job(run: Run, config_file: Path, answers: Answers, asked: Asked) -> None:
    """Of the first that means the guest, or of the one that is named; the command line goes before both."""
    config_file.write_text(config_file.read_text() + DRILL)
    checks = (Check("service", ("ssh",)), Check("file", ("/etc/hostname",)), Check("command", ("/bin/ready", "-q")))
    expected = DrillOptions("hv1", 180.0, 20.0, 512 << 20, None, checks)
    assert run("drill", "db").code == 0
    assert run("drill", "--job", "other").code == 0
    assert run("drill", "--job", "nightly").code == 0
    assert run("drill", "db", "--memory", "1GiB", "--boot-within", "7m", "--console", "up").code == 0
    other = DrillOptions("hv1", 600.0, 300.0, None, "login:")
    told = DrillOptions("hv1", 420.0, 20.0, 1 << 30, "up", checks)
    assert asked == [(POINTS[0], expected), (POINTS[0], other), (POINTS[0], expected), (POINTS[1], expected),
                     (POINTS[0], told)]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "name domains or restore points"),
        (("web1", "--all"), 2, "name domains or restore points"),
        (("--job", "nightyl"), 2, 'there is no job "nightyl"'),
        (("wbe1",), 5, "wbe1"),
        (("web1", "--memory", "5MiB"), 2, "--memory: '5MiB' is less than any guest boots in"),
        (("web1", "--boot-within", "0s"), 2, "--boot-within: '0s' is not a duration"),
        (("web1", "--console", "log(in"), 2, "--console: is no regular expression"),
    ],
)
def test_what_cannot_be_meant(run: Run, answers: Answers, arguments: tuple[str, ...], code: int, says: str) -> None:
    result = run("drill", *arguments)
    assert result.code == code
    assert says in result.err


def test_a_key_that_reads_nothing(run: Run, answers: Answers) -> None:
    answers["key"] = AccessError("this host's key may not read stored data")
    assert run("drill", "web1").code == 6


def test_a_picture_that_cannot_be_kept(run: Run, answers: Answers, tmp_path: Path) -> None:
    """It is a warning: the drill has gone well."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/pictures").write_bytes(b"")
    result = run("drill", "web1")
    assert (result.code, "cannot keep the picture" in result.err) == (0, True)
