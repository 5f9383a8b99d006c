"""Snapshots between backups, made by libvirt and undone again: the chain of increments goes on, or says why not."""

from __future__ import annotations

import time
from pathlib import Path

import libvirt
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.test_stopped import MakeDomain, MakeShadow, write_off
from vmbackup.nbd import Kind

pytestmark = pytest.mark.real
K64 = 65536
_DISK_ONLY, _NO_METADATA = 16, 4
_ACTIVE, _PIVOT = 4, 2


def snapshot(horse: Workhorse, target: str) -> None:
    """What `virsh snapshot-create-as --disk-only --no-metadata` does: a new image on top."""
    path = horse.folder / f"{target}-{time.monotonic_ns()}.qcow2"
    others = "".join(f"<disk name='{each}' snapshot='no'/>" for each in horse.disks if each != target)
    disk = f"<disk name='{target}' snapshot='external'><source file='{path}'/></disk>"
    xml = f"<domainsnapshot><disks>{disk}{others}</disks></domainsnapshot>"
    horse.domain.snapshotCreateXML(xml, _DISK_ONLY | _NO_METADATA)
    horse.rename(target, path)


def commit(horse: Workhorse, target: str, onto: Path) -> None:
    """What `virsh blockcommit --active --pivot` does: the top merged into the image below."""
    horse.domain.blockCommit(target, None, None, 0, _ACTIVE)
    deadline = time.monotonic() + 60
    while not _pivoted(horse, target):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    horse.path(target).unlink()
    horse.rename(target, onto)


def _pivoted(horse: Workhorse, target: str) -> bool:
    """False while there is something to copy."""
    try:
        horse.domain.blockJobAbort(target, _PIVOT)
    except libvirt.libvirtError:
        return False
    return True


def test_external_snapshots(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Made, backed up over, merged again: each increment reads what changed and nothing else."""
    horse = make_domain(Disk(size=4 * MiB), Disk("vdb", size=4 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, 3 * K64, 1)
    shadow.run()
    first = horse.path("vda")

    def follows(changed: int) -> None:
        shadow.run()
        assert shadow.modes == {"vda": "incremental", "vdb": "incremental"}, shadow.reasons
        assert shadow.kinds("vda")[Kind.DATA] == changed * K64
        shadow.compare(work_dir)
        assert shadow.anchor
        assert horse.checkpoints() == [shadow.anchor.checkpoint]

    horse.write("vda", MiB, K64, 2)
    snapshot(horse, "vda")
    horse.write("vda", 2 * MiB, K64, 3)
    follows(2)
    horse.write("vda", 0, K64, 4)
    follows(1)
    commit(horse, "vda", first)
    horse.write("vda", 3 * MiB, K64, 5)
    follows(1)
    snapshot(horse, "vda")
    horse.write("vda", MiB, K64, 6)
    commit(horse, "vda", first)
    follows(1)


def test_stopped_on_a_snapshot(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Off, with its changes in two images: read whole once, with that reason; then incremental again."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, K64, 1)
    shadow.run()
    horse.write("vda", MiB, K64, 2)
    snapshot(horse, "vda")
    horse.write("vda", 2 * MiB, K64, 3)
    horse.stop()
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert "a snapshot was made since" in (shadow.reasons["vda"] or "")
    shadow.compare(work_dir)
    write_off(horse, "vda", 3 * MiB, K64, 4)
    shadow.run()
    assert (shadow.modes, shadow.kinds("vda")[Kind.DATA]) == ({"vda": "incremental"}, K64)
    horse.start()
    horse.write("vda", 0, K64, 5)
    shadow.run()
    assert (shadow.modes, shadow.kinds("vda")[Kind.DATA]) == ({"vda": "incremental"}, K64)
    shadow.compare(work_dir)
