"""`vmbackup recover` after kill -9: guests first, then what the repository has to tell."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.test_killed import Host

pytestmark = pytest.mark.real
NOTHING: dict[str, Any] = {"recovered": [], "failed": [], "running": []}


def recover(host: Host, *domains: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(host.command("--json", "recover", *domains), capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def begun(horse: Workhorse) -> Callable[[], bool]:
    """Whether a new checkpoint is there: with it the job began."""
    known = len(horse.checkpoints())
    return lambda: len(horse.checkpoints()) > known


def has_job(horse: Workhorse) -> bool:
    """Also while it begins: libvirt 9.0 has no data of it then."""
    try:
        return bool(horse.domain.jobInfo()[0])
    except libvirt.libvirtError as error:
        return "job data missing" in str(error)


@pytest.fixture
def killed(make_domain: Callable[..., Workhorse], work_dir: Path, scratch_dir: Path) -> tuple[Host, Workhorse]:
    """A guest with one restore point, whose second run was killed while its job went on."""
    host, horse = Host.make(work_dir, scratch_dir), make_domain(Disk("vda", size=64 * MiB))
    host.backup(horse)
    horse.write("vda", 5 * MiB, MiB, 7)
    host.kill(horse, begun(horse), 0.0)
    assert has_job(horse)
    return host, horse


def test_a_killed_run_is_put_right(killed: tuple[Host, Workhorse]) -> None:
    """Job, scratch, socket and checkpoint go; the next run is incremental from the old point; twice is no harm."""
    host, horse = killed
    code, told = recover(host)
    assert code == 0
    assert {"domain": horse.name, "what": "ended its backup job"} in told["recovered"]
    assert told["failed"] == []
    assert not has_job(horse)
    assert list(host.scratch.iterdir()) == []
    assert len(horse.checkpoints()) == 1
    assert recover(host) == (0, NOTHING)
    point = host.backup(horse)
    assert [disk["mode"] for disk in point["disks"]] == ["incremental"]
    host.check(horse, point)


def test_the_guest_comes_first_though_the_repository_is_gone(killed: tuple[Host, Workhorse]) -> None:
    """What it has to tell waits, and is told; nothing that it may need is deleted."""
    host, horse = killed
    repository = host.folder / "repository"
    repository.rename(host.folder / "away")
    code, told = recover(host)
    assert code == 3
    assert not has_job(horse)
    assert list(host.scratch.iterdir()) == []
    assert [failed["domain"] for failed in told["failed"]] == [horse.name]
    assert len(horse.checkpoints()) == 2
    (host.folder / "away").rename(repository)
    assert recover(host, horse.name)[0] == 0
    assert len(horse.checkpoints()) == 1
    point = host.backup(horse)
    assert [disk["mode"] for disk in point["disks"]] == ["incremental"]


def test_other_domains_and_live_runs_are_left_alone(killed: tuple[Host, Workhorse]) -> None:
    host, horse = killed
    code, told = recover(host, "some-other-domain")
    assert (code, told["error"]["kind"]) == (5, "not_found")
    assert has_job(horse)
    code, _ = recover(host, horse.uuid)
    assert code == 0
    has_begun = begun(horse)
    with subprocess.Popen(host.command("backup", horse.name), stdout=subprocess.DEVNULL) as live:
        while not has_begun() and live.poll() is None:
            pass
        live.send_signal(signal.SIGSTOP)  # or it may have ended meanwhile
        try:
            assert recover(host) == (0, {**NOTHING, "running": [horse.name]})
        finally:
            live.send_signal(signal.SIGCONT)
        assert live.wait() == 0
