"""The front door: connecting, finding, refusing, and what doctor is told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import REPOSITORY, Shadow, new_session, open_host
from vmbackup.errors import HypervisorError, JobConflictError
from vmbackup.hypervisor import Check, Host
from vmbackup.hypervisor.disks import LEAST_FOR_RAW
from vmbackup.hypervisor.domains import DomainNotFound

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]


def test_domains_are_found_by_name_and_uuid(make_domain: MakeDomain, host: Host) -> None:
    """By name, by UUID in any case; near names are told for a wrong one."""
    horse = make_domain()
    by_name = host.domain(horse.name)
    assert by_name == host.domain(horse.uuid.upper())
    assert (by_name.state, by_name.active, by_name.persistent) == ("paused", True, True)
    assert by_name in host.domains()
    with pytest.raises(DomainNotFound, match="no domain") as caught:
        host.domain(horse.name[:-1] + "x")
    assert horse.name in caught.value.hint
    assert caught.value.exit_code == 5


def test_no_libvirt_is_one_sentence_and_a_hint(work_dir: Path) -> None:
    """A socket that is not there."""
    with pytest.raises(HypervisorError, match="cannot be reached") as caught:
        Host.open("qemu+unix:///system?socket=/nowhere", scratch_dir=str(work_dir), state_dir=str(work_dir))
    assert "systemctl start libvirtd" in caught.value.hint


def test_importing_the_package_imports_no_libvirt() -> None:
    """Help and completion must not pay for libvirt."""
    code = "import sys, vmbackup.hypervisor; sys.exit('libvirt' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_foreign_job_is_refused_at_once(lab: Lab, make_domain: MakeDomain, host: Host) -> None:
    """Somebody's backup job: JobConflictError without libvirt's 30 s, and the job lives on."""
    horse = make_domain(Disk(size=MiB))
    number = horse.domain.ID()
    (folder,) = Path(lab.domain_folders).glob(f"domain-{number}-*")
    horse.domain.backupBegin(
        f"<domainbackup mode='pull'><server transport='unix' socket='{folder}/theirs.sock'/><disks>"
        f"<disk name='vda' type='file'><scratch file='{horse.folder}/theirs.qcow2'/></disk></disks></domainbackup>",
        None,
    )
    started = time.monotonic()
    with pytest.raises(JobConflictError, match="a backup job"):
        Shadow(host, horse).begin()
    assert time.monotonic() - started < 25
    assert host.purge(host.domain(horse.name)).job_ended is False
    assert horse.domain.jobInfo()[0] != 0
    horse.domain.abortJob()
    while horse.domain.jobInfo()[0]:
        time.sleep(0.02)


def test_a_second_run_is_refused(make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """Also in the same process; plan too, for its look at the checkpoints could crash libvirtd beside a delete."""
    shadow = Shadow(host, make_domain(Disk(size=MiB)))
    with shadow.begin():
        with pytest.raises(JobConflictError, match="another run works on domain"):
            shadow.begin()
        with pytest.raises(JobConflictError):
            host.plan(host.domain(shadow.horse.name), REPOSITORY, None)
    shadow.run()


def test_two_domains_at_once(make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """Runs of different domains go in parallel on one host object."""
    shadows = [Shadow(host, make_domain(Disk(size=4 * MiB))) for _ in range(3)]
    errors: list[BaseException] = []

    def run(shadow: Shadow) -> None:
        try:
            for _ in range(2):
                shadow.run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(shadow,)) for shadow in shadows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(shadow.modes == {"vda": "incremental"} for shadow in shadows)


def test_nothing_to_back_up(make_domain: MakeDomain, host: Host) -> None:
    """A domain without a disk that can be read."""
    horse = make_domain(Disk(size=MiB), start=False)
    xml = horse.domain.XMLDesc(0).replace("<target dev='vda'", "<readonly/><target dev='vda'")
    horse.domain = horse._connection.defineXML(xml)
    horse.start()
    with pytest.raises(HypervisorError, match="no disk that can be backed up") as caught:
        Shadow(host, horse).begin()
    assert "vda is left out: it is read-only" in caught.value.hint


def test_a_host_with_no_right_to_its_state(
    lab: Lab, make_domain: MakeDomain, work_dir: Path, scratch_dir: Path
) -> None:
    """A file where the state folder should be: an error before anything is begun."""
    horse = make_domain(Disk(size=MiB))
    (work_dir / "file").write_text("")
    with (
        open_host(lab, scratch_dir, work_dir / "file") as host,
        pytest.raises(HypervisorError, match="cannot be opened"),
    ):
        host.begin(host.domain(horse.name), repository_id=REPOSITORY, session=new_session(), parent=None)
    assert horse.checkpoints() == []


def by_name(checks: list[Check], name: str) -> list[Check]:
    """The checks of that name."""
    return [check for check in checks if check.name == name]


def test_doctor_of_a_sound_host(host: Host) -> None:
    """No FAIL on a host on which the other tests pass."""
    checks = host.checks([])
    assert {check.name for check in checks} >= {"libvirt", "qemu", "backup-capability", "scratch-folder"}
    assert [check for check in checks if check.status == "fail"] == []


def test_doctor_of_a_domain(lab: Lab, make_domain: MakeDomain, host: Host, short_seal: None) -> None:
    """Each disk, the agent, checkpoints sound and broken, ours and foreign, and dead runs.

    That a raw disk is read whole is told as a warning where it can be changed: from libvirt 10.10 on.
    """
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB, compat="0.10"), Disk("vdc", size=MiB, format="raw"))
    horse.domain.checkpointCreateXML(
        "<domaincheckpoint><name>theirs</name><disks><disk name='vda' checkpoint='bitmap'/></disks></domaincheckpoint>"
    )
    shadow = Shadow(host, horse)
    shadow.run()
    domain = host.domain(horse.name)
    checks = host.checks([domain])
    disks = {check.subject.rpartition("/")[2]: check for check in by_name(checks, "disk")}
    raw = "warn" if lab.connection.getLibVersion() >= LEAST_FOR_RAW else "ok"
    assert {target: check.status for target, check in disks.items()} == {"vda": "ok", "vdb": "warn", "vdc": raw}
    assert disks["vdc"].fix.startswith("vmbackup cbt enable ") == (raw == "warn")
    assert disks["vdb"].fix.startswith("qemu-img amend -f qcow2 -o compat=1.1 ")
    assert [check.status for check in by_name(checks, "checkpoint")] == ["ok"]
    assert "theirs" in by_name(checks, "foreign-checkpoints")[0].message
    assert by_name(checks, "guest-agent")[0].status == "warn"
    assert by_name(checks, "jobs")[0].status == "ok"
    with shadow.begin():
        assert "another run works" in by_name(host.checks([domain]), "jobs")[0].message
    horse.kill()
    checks = host.checks([host.domain(horse.name)])
    assert by_name(checks, "running")[0].message == "it is shut off"
    assert by_name(checks, "disk")[0].status == "ok"
    horse.start()
    broken = by_name(host.checks([host.domain(horse.name)]), "checkpoint")[0]
    assert (broken.status, "missing or broken" in broken.message) == ("warn", True)


def test_a_restarted_daemon_is_reached_again(lab: Lab, make_domain: MakeDomain, host: Host) -> None:
    """A connection that broke is opened again by the next call, and events come over the new one."""
    horse = make_domain(Disk(size=MiB))
    host.connection._raw.close()
    assert host.domain(horse.name).active
    queue = host.connection.events.subscribe(horse.uuid)
    horse.stop()
    event = queue.get(timeout=60)
    assert event
    assert event.kind == "stopped"
