"""libvirt's and QEMU's errors, each provoked: what libvirt really says, and what we make of it.

The table is that of what a backup can meet. A message that changes with a version of libvirt is noticed here first.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import Shadow
from vmbackup.errors import HypervisorError, JobConflictError, NotFoundError, QuiesceError, VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.failures import absent_bitmap_disk, broken_disk, code_of, text_of, translate
from vmbackup.hypervisor.tidy import cleanup

pytestmark = pytest.mark.real
_METADATA_ONLY, _REDEFINE, _VALIDATE = 2, 1, 4


@dataclass
class Scene:
    """A paused domain with a qcow2 disk, one of the old format, a raw one and an empty drive; and one that is off."""

    horse: Workhorse
    off: Workhorse
    folder: Path

    @property
    def domain(self) -> Any:
        return self.horse.domain

    def job(self, **changes: str) -> str:
        """The XML of a backup of vda; `changes` are `disk` (attributes), `scratch`, `socket`, `more` (disks)."""
        made = {
            "socket": f"/var/lib/libvirt/qemu/domain-{self.domain.ID()}-{self.horse.name[:20]}/x.sock",
            "scratch": str(self.folder / f"scratch-{time.monotonic_ns()}"),
            "disk": "backupmode='full'",
            "more": "",
        } | changes
        return (
            f"<domainbackup mode='pull'><server transport='unix' socket='{made['socket']}'/><disks>"
            f"<disk name='vda' backup='yes' type='file' {made['disk']}><scratch file='{made['scratch']}'/></disk>"
            f"{made['more']}</disks></domainbackup>"
        )

    def checkpoint(self, name: str, disks: str = "", flags: int = 0) -> Any:
        return self.domain.checkpointCreateXML(moment(name, disks), flags)


def moment(name: str, disks: str = "") -> str:
    disks = disks or "<disk name='vda' checkpoint='bitmap'/>"
    return (
        f"<domaincheckpoint><name>{name}</name><creationTime>1</creationTime><disks>{disks}</disks></domaincheckpoint>"
    )


def bitmap_of_nobody(scene: Scene) -> None:
    """109: metadata is to be defined again, and QEMU has no such bitmap."""
    scene.checkpoint("gone", "<disk name='vda' checkpoint='bitmap' bitmap='gone'/>", _REDEFINE | _VALIDATE)


def broken_bitmap(scene: Scene) -> None:
    """109: the same in a backup."""
    made = scene.checkpoint("broken", "<disk name='vda' checkpoint='bitmap' bitmap='broken'/>", _REDEFINE)
    try:
        scene.domain.backupBegin(scene.job(disk="backupmode='incremental' incremental='broken'"), None)
    finally:
        made.delete(_METADATA_ONLY)


def checkpoint_of_nobody(scene: Scene) -> None:
    scene.domain.backupBegin(scene.job(disk="backupmode='incremental' incremental='nobody'"), None)


def bitmap_without_metadata(scene: Scene) -> None:
    scene.checkpoint("twice").delete(_METADATA_ONLY)
    try:
        scene.checkpoint("twice")
    finally:
        scene.checkpoint("twice", "<disk name='vda' checkpoint='bitmap' bitmap='twice'/>", _REDEFINE).delete(0)


def metadata_without_bitmap(scene: Scene) -> None:
    made = scene.checkpoint("lost", "<disk name='vda' checkpoint='bitmap' bitmap='lost'/>", _REDEFINE)
    try:
        made.delete(0)
    finally:
        made.delete(_METADATA_ONLY)


def name_used_twice(scene: Scene) -> None:
    made = scene.checkpoint("same")
    try:
        scene.checkpoint("same")
    finally:
        made.delete(0)


def backup_of_one_that_is_off(scene: Scene) -> None:
    scene.off.domain.backupBegin(scene.job(), None)


def checkpoint_of_one_that_is_off(scene: Scene) -> None:
    scene.off.domain.checkpointCreateXML(moment("off"), 0)


def stopped_meanwhile(scene: Scene) -> None:
    scene.off.domain.suspend()


def raw_in_a_checkpoint(scene: Scene) -> None:
    scene.checkpoint("raw", "<disk name='vdc' checkpoint='bitmap'/>")


def old_format(scene: Scene) -> None:
    scene.checkpoint("old", "<disk name='vdb' checkpoint='bitmap'/>")


def no_such_disk(scene: Scene) -> None:
    other = scene.folder / "other"
    more = f"<disk name='vdz' backup='yes' type='file'><scratch file='{other}'/></disk>"
    scene.domain.backupBegin(scene.job(more=more), None)


def scratch_is_there(scene: Scene) -> None:
    path = scene.folder / "there"
    path.write_bytes(b"old")
    scene.domain.backupBegin(scene.job(scratch=str(path)), None)


def scratch_folder_is_not(scene: Scene) -> None:
    scene.domain.backupBegin(scene.job(scratch=str(scene.folder / "nowhere" / "x")), None)


def scratch_folder_is_closed(scene: Scene) -> None:
    closed = scene.folder / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    scene.domain.backupBegin(scene.job(scratch=str(closed / "x")), None)


def socket_folder_is_closed(scene: Scene) -> None:
    closed = scene.folder / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    scene.domain.backupBegin(scene.job(socket=str(closed / "x.sock")), None)


def socket_folder_is_of_root(scene: Scene) -> None:
    (scene.folder / "roots").mkdir(mode=0o755, exist_ok=True)
    scene.domain.backupBegin(scene.job(socket=str(scene.folder / "roots" / "x.sock")), None)


def socket_path_is_too_long(scene: Scene) -> None:
    scene.domain.backupBegin(scene.job(socket=f"/var/lib/libvirt/qemu/{'x' * 100}.sock"), None)


def not_of_the_schema(scene: Scene) -> None:
    scene.domain.backupBegin(scene.job(disk="backupmode='sideways'"), None)


def flag_of_the_future(scene: Scene) -> None:
    scene.domain.backupBegin(scene.job(), None, 1 << 20)


def one_export_for_two_disks(scene: Scene) -> None:
    more = f"<disk name='vdc' backup='yes' type='file' exportname='vda'><scratch file='{scene.folder}/second'/></disk>"
    scene.domain.backupBegin(scene.job(disk="exportname='vda'", more=more), None)


def no_job_to_show(scene: Scene) -> None:
    scene.domain.backupGetXMLDesc(0)


def no_job_to_end(scene: Scene) -> None:
    scene.domain.abortJob()


def no_agent(scene: Scene) -> None:
    scene.domain.resume()
    try:
        scene.domain.fsFreeze()
    finally:
        scene.domain.suspend()


def dead_agent(scene: Scene) -> None:
    scene.off.start()
    scene.off.domain.resume()
    try:
        scene.off.domain.fsFreeze()
    finally:
        scene.off.stop()


def no_such_domain(scene: Scene) -> None:
    scene.domain.connect().lookupByName("vmbackup-lab-nobody")


def undefined_with_a_checkpoint(scene: Scene) -> None:
    made = scene.checkpoint("stays")
    scene.horse.stop()
    try:
        scene.domain.undefine()
    finally:
        scene.horse.start()
        made.delete(0)


def disk_in_a_block_job(scene: Scene) -> None:
    xml = f"<disk type='file'><driver type='qcow2'/><source file='{scene.folder}/copy.qcow2'/></disk>"
    scene.domain.blockCopy("vda", xml, {}, 4)
    try:
        scene.domain.backupBegin(scene.job(), None)
    finally:
        scene.domain.blockJobAbort("vda", 0)


# What is done, libvirt's code, words of its message, our error, words of our hint.
CATALOGUE: list[tuple[Callable[[Scene], None], int, str, type[VmbackupError], str]] = [
    (bitmap_of_nobody, 109, "missing or broken bitmap 'gone' for disk 'vda'", HypervisorError, "run the backup again"),
    (broken_bitmap, 109, "missing or broken bitmap 'broken' for disk 'vda'", HypervisorError, "run the backup again"),
    (checkpoint_of_nobody, 103, "'nobody' for incremental backup of disk 'vda' not found", HypervisorError, "again"),
    (bitmap_without_metadata, 1, "Bitmap already exists: twice", HypervisorError, "vmbackup purge"),
    (metadata_without_bitmap, 1, "bitmap 'lost' not found in backing chain of 'vda'", HypervisorError, "purge"),
    (name_used_twice, 9, "domain moment same already exists", HypervisorError, "vmbackup purge"),
    (backup_of_one_that_is_off, 84, "inactive domain", HypervisorError, "virsh start"),
    (checkpoint_of_one_that_is_off, 84, "inactive domain", HypervisorError, "virsh start"),
    (stopped_meanwhile, 55, "domain is not running", HypervisorError, "virsh start"),
    (raw_in_a_checkpoint, 67, "unsupported for storage type raw", HypervisorError, "run the backup again"),
    (old_format, 1, "qcow2 v2 files", HypervisorError, "qemu-img amend -f qcow2 -o compat=1.1"),
    (no_such_disk, 67, "no disk named", HypervisorError, "run the backup again"),
    (scratch_is_there, 8, "for backup of 'vda' exists", HypervisorError, "delete it"),
    (scratch_folder_is_not, 38, "failed to create image file", HypervisorError, "0711"),
    (scratch_folder_is_closed, 1, "Permission denied", HypervisorError, "chmod 0711"),
    (socket_folder_is_closed, 1, "Failed to unlink socket", HypervisorError, "AppArmor"),
    (socket_folder_is_of_root, 1, "Failed to bind socket", HypervisorError, "AppArmor"),
    (socket_path_is_too_long, 1, "too long", HypervisorError, "shorter name"),
    (not_of_the_schema, 92, "", HypervisorError, "vmbackup doctor"),
    (flag_of_the_future, 8, "unsupported flags", HypervisorError, "vmbackup doctor"),
    (one_export_for_two_disks, 1, "already has export named 'vda'", HypervisorError, "vmbackup doctor"),
    (no_job_to_show, 104, "", HypervisorError, "run the backup again"),
    (no_agent, 74, "agent is not configured", QuiesceError, "org.qemu.guest_agent.0"),
    (dead_agent, 86, "agent is not connected", QuiesceError, "start qemu-guest-agent"),
    (no_such_domain, 42, "", NotFoundError, "virsh list --all"),
    (undefined_with_a_checkpoint, 55, "cannot delete inactive domain with 1 checkpoints", HypervisorError, "purge"),
    (disk_in_a_block_job, 1, "has a blockjob assigned", JobConflictError, "virsh blockjob"),
]


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Iterator[Scene]:
    horse = lab.workhorse(Disk(size=MiB), Disk("vdb", size=MiB, compat="0.10"), Disk("vdc", size=MiB, format="raw"))
    off = lab.workhorse(Disk(size=MiB), start=False)
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel></devices>"
    off.redefine(off.domain.XMLDesc(2).replace("</devices>", channel))
    folder = lab.new_folder("errors")
    yield Scene(horse, off, folder)
    horse.remove()
    off.remove()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("provoke", "code", "words", "kind", "hint"), CATALOGUE, ids=[row[0].__name__ for row in CATALOGUE]
)
def test_each_error_has_a_sentence_and_a_cure(
    scene: Scene, provoke: Callable[[Scene], None], code: int, words: str, kind: type[VmbackupError], hint: str
) -> None:
    import libvirt

    with pytest.raises(libvirt.libvirtError) as caught:
        provoke(scene)
    assert (code_of(caught.value), words in text_of(caught.value)) == (code, True), text_of(caught.value)
    error = translate(caught.value, "begin the backup", scene.horse.name)
    assert type(error) is kind
    assert hint in error.hint
    assert "\n" not in error.message + error.hint
    cleanup.wait_for_end(scene.domain, cleanup.active_job_socket(scene.domain) or "")
    assert (cleanup.active_job_socket(scene.domain), scene.horse.checkpoints()) == (None, [])


def test_what_is_read_out_of_an_error(scene: Scene) -> None:
    """The disk of a bitmap that is not there: it alone is read whole."""
    import libvirt

    for provoke, told in ((broken_bitmap, broken_disk), (checkpoint_of_nobody, broken_disk),
                          (metadata_without_bitmap, absent_bitmap_disk)):  # fmt: skip
        with pytest.raises(libvirt.libvirtError) as caught:
            provoke(scene)
        assert told(caught.value) == "vda"


def test_an_end_of_a_job_that_is_none_is_a_success(scene: Scene) -> None:
    import libvirt

    with pytest.raises(libvirt.libvirtError) as caught:
        no_job_to_end(scene)
    assert code_of(caught.value) == 55
    assert cleanup.abort_job(scene.domain, "/nowhere") is False


def test_a_checkpoint_that_goes_between_plan_and_begin(
    make_domain: Callable[..., Workhorse], host: Host, short_seal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted by somebody in that moment: libvirt refuses (103), and the disk is read whole in a second attempt."""
    from vmbackup.hypervisor.live.beginning import Beginning

    horse = make_domain(Disk(size=MiB))
    shadow = Shadow(host, horse)
    shadow.run()
    start = Beginning._begin

    def deleted_before(beginning: Beginning, *args: Any) -> Any:
        for checkpoint in horse.domain.listAllCheckpoints(0):
            checkpoint.delete(0)
        return start(beginning, *args)

    monkeypatch.setattr(Beginning, "_begin", deleted_before)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    monkeypatch.undo()
    monkeypatch.setattr("vmbackup.hypervisor.live.job.PROOF_WAIT", 0.05)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


