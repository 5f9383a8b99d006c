"""Disks that are many, that forget, that grow while nobody looks, and internal snapshots."""

from __future__ import annotations

import subprocess
from pathlib import Path

import libvirt
import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.luks import create_luks
from tests.real.hypervisor.test_stopped import MakeDomain, MakeShadow, write_off
from vmbackup.nbd import Kind

pytestmark = pytest.mark.real
K64 = 65536


@pytest.mark.torture
def test_more_than_26_disks(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """After vdz comes vdaa: each has its own reader, scratch file and bitmap, on and off."""
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "aa", "ab"]
    horse = make_domain(*(Disk(f"vd{letter}", size=MiB) for letter in letters))
    shadow = make_shadow(horse)
    shadow.run()
    assert len(shadow.modes) == 28
    horse.write("vdab", 0, K64, 7)
    horse.write("vdb", 0, K64, 8)
    shadow.run()
    assert set(shadow.modes.values()) == {"incremental"}
    assert {target for target in shadow.modes if shadow.kinds(target)[Kind.DATA]} == {"vdb", "vdab"}
    horse.stop()
    write_off(horse, "vdaa", 0, K64, 9)
    shadow.run()
    assert {target for target in shadow.modes if shadow.kinds(target)[Kind.DATA]} == {"vdaa"}
    shadow.compare(work_dir)


def test_a_transient_disk(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """What a guest writes to it is thrown away at its end: it is left out, and that is said; the others are there."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB), start=False)
    xml = horse.domain.XMLDesc(2).replace("<target dev='vdb' bus='virtio'/>", "<target dev='vdb'/><transient/>")
    horse.domain = horse.domain.connect().defineXML(xml)
    horse.start()
    shadow = make_shadow(horse)
    for _ in range(2):
        horse.write("vda", 0, K64, 5)
        shadow.run()
        assert any("disk vdb is left out: it is transient" in note for note in shadow.notes)
        shadow.compare(work_dir)
    assert shadow.modes == {"vda": "incremental"}
    horse.stop()
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


def test_grown_and_shrunk_while_it_is_off(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Grown: still incremental, and its new end is zeros. Shrunk: read whole, with the sizes."""
    horse = make_domain(Disk(size=4 * MiB, options=("lazy_refcounts=on",)), start=False)
    shadow = make_shadow(horse)
    write_off(horse, "vda", 3 * MiB, MiB, 1)
    shadow.run()
    resize = ["qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", str(horse.path("vda"))]
    subprocess.run([*resize, "6M"], check=True)
    write_off(horse, "vda", 5 * MiB, K64, 2)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    shadow.compare(work_dir)
    subprocess.run([*resize, "3M"], check=True)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert shadow.reasons["vda"] == f"the disk shrank from {6 * MiB} to {3 * MiB} bytes"
    shadow.compare(work_dir)


def test_internal_snapshots(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Made and deleted while it runs: the increments go on. To revert, our bitmaps must be purged first."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, K64, 1)
    shadow.run()
    horse.domain.snapshotCreateXML("<domainsnapshot><name>before</name></domainsnapshot>", 0)
    horse.write("vda", MiB, K64, 2)
    shadow.run()
    assert (shadow.modes, shadow.kinds("vda")[Kind.DATA]) == ({"vda": "incremental"}, K64)
    shadow.compare(work_dir)
    made = horse.domain.snapshotLookupByName("before")
    with pytest.raises(libvirt.libvirtError, match="has active dirty bitmaps"):
        horse.domain.revertToSnapshot(made)
    shadow.run()  # libvirt 9.0 has ended QEMU by then
    shadow.compare(work_dir)
    shadow.host.purge(shadow.host.domain(horse.name))
    horse.domain.revertToSnapshot(made)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    shadow.compare(work_dir)
    made.delete()
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    shadow.compare(work_dir)


def test_what_a_raw_disk_holds_says_nothing_of_it(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A guest that encrypts a raw disk itself: it is a raw disk, on and off, whose bytes need no passphrase of ours."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=4 * MiB, format="raw"))
    inner = horse.folder / "inner"
    create_luks(inner, "luks", MiB, b"the guest's own")
    horse.write_data("vdb", 0, inner.read_bytes()[: 3 * MiB])
    horse.flush("vdb")
    shadow = make_shadow(horse)
    for running in (True, False):
        if not running:
            horse.stop()
        shadow.run()
        assert shadow.earlier["vdb"].attributes == {}
        assert not [note for note in shadow.notes if "vdb" in note]
