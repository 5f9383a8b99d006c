"""`doctor` on the service: what systemd and the service itself say, and the command that mends each."""

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vmbackup.cli import service_checks as checks
from vmbackup.cli.systemd_unit import Unit, parse
from vmbackup.config.load import parse as parse_config
from vmbackup.daemon.control import ControlServer
from vmbackup.daemon.snapshot import Snapshot
from vmbackup.hypervisor import Check

SHOWN = """\
LoadState=loaded
UnitFileState=enabled
ActiveState=active
Result=success
NeedDaemonReload=no
ProtectSystem=strict
ReadWritePaths=/var/lib/libvirt
ReadWritePaths=-/srv/backups +/mnt/more
StateDirectory=vmbackup
CacheDirectory=vmbackup
RuntimeDirectory=vmbackup
LoadCredential=vmbackup-passphrase:/etc/vmbackup/credentials/vmbackup-passphrase
SupplementaryGroups=vmbackup
CapabilityBoundingSet=cap_dac_override
"""
CONFIG = """\
[repositories.local]
url = "file://{folder}"
{more}
[daemon]
socket = "{socket}"
{daemon}
[jobs.nightly]
domains = ["*"]
{schedule}
"""
SCHEDULE = 'schedule = "@daily"'


@pytest.fixture
def unit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What systemd tells, changed by NAME=value."""

    def set_unit(text: str | None = SHOWN, **changes: str) -> None:
        lines = [] if text is None else [line for line in text.splitlines() if line.partition("=")[0] not in changes]
        told: Unit | None = parse("\n".join(lines + [f"{name}={value}" for name, value in changes.items()]))
        monkeypatch.setattr(checks, "read_unit", lambda: None if text is None else told)

    set_unit()
    return set_unit


def _found(
    tmp_path: Path, *, folder: str = "/srv/backups/a", more: str = "", daemon: str = "", schedule: str = SCHEDULE
) -> dict[tuple[str, str], Check]:
    socket = "/run/vmbackup/nobody.sock" if not daemon.startswith("socket") else ""
    text = CONFIG.format(folder=folder, more=more, daemon=daemon, schedule=schedule, socket=socket)
    if not socket:
        text = text.replace('socket = ""\n', "")
    file = tmp_path / "config.toml"
    if not file.exists() or file.read_text() != text:
        file.write_text(text)
    config = parse_config(text, str(file))
    return {(check.name, check.subject): check for check in checks.service_checks(file, config)}


@contextmanager
def _service(tmp_path: Path, **values: Any) -> Iterator[str]:
    """A service that answers; its line for [daemon]."""
    told = {"config_file": str(tmp_path / "config.toml"), "config_loaded": time.time() + 5} | values

    class Service:
        def snapshot(self) -> Snapshot:
            return Snapshot(now=time.time(), started=1.0, host="here", state="running", **told)

    path = tmp_path / "control.sock"
    server = ControlServer(path, None, Service())  # type: ignore[arg-type]
    server.start()
    try:
        yield f'socket = "{path}"'
    finally:
        server.shutdown()


def test_all_is_well(tmp_path: Path, unit: Any) -> None:
    unit(ReadWritePaths=f"/var/lib/libvirt /srv/backups {tmp_path}")
    with _service(tmp_path) as daemon:
        found = _found(tmp_path, daemon=daemon)
    assert {name for name, _ in found} == {"service", "service-access", "service-running", "service-config"}
    assert {check.status for check in found.values()} == {"ok"}


def test_without_systemd_one_line_says_so(tmp_path: Path, unit: Any) -> None:
    unit(None)
    found = _found(tmp_path, schedule="")
    assert [(check.name, check.status) for check in found.values()] == [("service", "ok"), ("service-running", "ok")]
    assert "systemd does not run this machine" in found["service", "host"].message
    found = _found(tmp_path)
    running = found["service-running", "host"]
    assert (running.status, running.fix) == ("warn", "vmbackup daemon")


@pytest.mark.parametrize(
    ("changes", "subject", "fix"),
    [
        ({"LoadState": "not-found"}, "host", "make install"),
        ({"UnitFileState": "disabled"}, "unit", "systemctl enable --now vmbackup"),
        ({"NeedDaemonReload": "yes"}, "unit", "systemctl daemon-reload"),
    ],
)
def test_the_unit(tmp_path: Path, unit: Any, changes: dict[str, str], subject: str, fix: str) -> None:
    unit(**changes)
    found = _found(tmp_path)["service", subject]
    assert (found.status, found.fix) == ("warn", fix)


def test_a_service_that_does_not_run(tmp_path: Path, unit: Any) -> None:
    unit(ActiveState="inactive")
    found = _found(tmp_path)["service-running", "host"]
    assert (found.status, found.fix) == ("warn", "systemctl start vmbackup")
    unit(ActiveState="failed", Result="watchdog")
    found = _found(tmp_path)["service-running", "host"]
    assert (found.status, found.message, found.fix) == ("fail", "it failed (watchdog)", "journalctl -eu vmbackup")


def test_a_configuration_that_is_not_the_one_in_force(tmp_path: Path, unit: Any) -> None:
    def told(age: float = 0, **values: Any) -> tuple[str, str, str]:
        with _service(tmp_path, **values) as daemon:
            _found(tmp_path, daemon=daemon)
            os.utime(tmp_path / "config.toml", (time.time() - age,) * 2)
            check = _found(tmp_path, daemon=daemon)["service-config", str(tmp_path / "config.toml")]
        return check.status, check.message, check.fix

    changed = ("warn", "it changed since the service loaded it", "systemctl reload vmbackup")
    assert told(age=60, config_loaded=time.time() - 90) == changed
    assert told(age=90, config_loaded=time.time() - 60)[0] == "ok"
    status, message, fix = told(config_ok=False, config_error="c.toml:3: what?")
    assert (status, fix) == ("warn", "correct it, then: systemctl reload vmbackup")
    assert message.endswith("goes on with the former one: c.toml:3: what?")
    status, message, _ = told(config_file=None)
    assert (status, message) == ("warn", "the service has the configuration of the defaults")


@pytest.mark.parametrize("folder", ["/srv/backups", "/srv/backups/a/b", "/mnt/more/x", "/var/lib/vmbackup/repository"])
def test_where_the_service_may_write(tmp_path: Path, unit: Any, folder: str) -> None:
    assert ("service-access", "local") not in _found(tmp_path, folder=folder)


@pytest.mark.parametrize("folder", ["/srv/backup", "/srv", "/var/lib/vmbackup2", "/srv/backups/../else"])
def test_where_it_may_not(tmp_path: Path, unit: Any, folder: str) -> None:
    """The fix is a command that makes the drop-in."""
    found = _found(tmp_path, folder=folder)["service-access", "local"]
    assert found.status == "fail"
    drop_in = tmp_path / "made" / "local.conf"
    fix = found.fix.replace("/etc/systemd/system/vmbackup.service.d", shlex.quote(str(drop_in.parent)))
    steps = fix.split(" && ")
    assert steps[2:] == ["systemctl daemon-reload", "systemctl restart vmbackup"]
    subprocess.run(["sh", "-ec", " && ".join(steps[:2])], check=True)
    assert drop_in.read_text() == f"[Service]\nReadWritePaths=-{folder}\n"
    unit(ProtectSystem="no")
    assert ("service-access", "local") not in _found(tmp_path, folder=folder)


def test_what_else_the_unit_must_allow(tmp_path: Path, unit: Any) -> None:
    found = _found(tmp_path, more='passphrase_credential = "vmbackup-passphrase"\n')
    assert ("service-access", "local") not in found
    found = _found(tmp_path, more='passphrase_credential = "other"\n')
    assert "LoadCredential=other:/etc/vmbackup/credentials/other" in found["service-access", "local"].fix
    found = _found(tmp_path, daemon='textfile = "/var/lib/prometheus/node-exporter/v.prom"\n')
    assert "ReadWritePaths=-/var/lib/prometheus/node-exporter" in found["service-access", "textfile"].fix
    assert ("service-access", "socket") not in _found(tmp_path, daemon='socket_group = "vmbackup"')
    found = _found(tmp_path, daemon='socket_group = "ops"')
    assert "SupplementaryGroups=ops" in found["service-access", "socket"].fix
    unit(CapabilityBoundingSet="cap_chown cap_dac_override")
    assert ("service-access", "socket") not in _found(tmp_path, daemon='socket_group = "ops"')


def test_the_token_of_the_page(tmp_path: Path, unit: Any) -> None:
    token = tmp_path / "token"
    daemon = f'web = true\nweb_token_file = "{token}"'

    def told() -> tuple[str, str]:
        check = _found(tmp_path, daemon=daemon)["web-token", str(token)]
        return check.status, check.message

    assert told()[0] == "fail"
    token.write_text("short")
    assert told() == ("fail", "it has 5 characters, and needs 16")
    token.write_text("x" * 16)
    token.chmod(0o644)
    assert told()[0] == "warn"
    token.chmod(0o600)
    assert told()[0] == "ok"


def test_promises_that_break_by_their_own_schedule(tmp_path: Path, unit: Any) -> None:
    unit()
    more = '[repositories.local.verify]\nschedule = "@weekly"\nmax_age = "8d"\n'
    drill = 'max_age = "26h"\n[jobs.nightly.drill]\nschedule = "0 6 * * sun"\nmax_age = "5d"'
    found = _found(tmp_path, more=more, schedule=f'schedule = "0 2 * * 1-5"\n{drill}')
    told = {subject: check for (name, subject), check in found.items() if name == "promise"}
    assert {subject: check.status for subject, check in told.items()} == {
        "jobs.nightly": "warn", "jobs.nightly.drill": "warn", "repositories.local.verify": "ok"
    }  # fmt: skip
    assert told["jobs.nightly"].message == (
        "max_age is 1 d 02 h, with up to 3 d 00 h between two: it breaks although all goes well"
    )
    assert told["jobs.nightly"].fix == "raise max_age of [jobs.nightly] above that, or let it run more often"
