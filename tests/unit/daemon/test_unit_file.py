"""The files for systemd: the unit is shut in as promised, and names what is there."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vmbackup.config.load import load

ROOT = Path(__file__).parents[3]
SYSTEMD = ROOT / "systemd"
MOST_EXPOSURE = 2.5  # of 10, as `systemd-analyze security` counts
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="no systemd-analyze: apt-get install systemd")


@needs_systemd
def test_the_unit_is_shut_in() -> None:
    unit = SYSTEMD / "vmbackup.service"
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"Overall exposure level for vmbackup.service: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= MOST_EXPOSURE, said


@needs_systemd
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """With programs that are there."""
    text = (SYSTEMD / "vmbackup.service").read_text().replace("/usr/bin/vmbackup", "/bin/true")
    unit = tmp_path / "vmbackup.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "vmbackup.service" not in done.stderr, done.stderr


def test_what_a_run_needs_is_left_open() -> None:
    """Settings that would raise the grade and break backups: each was tried, or its reason stands in the unit."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(SYSTEMD / "vmbackup.service")
    service = unit["Service"]
    assert service["PrivateTmp"] == "no"
    assert not {"ProtectProc", "ProcSubset", "PrivateDevices", "PrivateUsers", "PrivateNetwork"} & set(service)
    assert service["KillMode"] == "control-group"
    assert service["WatchdogSignal"] == "SIGTERM"
    assert service["ReadWritePaths"] == "/var/lib/libvirt"


def test_the_first_configuration_is_one(tmp_path: Path) -> None:
    """Nothing of it lies outside of what the unit may write to."""
    config = load(SYSTEMD / "config.toml")
    assert list(config.repositories) == ["local"]
    assert config.repositories["local"].url == "file:///var/lib/vmbackup/repository"
    assert config.jobs["nightly"].schedule
    assert config.jobs["nightly"].max_age
