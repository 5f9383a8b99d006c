"""The commands as an operator types them, against a real domain."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]


@dataclass
class Program:
    """`vmbackup` with a configuration of its own, in processes of their own."""

    config: Path

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "vmbackup.cli", "--config", str(self.config), *args]

    def __call__(self, *args: str, code: int = 0) -> str:
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if code in (0, 3) or "--json" in args else done.stderr

    def json(self, *args: str, code: int = 0) -> dict[str, Any]:
        return json.loads(self("--json", *args, code=code))


@pytest.fixture
def vmbackup(work_dir: Path, scratch_dir: Path) -> Program:
    config = work_dir / "config.toml"
    config.write_text(
        f'[libvirt]\nscratch_dir = "{scratch_dir}"\n[host]\ncache_dir = "{work_dir}/cache"\n'
        f'[daemon]\nstate_dir = "{work_dir}/state"\n'
    )
    config.chmod(0o600)
    program = Program(config)
    program("init")
    return program


def test_the_whole_way(vmbackup: Program, make_domain: MakeDomain, work_dir: Path) -> None:
    """Backup, change, backup, list, verify, restore of both points in both formats, purge."""
    horse = make_domain(Disk("vda", size=64 * MiB), Disk("vdb", size=16 * MiB))
    name = horse.name
    horse.write("vda", 0, 8 * MiB, 0x11)
    plan = vmbackup.json("backup", name, "--dry-run")["plans"][0]
    assert [(d["target"], d["mode"]) for d in plan["disks"]] == [("vda", "full"), ("vdb", "full")]
    assert horse.checkpoints() == []

    first = vmbackup.json("backup", name)["points"][0]
    before = horse.copy("vda")
    horse.write("vda", MiB, 65536, 0x22)
    second = vmbackup.json("backup", name)["points"][0]
    assert (second["parent"], second["disks"][0]["mode"], second["disks"][0]["changed_bytes"]) == (
        first["id"],
        "incremental",
        65536,
    )
    assert second["status"] == "success"
    assert [p["id"] for p in vmbackup.json("list", name)["points"]] == [second["id"], first["id"]]
    assert vmbackup.json("show", f"{name}@latest")["points"][0]["id"] == second["id"]
    assert vmbackup.json("verify", "--read-data")["damaged"] == []

    files = vmbackup.json("restore", name, "--output", str(work_dir / "new"))["files"]
    assert [f["path"] for f in files] == [str(work_dir / "new" / f"{t}.qcow2") for t in ("vda", "vdb")]
    horse.compare("vda", work_dir / "new" / "vda.qcow2")
    assert name in (work_dir / "new" / "domain.xml").read_text()
    short = first["id"].rsplit("-", 1)[1]
    vmbackup("restore", short, "--output", str(work_dir / "old"), "--format", "raw", "--disk", "vda")
    compared = subprocess.run(
        ["qemu-img", "compare", "-F", "raw", "-f", "qcow2", str(before), str(work_dir / "old" / "vda.raw")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compared.returncode == 0, compared.stdout
    assert "already there" in vmbackup("restore", name, "--output", str(work_dir / "new"), code=1)
    vmbackup("restore", name, "--output", str(work_dir / "x"), "--disk", "vdz", code=5)

    assert len(vmbackup.json("purge", name)["purged"][0]["checkpoints"]) == 1
    assert horse.checkpoints() == []
    disks = vmbackup.json("backup", name)["points"][0]["disks"]
    assert (disks[0]["mode"], disks[0]["stored_bytes"], bool(disks[0]["reason"])) == ("reread", 0, True)


def test_several_domains_and_bad_names(vmbackup: Program, make_domain: MakeDomain) -> None:
    horse, off = make_domain(), make_domain(start=False)
    document = vmbackup.json("backup", horse.name, off.name, "no-such-domain", code=3)
    assert [p["domain"] for p in document["points"]] == [horse.name, off.name]
    assert [f["domain"] for f in document["failed"]] == ["no-such-domain"]
    assert vmbackup.json("backup", "no-such-domain", code=5)["error"]["exit_code"] == 5
    assert "frozen" in vmbackup("backup", horse.name, "--quiesce", "required", code=1)


def test_doctor_finds_the_host_fit(vmbackup: Program, make_domain: MakeDomain) -> None:
    """Only the agent is missing: the domain has no operating system."""
    horse = make_domain()
    checks = vmbackup.json("doctor", horse.name, code=3)["checks"]
    assert {c["name"] for c in checks if c["status"] != "ok"} == {"guest-agent"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_backup_leaves_nothing(
    vmbackup: Program, make_domain: MakeDomain, number: signal.Signals
) -> None:
    """130, no checkpoint, no job; the next run is as if it had never been."""
    horse = make_domain(Disk("vda", size=64 * MiB))
    horse.write("vda", 0, 32 * MiB, 0x33)
    with subprocess.Popen(
        vmbackup.command("backup", horse.name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while not horse.checkpoints() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, ""), err
    assert "interrupted" in err
    assert horse.checkpoints() == []
    assert horse.domain.jobInfo()[0] == 0
    assert vmbackup.json("list")["points"] == []
    assert vmbackup.json("backup", horse.name)["points"][0]["status"] == "success"


def test_a_wrong_libvirt_is_one_sentence(vmbackup: Program) -> None:
    text = vmbackup.config.read_text().replace(
        "[libvirt]\n", '[libvirt]\nuri = "qemu+unix:///system?socket=/nowhere"\n'
    )
    vmbackup.config.write_text(text)
    assert len(vmbackup("backup", "x", code=1).splitlines()) == 2
