"""Scratch that runs full: the run fails cleanly, the guest goes on, and the next run, with space, is right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.disk import same_content
from tests.lab.session import Lab
from tests.real.engine.meddler import BusyGuest
from tests.real.engine.program import Program
from tests.real.hypervisor.bootsector import tiny_file_system
from vmbackup.cli.app import run
from vmbackup.hypervisor.live.job import LiveJob

pytestmark = pytest.mark.real
_RUNNING = 1


@pytest.fixture
def guest(lab: Lab, scratch_dir: Path) -> Iterator[BusyGuest]:
    """A running guest whose QEMU sees a scratch folder of 12 MiB."""
    with tiny_file_system(scratch_dir, "12m"):
        made = BusyGuest(lab)
        yield made
        made.remove()


def test_a_full_scratch_fails_the_run_and_not_the_guest(
    guest: BusyGuest, work_dir: Path, scratch_dir: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit 1 and ScratchFullError; the guest runs and sees no error; without so many writes the next run is right."""
    program = Program.make(work_dir, scratch_dir)
    first = program.json("backup", guest.name)["points"][0]
    begun, seal = guest.checkpoints(), LiveJob.seal

    def busy(job: LiveJob) -> None:
        """Before the seal the guest overwrites more than scratch can hold."""
        for mebibyte in range(2, 18):
            guest.ask(mebibyte)
        guest.settle()
        seal(job)

    with monkeypatch.context() as patch:
        patch.setattr(LiveJob, "seal", busy)
        code = run(program.arguments("--json", "backup", guest.name))
    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["kind"], error["exit_code"]) == (1, "scratch_full", 1)
    assert error["hint"]
    assert guest.state[0] == _RUNNING
    assert guest.checkpoints() == begun
    assert guest.domain.jobInfo()[0] == 0
    assert list(scratch_dir.iterdir()) == []
    guest.ask(30)
    guest.settle()

    copy = guest.copy()
    second = program.json("backup", guest.name)["points"][0]
    assert (second["parent"], second["disks"][0]["mode"]) == (first["id"], "incremental")
    (file,) = program.json("restore", second["id"], "--output", str(work_dir / "restored"))["files"]
    assert same_content(copy, Path(file["path"])) is None
