"""`backup` of one and of several domains: what is printed, and what the exit code says."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vmbackup.engine.backup.plan
import vmbackup.engine.backup.run
from vmbackup.cli import access
from vmbackup.engine.backup.run import BackupOptions
from vmbackup.engine.pipeline.pace import Limit
from vmbackup.errors import DamageError, HypervisorError, NotFoundError
from vmbackup.hypervisor.plan import DiskPlan, Plan
from vmbackup.hypervisor.source import DiskInfo, DomainInfo, FreezeOptions, Hooks
from vmbackup.repository.summary import PointSummary

from .conftest import Run
from .samples import UUID, disk, summary

Answers = dict[str, PointSummary | BaseException]


class _Host:
    """As the hypervisor, and as a repository that takes restore points."""

    names = ("db", "scratch-1", "web1")
    url = "file:///repository"

    @property
    def store(self) -> "_Host":
        return self

    def check_may_write(self) -> None:
        pass

    def own_domains(self) -> list[DomainInfo]:
        return self.domains()

    def domains(self) -> list[DomainInfo]:
        return [DomainInfo(name, UUID, 1, "running") for name in self.names]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, BackupOptions]]:
    """The domains that the engine was asked to back up."""
    return []


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, BackupOptions]]) -> Answers:
    """What the engine answers for each domain; a point where nothing is said."""
    given: Answers = {}

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield _Host()

    def backup(_host: object, _repository: object, domain: str, options: BackupOptions, progress: Any) -> PointSummary:
        asked.append((domain, options))
        answer = given.get(domain, summary(domain))
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(access, "opened_host", opened)
    monkeypatch.setattr(access, "opened_repository", opened)
    monkeypatch.setattr(vmbackup.engine.backup.run, "backup", backup)
    return given


def test_one_domain(run: Run, answers: Answers) -> None:
    answers["web1"] = summary("web1", disk(), disk("vdb", "incremental"))
    result = run("backup", "web1")
    assert (result.code, result.err) == (0, "")
    assert result.out == (
        "web1: 20261124T020000Z-1a2b3c4d\n"
        "  incremental, 24.0 MiB read, 6.00 MiB stored, filesystem-consistent, 4.2 s (seal 1.0 s)\n"
    )


def test_reasons_and_warnings_are_told(run: Run, answers: Answers) -> None:
    reread = [disk(target, "reread", "its bitmap is gone") for target in ("vda", "vdb")]
    answers["web1"] = summary("web1", *reread, disk("vdc"), warnings=("vdd is left out: it is shared",))
    result = run("backup", "web1")
    assert result.code == 3
    assert result.out.splitlines()[1].startswith("  mixed, ")
    assert result.out.splitlines()[2:] == [
        "  read whole (vda, vdb): its bitmap is gone",
        "  warning: vdd is left out: it is shared",
    ]


def test_why_it_was_not_frozen_is_told(run: Run, answers: Answers) -> None:
    """It is no warning."""
    answers["web1"] = replace(summary("web1", disk()), consistency="crash", quiesce_note="the guest agent is silent")
    result = run("backup", "web1")
    assert result.code == 0
    assert result.out.splitlines()[2:] == ["  quiesce: the guest agent is silent"]


def test_json_has_the_fields_of_the_contract(run: Run, answers: Answers) -> None:
    document = run("--json", "backup", "web1").json
    assert set(document) == {"points", "failed"}
    point = document["points"][0]
    assert set(point) >= {
        "id", "domain", "domain_uuid", "time", "status", "consistency", "parent", "disks",
        "duration_seconds", "warnings",
    }  # fmt: skip
    assert point["time"] == "2026-11-24T02:00:00+00:00"
    assert point["disks"] == [
        {
            "target": "vda",
            "format": "qcow2",
            "virtual_size": 10 << 30,
            "mode": "incremental",
            "reason": None,
            "read_bytes": 12 << 20,
            "changed_bytes": 11 << 20,
            "stored_bytes": 3 << 20,
            "read_whole": None,
        }
    ]


def test_a_failed_domain_does_not_keep_the_next_from_its_turn(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]]
) -> None:
    answers["db"] = HypervisorError("db is off", "start it")
    result = run("backup", "db", "web1")
    assert result.code == 3
    assert [name for name, _ in asked] == ["db", "web1"]
    assert result.err == "error: db is off\n       start it\n"
    assert result.out.splitlines()[-1] == "1 of 2 domains backed up; failed: db"
    document = run("--json", "backup", "db", "web1").json
    assert document["failed"] == [{"domain": "db", "error": "db is off", "hint": "start it", "kind": "hypervisor"}]
    assert [point["domain"] for point in document["points"]] == ["web1"]
    assert "error" not in document


def test_all_failed_is_1(run: Run, answers: Answers) -> None:
    answers["db"] = HypervisorError("it is off", "start it")
    answers["web1"] = DamageError("points/x is damaged")
    result = run("backup", "web1", "db")
    assert result.code == 1
    assert "error: db: it is off" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotFoundError("no such domain"), 5), (HypervisorError("no"), 1), (DamageError("x"), 4), (KeyError("x"), 1)],
)
def test_the_only_domain_tells_its_own_exit_code(run: Run, answers: Answers, error: Exception, code: int) -> None:
    answers["web9"] = error
    result = run("--json", "backup", "web9")
    assert result.code == code
    assert result.json["error"]["exit_code"] == code
    assert [failed["domain"] for failed in result.json["failed"]] == ["web9"]


def test_an_interrupt_ends_the_whole_run(run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]]) -> None:
    answers["db"] = KeyboardInterrupt()
    assert run("backup", "db", "web1").code == 130
    assert len(asked) == 1


def test_all_and_job_choose_domains(run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]]) -> None:
    assert run("backup", "--all", "--full").code == 0
    assert [name for name, _ in asked] == ["db", "scratch-1", "web1"]
    assert asked[0][1] == BackupOptions(full=True)
    asked.clear()
    assert run("backup", "--job", "nightly").code == 0
    assert [name for name, _ in asked] == ["db", "web1"]
    assert asked[0][1].quiesce == "never"
    asked.clear()
    assert run("backup", "--job", "nightly", "--quiesce", "required").code == 0
    assert asked[0][1].quiesce == "required"


def test_domains_of_a_job(run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]]) -> None:
    """Only those, as the job says."""
    assert run("backup", "--job", "nightly", "db", "gone").code == 0
    assert [name for name, _ in asked] == ["db", "gone"]
    assert {options.quiesce for _, options in asked} == {"never"}


@pytest.mark.parametrize("name", ["scratch-1", UUID.upper()])
def test_a_domain_that_is_none_of_the_job_is_wrong_usage(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_Host, "names", ("scratch-1",))
    result = run("backup", "--job", "nightly", "db", name)
    assert (result.code, asked) == (2, [])
    assert result.err == f'error: domain "{name}" is none of job "nightly"\n       the job means *, but not scratch-*\n'


@pytest.mark.parametrize("words", [(), ("--all", "db"), ("--all", "--job", "nightly"), ("--no-copy",)])
def test_one_way_to_name_domains(run: Run, answers: Answers, words: tuple[str, ...]) -> None:
    result = run("backup", *words)
    assert (result.code, result.err.splitlines()[0]) == (2, "error: name domains, or --all, or --job NAME")


def test_a_job_without_its_copies(run: Run, answers: Answers, config_file: Path, tmp_path: Path) -> None:
    offsite = f'[repositories.offsite]\nurl = "file://{tmp_path}/none"\npassphrase_file = "{tmp_path}/none.key"\n'
    config_file.write_text(config_file.read_text() + f'copy_to = ["offsite"]\n{offsite}')
    assert "copies" in run("--json", "backup", "--job", "nightly", "db").json
    result = run("--json", "backup", "--job", "nightly", "--no-copy", "db")
    assert result.code == 0
    assert "copies" not in result.json


def test_a_domain_named_twice_is_backed_up_once(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]]
) -> None:
    run("backup", "web1", "web1")
    assert len(asked) == 1


def test_a_job_that_means_no_domain_is_5(run: Run, answers: Answers, config_file: Path) -> None:
    config_file.write_text(config_file.read_text().replace('["*"]', '["mail*"]'))
    result = run("backup", "--job", "nightly")
    assert (result.code, result.err.splitlines()[0]) == (5, "error: libvirt knows no domain of the job")


def test_how_a_job_s_guests_are_brought_to_rest(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]], config_file: Path
) -> None:
    """As the job says; a domain alone has no hooks."""
    text = config_file.read_text().replace('quiesce = "never"', 'freeze_mounts = ["/srv"]\nfreeze_timeout = "20s"')
    config_file.write_text(text + '[jobs.nightly.hooks]\nbefore = ["/bin/on", "x"]\nguest_after = ["off"]\n')
    run("backup", "--job", "nightly", "db")
    run("backup", "db")
    hooks = Hooks(("/bin/on", "x"), (), (), ("off",), 60.0, {"VMBACKUP_JOB": "nightly"})
    assert [options.freezing for _, options in asked] == [FreezeOptions(("/srv",), 20.0, hooks), FreezeOptions()]


def test_a_limit_is_the_job_s(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]], config_file: Path, tmp_path: Path
) -> None:
    config_file.write_text(config_file.read_text() + 'bandwidth_limit = "1MiB/s"\n')
    assert run("backup", "--job", "nightly", "db").err == ""
    run("backup", "db")
    assert [options.limit for _, options in asked] == [Limit(tmp_path / "state/pace/nightly", 1 << 20), None]


def test_names_of_guests_cannot_steer_the_terminal(run: Run, answers: Answers) -> None:
    answers["x"] = summary("we\x1b[2Jb")
    assert run("backup", "x").out.startswith("we?[2Jb: ")


PLAN = Plan(
    DomainInfo("web1", UUID, 1, "running"),
    (
        DiskPlan(DiskInfo("vda", "qcow2", 10 << 30, "/a", None, "virtio"), "incremental", None, 12 << 20, True),
        DiskPlan(DiskInfo("vdb", "raw", 1 << 30, "/b", None, "virtio"), "reread", "it is raw: no bitmap"),
        DiskPlan(DiskInfo("sda", "raw", 1 << 20, "/c", None, "sata"), None, "it is a cdrom"),
    ),
    None,
)


def test_a_dry_run_tells_the_plan(
    run: Run, answers: Answers, asked: list[tuple[str, BackupOptions]], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: Callable[..., Plan] = lambda *_: PLAN
    monkeypatch.setattr(vmbackup.engine.backup.plan, "plan", planned)
    result = run("backup", "web1", "--dry-run")
    assert (result.code, asked) == (0, [])
    assert result.out.splitlines() == [
        "web1:",
        "DISK  FORMAT      SIZE  MODE             WOULD READ",
        "vda   qcow2   10.0 GiB  incremental  up to 12.0 MiB",
        "vdb   raw     1.00 GiB  reread             all data",
        "sda   raw     1.00 MiB  left out            nothing",
        "  vdb: it is raw: no bitmap",
        "  sda: it is a cdrom",
    ]
    plan = run("--json", "backup", "web1", "--dry-run").json["plans"][0]
    assert [d["mode"] for d in plan["disks"]] == ["incremental", "reread", None]