@pytest.mark.torture
def test_what_libvirt_refuses_during_a_backup(make_domain: Callable[..., Workhorse], host: Host, lab: Lab) -> None:
    """Another backup, a snapshot, a save and a migration wait 30 s and are refused; the run is right all the same."""
    import libvirt

    horse = make_domain(Disk(size=MiB))
    shadow = Shadow(host, horse)
    refused: dict[str, Exception] = {}
    overlay = horse.folder / "overlay"
    snapshot = f"<domainsnapshot><disks><disk name='vda'><source file='{overlay}'/></disk></disks></domainsnapshot>"
    live = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER
    calls = {
        "backup": lambda domain: domain.backupBegin("<domainbackup mode='pull'><server transport='unix' socket='/x'/>"
                                                    "</domainbackup>", None),
        "snapshot": lambda domain: domain.snapshotCreateXML(snapshot, 16 | 4),
        "save": lambda domain: domain.managedSave(0),
        "migration": lambda domain: domain.migrateToURI3("qemu+tcp://127.0.0.9/system", {}, live),
    }  # fmt: skip

    def ask(name: str) -> None:
        with libvirt.open("qemu:///system") as connection:
            try:
                calls[name](connection.lookupByName(horse.name))
            except libvirt.libvirtError as error:
                refused[name] = error

    with shadow.begin() as running:
        threads = [threading.Thread(target=ask, args=(name,)) for name in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        images = shadow.read(running)
        running.seal()
        shadow.commit(running, images)
    assert {name: code_of(error) for name, error in refused.items()} == dict.fromkeys(calls, 68)
    for error in refused.values():
        assert type(translate(error, "begin", horse.name)) is JobConflictError
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
