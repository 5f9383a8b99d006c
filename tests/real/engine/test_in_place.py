"""A stopped guest's own disks, brought back to a restore point: refused where they are used, right afterwards."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.engine.evolution import content
from tests.real.engine.kit import Kit
from vmbackup.engine.restore.in_place import InPlaceOptions, InPlaceSummary, restore_in_place
from vmbackup.errors import DamageError, HypervisorError, JobConflictError, NotFoundError, TargetError
from vmbackup.progress import Silent

pytestmark = pytest.mark.real
CHUNK = 64 << 10


def bring(kit: Kit, point_id: str, **options: Any) -> InPlaceSummary:
    wishes = InPlaceOptions(workers=2, **options)
    return restore_in_place(kit.host, kit.repository, kit.point(point_id), wishes, Silent())


def state(horse: Workhorse, target: str = "vda") -> str:
    if horse.running:
        horse.flush(target)
    return content(horse.path(target), horse.disks[target].format)


@pytest.fixture
def horse(make_domain: Callable[..., Workhorse]) -> Workhorse:
    made = make_domain(Disk("vda", size=16 * MiB))
    made.write_data("vda", 0, random.Random(1).randbytes(4 * MiB))
    return made


def changed(horse: Workhorse, target: str = "vda") -> None:
    """Data over data, zeros over data, data over zeros, a discard: 5 chunks."""
    horse.write(target, 3 * CHUNK + 512, 512, 1)
    horse.zero_unmap(target, 10 * CHUNK, CHUNK)
    horse.discard(target, 20 * CHUNK, CHUNK)
    horse.write(target, 30 * CHUNK, CHUNK, 0)
    horse.write(target, 10 * MiB, 512, 2)


@pytest.mark.parametrize("quick", [False, True])
def test_there_and_back(kit: Kit, horse: Workhorse, quick: bool) -> None:
    """Only what differs is written; the next backup is incremental from the newest point, and right."""
    first = kit.backup(horse)
    before = state(horse)
    changed(horse)
    second = kit.backup(horse)
    after = state(horse)
    horse.write("vda", 12 * MiB, 512, 3)
    horse.stop()
    done = bring(kit, first.id, quick=quick)
    assert state(horse) == before
    (file,) = done.files
    assert (file.written_bytes, file.why_not_quick) == (6 * CHUNK, None)
    assert (file.compared_bytes < 4 * MiB) is False or quick
    horse.start()
    third = kit.backup(horse)
    assert third.disks[0].mode == "incremental"
    kit.check(horse, third.id)
    horse.stop()
    bring(kit, second.id, quick=quick)
    assert state(horse) == after
    bring(kit, third.id, quick=quick)
    assert state(horse) == before
    assert bring(kit, first.id, quick=quick).files[0].written_bytes == 0


def test_raw_disks(kit: Kit, make_domain: Callable[..., Workhorse]) -> None:
    """And several at once, of which one is as it was; one may be named alone."""
    horse = make_domain(Disk("vda", size=16 * MiB, format="raw"), Disk("vdb", size=8 * MiB + 512, format="raw"))
    horse.write_data("vda", 0, random.Random(1).randbytes(4 * MiB))
    horse.write("vdb", 8 * MiB, 512, 7)
    first = kit.backup(horse)
    before = state(horse), state(horse, "vdb")
    changed(horse)
    horse.write("vdb", 0, 512, 8)
    horse.stop()
    after = state(horse)
    assert [file.target for file in bring(kit, first.id, disks=("vdb",)).files] == ["vdb"]
    assert (state(horse), state(horse, "vdb")) == (after, before[1])
    done = bring(kit, first.id)
    assert (state(horse), state(horse, "vdb")) == before
    assert [file.written_bytes for file in done.files] == [5 * CHUNK, 0]
    assert kit.host.half_done.of(horse.uuid).disks == {}


def test_who_uses_the_disks_is_told(kit: Kit, horse: Workhorse, make_domain: Callable[..., Workhorse]) -> None:
    """A running guest, a paused one, one with saved memory, a tool: refused, and nothing is changed."""
    first = kit.backup(horse)
    changed(horse)
    with pytest.raises(HypervisorError, match=r"is paused: only the disks of a stopped guest"):
        bring(kit, first.id)
    horse.domain.managedSave(0)
    now = state(horse)
    with pytest.raises(HypervisorError, match="has saved memory"):
        bring(kit, first.id)
    horse.domain.managedSaveRemove(0)
    with subprocess.Popen(["qemu-nbd", "-f", "qcow2", "-k", str(kit.root / "sock"), str(horse.path("vda"))]) as tool:
        try:
            while not (kit.root / "sock").exists():
                assert tool.poll() is None
            with pytest.raises(TargetError, match="is in use"):
                bring(kit, first.id)
        finally:
            tool.terminate()
    lock = kit.host.reserve(kit.host.domain(horse.name))
    try:
        with pytest.raises(JobConflictError):
            bring(kit, first.id)
    finally:
        lock.release()
    other = make_domain(Disk("vda", size=MiB), start=False)
    xml = other.domain.XMLDesc(0).replace(str(other.path("vda")), str(horse.path("vda")))
    other.domain.connect().defineXML(xml)
    with pytest.raises(TargetError, match=f"a disk of another guest too: {other.name}$"):
        bring(kit, first.id)
    overlay = other.path("vda").with_suffix(".overlay")
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", horse.path("vda"), "-F", "qcow2", overlay]
    subprocess.run(command, check=True)
    other.domain.connect().defineXML(xml.replace(str(horse.path("vda")), str(overlay)))
    with pytest.raises(TargetError, match=rf"a disk of another guest too: {other.name} \(as its backing file\)"):
        bring(kit, first.id)
    assert state(horse) == now


def test_a_guest_or_a_disk_that_is_gone(kit: Kit, horse: Workhorse, make_domain: Callable[..., Workhorse]) -> None:
    """Named, with what can be done instead."""
    two = make_domain(Disk("vda", size=MiB), Disk("vdb", size=MiB))
    point = kit.backup(two)
    first = kit.backup(horse)
    two.stop()
    xml = two.domain.XMLDesc(0)
    two.domain.detachDeviceFlags(two.disks["vdb"].xml(two.path("vdb")), 2)
    with pytest.raises(NotFoundError, match="has no disk 'vdb' any more"):
        bring(kit, point.id)
    two.domain.connect().defineXML(xml)
    horse.remove()
    with pytest.raises(NotFoundError, match="is not defined on this host"):
        bring(kit, first.id)


def test_the_state_before_is_kept(kit: Kit, horse: Workhorse) -> None:
    """As a restore point, made with the guest standing still, to which the same command leads back."""
    first = kit.backup(horse)
    before = state(horse)
    changed(horse)
    horse.stop()
    now = state(horse)
    done = bring(kit, first.id, keep_state=True)
    assert (state(horse), horse.running) == (before, False)
    assert done.kept is not None
    assert kit.points()[0].id == done.kept
    assert kit.points()[0].disks[0].mode == "incremental"
    bring(kit, done.kept)
    assert state(horse) == now
    horse.start()
    last = kit.backup(horse)
    assert last.disks[0].mode == "incremental"
    kit.check(horse, last.id)


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_another_size_is_put_right(kit: Kit, make_domain: Callable[..., Workhorse], fmt: str) -> None:
    """What was cut does not come back, and no bitmap that has forgotten it is believed."""
    horse = make_domain(Disk("vda", size=8 * MiB, format=fmt))
    horse.write_data("vda", 0, random.Random(1).randbytes(MiB))
    first = kit.backup(horse)
    before = state(horse)
    horse.grow("vda", 12 * MiB)
    horse.write("vda", 11 * MiB, 512, 1)
    second = kit.backup(horse)
    after = state(horse)
    horse.stop()
    bring(kit, first.id, quick=True)
    assert state(horse) == before
    assert horse.checkpoints() == []
    horse.disks["vda"] = replace(horse.disks["vda"], size=8 * MiB)
    horse.start()
    horse.grow("vda", 12 * MiB)
    third = kit.backup(horse)
    assert third.disks[0].mode == "reread"
    kit.check(horse, third.id)
    horse.stop()
    bring(kit, second.id)
    assert state(horse) == after


def test_a_bitmap_that_is_not_sound_is_not_believed(kit: Kit, horse: Workhorse) -> None:
    """After QEMU was killed; and where something wrote past it. All is compared then."""
    first = kit.backup(horse)
    before = state(horse)
    horse.stop()
    (run, *_) = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", str(horse.path("vda"))]))
    with horse.path("vda").open("r+b") as file:
        file.seek(run["offset"])
        file.write(bytes(MiB))
    done = bring(kit, first.id, quick=True)
    assert state(horse) == before
    assert done.files[0].why_not_quick is not None
    assert "missed a change" in done.files[0].why_not_quick
    assert any("missed a change" in warning for warning in done.warnings)
    horse.start()
    assert kit.backup(horse).disks[0].mode == "reread"
    horse.stop()
    horse.start()  # the bitmap is in the image now, and stays open when QEMU dies
    changed(horse)
    horse.flush("vda")
    horse.kill()
    done = bring(kit, first.id, quick=True)
    assert state(horse) == before
    assert done.files[0].why_not_quick is not None
    assert "broken" in done.files[0].why_not_quick
    assert horse.checkpoints() == []


def test_a_dry_run_changes_nothing(kit: Kit, horse: Workhorse) -> None:
    """Not even a bitmap's flags; it tells how much would be written."""
    first = kit.backup(horse)
    changed(horse)
    horse.stop()
    before = horse.path("vda").read_bytes()
    for quick in (False, True):
        done = bring(kit, first.id, dry_run=True, keep_state=True, quick=quick)
        assert done.files[0].written_bytes == 5 * CHUNK
    assert horse.path("vda").read_bytes() == before
    assert [point.id for point in kit.points()] == [first.id]
    subprocess.run(["chattr", "+i", horse.path("vda")], check=True)
    try:
        with pytest.raises(TargetError, match=f"cannot write {horse.path('vda')}: Operation not permitted"):
            bring(kit, first.id, dry_run=True)
    finally:
        subprocess.run(["chattr", "-i", horse.path("vda")], check=True)
    for pack in (kit.root / "repository/data").rglob("*-*"):
        pack.unlink()
    with pytest.raises(DamageError, match=rf"{first.id}, disk vda cannot be restored: data/\S+ is missing"):
        bring(kit, first.id, dry_run=True)
    assert horse.path("vda").read_bytes() == before


