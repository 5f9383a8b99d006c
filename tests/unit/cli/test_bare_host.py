"""Restores on a machine that is no hypervisor: nothing but Python and qemu-utils, and for raw images not even those."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.lab.cli import CONFIG
from tests.unit.engine.kit import RamKit

KIB = 1 << 10
PROGRAMS = ("qemu-img", "qemu-nbd", "setpriv")  # the last one of util-linux, which every Debian has


class BareHost:
    """A repository, and the command in a process that has no libvirt and no program but those in `bin`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kit = RamKit(folder, {"vda": 700 * KIB + 512, "vdb": 96 * KIB})
        self.kit.disk().write(100 * KIB, b"what is to be restored. " * 3000)
        self.kit.disk("vdb").write(0, os.urandom(50 * KIB))
        self.point = self.kit.backup().id
        (folder / "secrets").mkdir()
        (folder / "secrets" / "passphrase").write_text("a passphrase for tests\n")
        (folder / "secrets" / "passphrase").chmod(0o600)
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        (folder / "bin").mkdir()
        (folder / "python").mkdir()
        blocked = "raise ModuleNotFoundError('there is no libvirt', name='libvirt')\n"
        (folder / "python" / "libvirt.py").write_text(blocked)

    def install(self, *programs: str) -> None:
        for program in programs:
            found = shutil.which(program)
            if found is None:
                pytest.skip(f"{program} is missing: apt install qemu-utils")
            (self.folder / "bin" / program).symlink_to(found)

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        program = "import sys; from vmbackup.cli import main; sys.exit(main(sys.argv[1:]))"
        settings = ["--config", str(self.folder / "config.toml"), "--json", "--quiet"]
        environment = {"PATH": str(self.folder / "bin"), "PYTHONPATH": str(self.folder / "python"), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-c", program, *settings, *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == code, done.stderr + done.stdout
        document: dict[str, Any] = json.loads(done.stdout)
        return document


@pytest.fixture
def host(tmp_path: Path) -> BareHost:
    return BareHost(tmp_path)


def test_qcow2_with_qemu_utils_alone(host: BareHost) -> None:
    host.install(*PROGRAMS)
    made = host.run("restore", host.point, "--output", str(host.folder / "out"))
    assert [f["target"] for f in made["files"]] == ["vda", "vdb"]
    for target, wanted in host.kit.kept[host.point].items():
        image, raw = host.folder / "out" / f"{target}.qcow2", host.folder / f"{target}.raw"
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
        assert raw.read_bytes()[: len(wanted)] == wanted
    assert (host.folder / "out" / "domain.xml").exists()


def test_raw_with_no_program_at_all(host: BareHost) -> None:
    host.run("restore", host.point, "--format", "raw", "--output", str(host.folder / "out"))
    for target, wanted in host.kit.kept[host.point].items():
        assert (host.folder / "out" / f"{target}.raw").read_bytes() == wanted


def test_what_lacks_is_said(host: BareHost) -> None:
    """qcow2 without qemu-utils: one sentence, the package, and no file."""
    error = host.run("restore", host.point, "--output", str(host.folder / "out"), code=1)["error"]
    assert "qemu-img is not installed" in error["message"]
    assert "qemu-utils" in error["hint"]
    assert list((host.folder / "out").iterdir()) == []


def test_looking_needs_no_program_either(host: BareHost) -> None:
    """What one asks before a restore."""
    assert [p["id"] for p in host.run("list")["points"]] == [host.point]
    assert host.run("show", host.point)["points"][0]["id"] == host.point
    assert host.run("verify", "--read-data")["damaged"] == []


def test_onto_an_image_that_is_there(host: BareHost) -> None:
    """Whose disk it is cannot be asked; who has it open can."""
    host.install("qemu-img", "qemu-nbd", "setpriv")
    image = host.folder / "old.raw"
    image.write_bytes(b"\xff" * (700 * KIB + 512))
    host.run("restore", host.point, "--to", f"vda={image}", "--format", "raw")
    assert image.read_bytes() == host.kit.kept[host.point]["vda"]


def test_a_chain(host: BareHost) -> None:
    host.install(*PROGRAMS)
    host.kit.disk().write(0, b"later" * 2000)
    newest = host.kit.backup().id
    host.run("restore", newest, "--chain", "--disk", "vda", "--output", str(host.folder / "out"))
    raw = host.folder / "vda.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", host.folder / "out" / "vda.qcow2", raw], check=True
    )
    wanted = host.kit.kept[newest]["vda"]
    assert raw.read_bytes()[: len(wanted)] == wanted


def test_what_needs_libvirt_says_so(host: BareHost) -> None:
    """Before anything is read or written."""
    host.install(*PROGRAMS)
    error = host.run("restore", host.point, "--define", "--output", str(host.folder / "out"), code=1)["error"]
    assert "libvirt" in error["message"]
    assert not (host.folder / "out").exists()
