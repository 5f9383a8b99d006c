"""`doctor`: one line a check with the command that mends it; 1 with a FAIL, 3 with a WARN."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vmbackup.cli import access, checks
from vmbackup.errors import HypervisorError, NotFoundError
from vmbackup.hypervisor import Check
from vmbackup.hypervisor.source import DomainInfo
from vmbackup.repository import Repository
from vmbackup.repository.points import Point
from vmbackup.repository.repository import PointList

from .conftest import Run
from .samples import UUID, point


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What the hypervisor finds."""
    checks = [Check("libvirt", "qemu:///system", "ok", "libvirt 9.0.0")]

    class _Host:
        def domains(self) -> list[DomainInfo]:
            return [DomainInfo("web1", UUID, 1, "running")]

        def domain(self, name: str) -> DomainInfo:
            if name != "web1":
                raise NotFoundError(f"there is no domain '{name}'", "did you mean web1?")
            return self.domains()[0]

        def checks(self, domains: list[DomainInfo]) -> list[Check]:
            return [*checks, *(Check("running", d.name, "ok", "it is running") for d in domains)]

    @contextmanager
    def opened(*_: object) -> Iterator[Any]:
        yield _Host()

    monkeypatch.setattr(access, "opened_host", opened)
    return checks


def _found(run: Run, *args: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(c["name"], c["subject"]): c for c in run("--json", "doctor", *args).json["checks"]}


def test_all_is_well(run: Run, host: list[Check], repository: Path) -> None:
    result = run("doctor")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1].endswith(" OK, 0 WARN, 0 FAIL")
    checks = run("doctor", "--json").json["checks"]
    assert all(set(check) == {"name", "subject", "status", "message", "fix"} for check in checks)
    assert {"config", "secret", "store", "clock", "repository", "libvirt", "running"} <= {c["name"] for c in checks}


def test_a_warning_is_3_and_a_failure_1(run: Run, host: list[Check], repository: Path) -> None:
    host.append(Check("guest-agent", "web1", "warn", "no agent", "install it"))
    result = run("doctor", "web1")
    assert result.code == 3
    assert "WARN  guest-agent        web1: no agent\n                         fix: install it\n" in result.out
    host.append(Check("qemu", "web1", "fail", "too old", "upgrade"))
    assert run("doctor").code == 1


def test_without_libvirt_the_rest_is_checked(run: Run, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise HypervisorError("libvirt cannot be reached", "systemctl start libvirtd")

    monkeypatch.setattr(access, "opened_host", refuse)
    result = run("doctor")
    assert result.code == 1
    assert "FAIL  libvirt            test:///default: libvirt cannot be reached" in result.out
    assert "fix: systemctl start libvirtd" in result.out


def test_an_unknown_domain_is_5(run: Run, host: list[Check], repository: Path) -> None:
    result = run("--json", "doctor", "web9")
    assert (result.code, result.json["error"]["kind"]) == (5, "not_found")


def test_before_init_doctor_names_it(run: Run, host: list[Check]) -> None:
    result = run("doctor")
    assert result.code == 1
    assert "fix: vmbackup --repository local init" in result.out


def test_permissions_of_secrets_and_configuration(
    run: Run, host: list[Check], repository: Path, config_file: Path, tmp_path: Path
) -> None:
    passphrase = tmp_path / "secrets" / "passphrase"
    passphrase.chmod(0o640)
    found = _found(run)["secret", str(passphrase)]
    assert (found["status"], found["fix"]) == ("warn", f"chmod 600 {passphrase}")
    passphrase.chmod(0o666)
    assert _found(run)["secret", str(passphrase)]["status"] == "fail"
    config_file.chmod(0o622)
    found = _found(run)["config", str(config_file)]
    assert (found["status"], found["fix"]) == ("fail", f"chmod go-w {config_file}")


def test_programs_that_jobs_run(
    run: Run, host: list[Check], repository: Path, config_file: Path, tmp_path: Path
) -> None:
    """A hook that is not there would be found out at night."""
    hook, gone = tmp_path / "my hook", tmp_path / "gone"
    hook.touch(0o644)
    text = config_file.read_text()
    job = '[jobs.x]\ndomains = ["*"]\non_failure = ["/bin/true"]\n[jobs.x.hooks]\n'
    config_file.write_text(f'{text}\n{job}before = ["{hook}", "on"]\nafter = ["{gone}"]\nguest_before = ["/none"]\n')
    found = {key[1]: check for key, check in _found(run).items() if key[0] == "program"}
    assert {subject: (check["status"], check["fix"]) for subject, check in found.items()} == {
        "jobs.x.hooks.before": ("fail", f"chmod +x '{hook}'"),
        "jobs.x.hooks.after": ("fail", f"ls -l {gone}"),
    }
    hook.chmod(0o755)
    assert ("program", "jobs.x.hooks.before") not in _found(run)


def test_a_wrong_passphrase_is_told(run: Run, host: list[Check], repository: Path, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "passphrase").write_text("wrong")
    found = _found(run)["repository", "local"]
    assert (found["status"], "does not open" in found["message"]) == ("fail", True)


def test_each_mistake_of_the_configuration_is_a_line(run: Run, config_file: Path) -> None:
    config_file.write_text("[libvrt]\n[hots]\n")
    result = run("doctor")
    assert result.code == 1
    assert result.out.count("FAIL  config") == 2
    assert f'{config_file}:1: unknown key "libvrt" in the file: did you mean "libvirt"?' in result.out


def test_a_missing_configuration_is_a_failure(bare: Run) -> None:
    assert bare("--config", "/nowhere.toml", "doctor").code == 1


def test_the_last_verification(run: Run, host: list[Check], repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never is a warning once there are points of some age; known damage is one at once."""

    def told(*points: Point) -> tuple[str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(Repository, "read_points", lambda _: PointList(list(points), [], [], set()))
            check = _found(run)["verified", "local"]
        return check["status"], check["message"]

    young = point(0, "aaaa0001")
    old = replace(young, public={**young.public, "time": (datetime.now(UTC) - timedelta(days=8)).isoformat()})
    assert told() == ("ok", "never on this host")
    assert told(old) == ("warn", "never on this host")
    assert run("verify").code == 0
    assert told()[0] == "ok"
    status, message = told(old)
    assert status == "warn"
    assert message.endswith("no damage known, but no data was ever read")
    assert run("verify", "--read-data=20").code == 0
    status, message = told(old)
    assert status == "ok"
    assert "no damage known; 20 % of the data read" in message
    (repository / "config.copy" / "1").unlink()
    assert run("verify").code == 4
    assert told() == ("warn", "objects known to be damaged: 1")


def test_commands_are_quoted(tmp_path: Path) -> None:
    """What mends a file of an odd name can be pasted into a shell."""
    path = tmp_path / "it's; a $(key)"
    path.write_text("x")
    path.chmod(0o666)
    fix = checks.private_check(path, "secret", 0o077, "well", "wrong").fix
    assert shlex.split(fix) == ["chmod", "600", str(path)]
    missing = tmp_path / "no such"
    assert shlex.split(checks.private_check(missing, "secret", 0o077, "", "").fix) == ["ls", "-l", str(missing)]