def test_a_half_done_disk_is_not_built_on(kit: Kit, horse: Workhorse) -> None:
    """A guest that is started too early is read whole, with a warning, until the restore is finished or purged."""
    first = kit.backup(horse)
    before = state(horse)
    domain = kit.host.domain(horse.name)
    kit.host.half_done.mark(domain.uuid, domain.name, ["vda"], first.id, None)
    changed(horse)
    point = kit.backup(horse)
    assert (point.disks[0].mode, point.status) == ("reread", "warning")
    assert first.id in str(point.disks[0].reason)
    assert any("may be half restored" in warning for warning in point.warnings)
    kit.check(horse, point.id)
    horse.stop()
    done = bring(kit, first.id, keep_state=True, quick=True)
    assert done.kept is None
    assert "interrupted has changed it already" in done.warnings[0]
    assert state(horse) == before
    horse.start()
    assert kit.backup(horse).status == "success"
    kit.host.half_done.mark(domain.uuid, domain.name, ["vda"], first.id, None)
    kit.host.purge(domain)
    assert kit.backup(horse).status == "success"


def test_a_linked_clone(kit: Kit, horse: Workhorse) -> None:
    """An overlay is written, and the image below it is not."""
    first = kit.backup(horse)
    before = state(horse)
    horse.stop()
    path = horse.path("vda")
    below = path.with_name("below.qcow2")
    path.rename(below)
    Disk("vda", size=16 * MiB).create(path, backing=below)
    original = below.read_bytes()
    horse.start()
    changed(horse)
    horse.stop()
    done = bring(kit, first.id, quick=True)
    assert "backing file" in str(done.files[0].why_not_quick)
    assert done.files[0].written_bytes == 5 * CHUNK
    assert state(horse) == before
    assert below.read_bytes() == original
