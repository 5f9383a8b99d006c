"""`make install` into a folder: what it puts there works from its own place, and `make uninstall` takes it away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PREFIX = "/usr/local"
FILES = (
    f"{PREFIX}/lib/systemd/system/vmbackup.service",
    f"{PREFIX}/lib/tmpfiles.d/vmbackup.conf",
    f"{PREFIX}/lib/sysusers.d/vmbackup.conf",
    f"{PREFIX}/share/doc/vmbackup/config.example.toml",
    f"{PREFIX}/share/doc/vmbackup/operations.md",
    f"{PREFIX}/share/doc/vmbackup/page.png",
    f"{PREFIX}/share/doc/vmbackup/vmbackup.apparmor",
    f"{PREFIX}/share/doc/vmbackup/vmbackup.cil",
    "/etc/vmbackup/config.toml",
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]  # pip may have to build libvirt's binding


def _make(target: str, to: Path) -> None:
    command = ["make", "-s", target, f"DESTDIR={to}", f"PREFIX={PREFIX}", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_install_and_uninstall(tmp_path: Path) -> None:
    _make("install", tmp_path)
    assert [name for name in FILES if not (tmp_path / name[1:]).is_file()] == []
    unit = (tmp_path / FILES[0][1:]).read_text()
    assert f"\nExecStart={PREFIX}/bin/vmbackup daemon\n" in unit
    assert "/usr/bin/vmbackup" not in unit
    assert os.readlink(tmp_path / "usr/local/bin/vmbackup") == f"{PREFIX}/lib/vmbackup/bin/vmbackup"

    home = tmp_path / "usr/local/lib/vmbackup"
    assert (home / "bin/vmbackup").read_text().startswith(f"#!{PREFIX}/lib/vmbackup/bin/python")
    named = subprocess.run(["grep", "-rlI", str(tmp_path), str(home)], capture_output=True, text=True).stdout
    assert named == "", "names of the folder in which it was made"
    command = [home / "bin/python", "-P", "-m", "vmbackup.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("vmbackup "), done.stderr

    # Again: an operator's configuration stays, and nothing is left beside.
    (tmp_path / "etc/vmbackup/config.toml").write_text("# mine\n")
    _make("install", tmp_path)
    assert (tmp_path / "etc/vmbackup/config.toml").read_text() == "# mine\n"
    assert not list((tmp_path / "usr/local/lib").glob("vmbackup.*"))

    _make("uninstall", tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()] == [
        "etc/vmbackup/config.toml"
    ]
