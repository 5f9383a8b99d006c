"""What keeps QEMU from files, and the exact command that lets it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from vmbackup.hypervisor.checks.check import Check
from vmbackup.hypervisor.checks.confinement import apparmor_rule, confinement_checks

SCRATCH = "/srv/scratch of mine"
ROOT = Path(__file__).parents[3]


def capabilities(*models: str) -> str:
    inside = "".join(f"<secmodel><model>{model}</model><doi>0</doi></secmodel>" for model in models)
    return f"<capabilities><host>{inside}</host></capabilities>"


def apparmor(root: Path) -> Check:
    (found,) = confinement_checks(capabilities("apparmor", "dac"), SCRATCH, root)
    return found


def test_a_host_that_confines_nothing_has_nothing_to_mend() -> None:
    assert list(confinement_checks(capabilities("none", "dac"), SCRATCH)) == []


@pytest.mark.parametrize("newer", [True, False], ids=["folder", "file"])
def test_the_command_of_apparmor_mends_it(tmp_path: Path, newer: bool) -> None:
    """Into the file that this version of AppArmor's rules reads; a comment with the rule in it is none."""
    (tmp_path / "etc/apparmor.d/local/abstractions").mkdir(parents=True)
    (tmp_path / "etc/apparmor.d/local/abstractions/libvirt-qemu").write_text(f"# {apparmor_rule(SCRATCH)}\n")
    if newer:
        (tmp_path / "etc/apparmor.d/abstractions/libvirt-qemu.d").mkdir(parents=True)
    before = apparmor(tmp_path)
    assert before.status == "warn"
    subprocess.run(["sh", "-c", before.fix.replace(">>/etc", f">>{shlex.quote(str(tmp_path))}/etc")], check=True)
    assert apparmor(tmp_path).status == "ok"


def test_selinux_names_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose file is shipped, and which is looked for by its name."""
    tool = tmp_path / "semodule"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for loaded, status in (("virt\nvmbackup\n", "ok"), ("virt\n", "warn")):
        tool.write_text(f"#!/bin/sh\nprintf '{loaded}'\n")
        tool.chmod(0o755)
        (found,) = confinement_checks(capabilities("selinux"), SCRATCH)
        assert found.status == status
    assert found.fix == "semodule -i /usr/share/doc/vmbackup/vmbackup.cil"
    assert (ROOT / "systemd" / "vmbackup.cil").is_file()
    # As `make install PREFIX=...` puts it there.
    module = tmp_path / "share/doc/vmbackup/vmbackup.cil"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path / "lib/vmbackup"))
    (found,) = confinement_checks(capabilities("selinux"), SCRATCH)
    assert found.fix == f"semodule -i {module}"


def test_the_rule_that_is_shipped_is_that_of_the_default_folder() -> None:
    lines = (ROOT / "systemd" / "vmbackup.apparmor").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [apparmor_rule("/var/lib/libvirt/vmbackup")]
