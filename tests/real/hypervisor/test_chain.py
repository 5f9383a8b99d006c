"""The chain of checkpoints: libvirt's and QEMU's memory may be lost at any time, and costs a whole read at most."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import OTHER_REPOSITORY, REPOSITORY, Shadow, new_session, open_host
from vmbackup.hypervisor import CheckpointName, Host
from vmbackup.nbd import Kind

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]
MakeShadow = Callable[..., Shadow]
K64 = 65536
_METADATA_ONLY = 2


def remove_bitmap(horse: Workhorse, target: str, name: str) -> None:
    """Takes a bitmap out of the image of a stopped domain."""
    command = ["qemu-img", "bitmap", "--remove", str(horse.path(target)), name]
    subprocess.run(command, check=True, capture_output=True)


def bitmaps_in(horse: Workhorse, target: str) -> list[str]:
    """Names of the bitmaps of ours in a disk, as QEMU has them."""
    return sorted(name for name in horse.bitmaps(target) if name.startswith("vmbackup-"))


def test_one_checkpoint_stays(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """After each commit exactly the newest checkpoint is there, with one bitmap a disk."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB))
    shadow = make_shadow(horse)
    for _ in range(3):
        shadow.run()
        assert shadow.anchor
        assert horse.checkpoints() == [shadow.anchor.checkpoint]
        assert bitmaps_in(horse, "vda") == bitmaps_in(horse, "vdb") == [shadow.anchor.checkpoint]


def test_a_failed_run_leaves_only_the_parent(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """A run that is not committed deletes its checkpoint, and the next one builds on the parent."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    parent = shadow.anchor
    assert parent
    horse.write("vda", MiB, K64, 0x77)
    with pytest.raises(RuntimeError, match="store"), shadow.begin() as running:
        shadow.read(running)
        raise RuntimeError("the store failed")
    assert horse.checkpoints() == [parent.checkpoint]
    with shadow.begin() as running:
        images = shadow.read(running)
        running.seal()
        del images
    assert horse.checkpoints() == bitmaps_in(horse, "vda") == [parent.checkpoint]
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert shadow.kinds("vda")[Kind.DATA] == K64
    shadow.compare(work_dir)


def test_checkpoints_of_others_are_not_touched(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A foreign checkpoint survives runs and purge, and goes on recording."""
    horse = make_domain(Disk(size=4 * MiB))
    horse.domain.checkpointCreateXML("<domaincheckpoint><name>theirs</name></domaincheckpoint>", 0)
    shadow = make_shadow(horse)
    shadow.run()
    horse.write("vda", 0, K64, 1)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    report = shadow.host.purge(shadow.host.domain(horse.name))
    assert report.checkpoints == (shadow.anchor.checkpoint,) if shadow.anchor else False
    assert not report.trouble
    assert horse.checkpoints() == ["theirs"]
    assert horse.bitmaps("vda")["theirs"]["count"] == K64


def test_two_repositories_keep_their_own(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Each repository's increment starts from its own newest point, and purge of one leaves the other."""
    horse = make_domain(Disk(size=4 * MiB))
    here, there = make_shadow(horse), make_shadow(horse, OTHER_REPOSITORY)
    here.run()
    there.run()
    horse.write("vda", 0, K64, 1)
    here.run()
    horse.write("vda", MiB, K64, 2)
    here.run()
    there.run()
    assert (here.kinds("vda")[Kind.DATA], there.kinds("vda")[Kind.DATA]) == (K64, 2 * K64)
    there.compare(work_dir)
    assert here.anchor
    assert there.anchor
    assert horse.checkpoints() == sorted([here.anchor.checkpoint, there.anchor.checkpoint])
    here.host.purge(here.host.domain(horse.name), REPOSITORY)
    assert horse.checkpoints() == [there.anchor.checkpoint]


def test_lost_metadata_is_defined_again(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """Where only libvirt's record is gone (migration, undefine) the next run is incremental all the same."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    horse.write("vda", MiB, K64, 0x66)
    assert shadow.anchor
    horse.domain.checkpointLookupByName(shadow.anchor.checkpoint).delete(_METADATA_ONLY)
    plan = shadow.host.plan(shadow.host.domain(horse.name), REPOSITORY, shadow.anchor, earlier=shadow.earlier)
    assert [disk.mode for disk in plan.disks] == ["incremental"]
    assert horse.checkpoints() == [], "a plan changed something"
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert shadow.kinds("vda")[Kind.DATA] == K64
    assert horse.checkpoints() == bitmaps_in(horse, "vda") == [shadow.anchor.checkpoint]
    shadow.compare(work_dir)


def test_an_orderly_stop_keeps_the_chain(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """A domain that was stopped and started is read incrementally."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    horse.write("vda", MiB, K64, 0x66)
    horse.stop()
    horse.start()
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert shadow.kinds("vda")[Kind.DATA] == K64
    shadow.compare(work_dir)


@pytest.mark.parametrize("times", [1, 2])
def test_a_killed_qemu_costs_a_whole_read(
    make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path, times: int
) -> None:
    """After kill -9 the disk is reread with the reason, the broken checkpoint goes, and the next is incremental.

    The bitmap is absent where it was made in that QEMU, and in-use where it was loaded from the image.
    """
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    if times == 2:
        horse.stop()
        horse.start()
    horse.write("vda", MiB, K64, 0x66)
    horse.kill()
    horse.start()
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert "missing or broken" in (shadow.reasons["vda"] or "")
    shadow.compare(work_dir)
    assert shadow.anchor
    assert horse.checkpoints() == bitmaps_in(horse, "vda") == [shadow.anchor.checkpoint]
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}


def test_one_lost_bitmap_costs_one_disk(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """With the bitmap of one of two disks gone only that disk is reread, and nothing of the old one stays."""
    horse = make_domain(Disk(size=4 * MiB), Disk("vdb", size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    assert shadow.anchor
    old = shadow.anchor.checkpoint
    horse.stop()
    remove_bitmap(horse, "vda", old)
    horse.start()
    horse.write("vda", MiB, K64, 1)
    horse.write("vdb", MiB, K64, 2)
    shadow.run()
    assert shadow.modes == {"vda": "reread", "vdb": "incremental"}
    shadow.compare(work_dir)
    assert horse.checkpoints() == [shadow.anchor.checkpoint]
    assert bitmaps_in(horse, "vda") == bitmaps_in(horse, "vdb") == [shadow.anchor.checkpoint]
    assert not shadow.notes


def test_lost_metadata_and_one_lost_bitmap(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """The metadata gone and one bitmap of two too: the sound disk stays incremental."""
    horse = make_domain(Disk(size=4 * MiB), Disk("vdb", size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    assert shadow.anchor
    old = shadow.anchor.checkpoint
    horse.stop()
    remove_bitmap(horse, "vda", old)
    horse.domain.checkpointLookupByName(old).delete(_METADATA_ONLY)
    horse.start()
    horse.write("vdb", MiB, K64, 2)
    shadow.run()
    assert shadow.modes == {"vda": "reread", "vdb": "incremental"}
    shadow.compare(work_dir)
    assert bitmaps_in(horse, "vda") == bitmaps_in(horse, "vdb") == [shadow.anchor.checkpoint]


def test_a_bitmap_that_goes_between_plan_and_begin(
    make_domain: MakeDomain, make_shadow: MakeShadow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where libvirt refuses the bitmap only in the begin, that disk is reread in a second attempt."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB))
    shadow = make_shadow(horse)
    shadow.run()
    assert shadow.anchor
    horse.stop()
    remove_bitmap(horse, "vdb", shadow.anchor.checkpoint)
    horse.start()
    believed = {"vda": 0, "vdb": 0}
    monkeypatch.setattr("vmbackup.hypervisor.tidy.checkpoints.dirty_bytes", lambda _checkpoint: believed)
    with shadow.begin() as running:
        assert {disk.info.target: disk.mode for disk in running.disks} == {"vda": "incremental", "vdb": "reread"}


def test_a_new_disk_is_read_whole_once(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """A disk plugged in is `full` in the next run, beside incremental ones, and incremental from then on."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    horse.attach(Disk("vdb", size=2 * MiB))
    horse.write("vdb", 0, K64, 5)
    horse.write("vda", 0, K64, 6)
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "full"}
    assert shadow.reasons == {"vda": None, "vdb": None}
    shadow.compare(work_dir)
    horse.write("vdb", MiB, K64, 7)
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "incremental"}
    shadow.compare(work_dir)


def test_raw_and_old_images_are_read_whole_beside_incremental_ones(
    make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path
) -> None:
    """raw and qcow2 v2: `full` first, `reread` with the reason later, and the cure of v2 is told."""
    horse = make_domain(
        Disk(size=2 * MiB), Disk("vdb", size=2 * MiB, format="raw"), Disk("vdc", size=2 * MiB, compat="0.10")
    )
    shadow = make_shadow(horse)
    shadow.run()
    assert set(shadow.modes.values()) == {"full"}
    assert shadow.anchor
    assert set(shadow.anchor.disks) == {"vda"}
    for target in ("vda", "vdb", "vdc"):
        horse.write(target, MiB, K64, 9)
    shadow.run()
    assert shadow.modes == {"vda": "incremental", "vdb": "reread", "vdc": "reread"}
    assert "raw" in (shadow.reasons["vdb"] or "")
    assert "qemu-img amend -f qcow2 -o compat=1.1" in (shadow.reasons["vdc"] or "")
    assert not shadow.notes
    shadow.compare(work_dir)


def test_a_domain_with_raw_disks_only_has_no_anchor(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """Without a disk that can have a bitmap the run makes no checkpoint."""
    horse = make_domain(Disk(size=MiB, format="raw"))
    shadow = make_shadow(horse)
    shadow.run()
    shadow.run()
    assert shadow.anchor is None
    assert shadow.modes == {"vda": "reread"}
    assert horse.checkpoints() == []


def test_a_disk_that_is_smaller_than_before_is_reread(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A size below the parent's could hide old data behind a clean bitmap."""
    shadow = make_shadow(make_domain(Disk(size=4 * MiB)))
    shadow.run()
    shadow.earlier = {"vda": replace(shadow.earlier["vda"], virtual_size=8 * MiB)}
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert "shrank" in (shadow.reasons["vda"] or "")


def test_full_and_scheduled_rereads(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """`full` ignores the chain; a reason to reread is told per disk."""
    shadow = make_shadow(make_domain(Disk(size=MiB)))
    shadow.run()
    shadow.run(full=True)
    assert (shadow.modes, shadow.reasons) == ({"vda": "full"}, {"vda": None})
    shadow.run(reread={"vda": "scheduled", "vdb": "scheduled"})
    assert (shadow.modes, shadow.reasons) == ({"vda": "reread"}, {"vda": "scheduled"})


def test_a_repository_older_than_the_host(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A checkpoint newer than the newest point, without a point: all is reread, and the evidence stays."""
    horse = make_domain(Disk(size=4 * MiB))
    shadow = make_shadow(horse)
    shadow.run()
    old, earlier, images = shadow.anchor, shadow.earlier, shadow.images
    later = CheckpointName.make(REPOSITORY, new_session(), datetime.now(UTC) + timedelta(seconds=5))
    horse.domain.checkpointCreateXML(f"<domaincheckpoint><name>{later}</name></domaincheckpoint>", 0)
    shadow.run()
    assert shadow.modes == {"vda": "reread"}
    assert "older than this host" in (shadow.reasons["vda"] or "")
    assert any("restored from a copy" in note for note in shadow.notes)
    assert str(later) in horse.checkpoints()
    # The same with a caller that cannot tell what is committed.
    shadow.anchor, shadow.earlier, shadow.images = old, earlier, images
    shadow.run(committed=None)
    assert shadow.modes == {"vda": "reread"}
    assert str(later) in horse.checkpoints()


def test_an_anchor_of_another_repository_is_not_ours(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """In a replica the points name the original's checkpoints: the first run there rereads."""
    horse = make_domain(Disk(size=MiB))
    original, replica = make_shadow(horse), make_shadow(horse, OTHER_REPOSITORY)
    original.run()
    replica.anchor, replica.earlier, replica.images = original.anchor, original.earlier, original.images
    replica.run()
    assert replica.modes == {"vda": "reread"}
    assert "another repository" in (replica.reasons["vda"] or "")
    assert len(horse.checkpoints()) == 2


def test_more_checkpoints_are_kept_where_asked(
    lab_host: Callable[[int], Host], make_domain: MakeDomain, short_seal: None
) -> None:
    """With keep = 2 the newest two stay."""
    horse = make_domain(Disk(size=MiB))
    shadow = Shadow(lab_host(2), horse)
    names = []
    for _ in range(4):
        shadow.run()
        assert shadow.anchor
        names.append(shadow.anchor.checkpoint)
    assert set(horse.checkpoints()) == set(names[-2:])


def test_purge_finds_bitmaps_without_metadata(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """purge removes our checkpoints and orphaned bitmaps, of a running and of a stopped domain."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB))
    shadow = make_shadow(horse)
    domain = shadow.host.domain(horse.name)
    for running in (True, False):
        shadow.anchor = None
        shadow.run()
        assert shadow.anchor
        name = shadow.anchor.checkpoint
        horse.stop()
        horse.domain.checkpointLookupByName(name).delete(_METADATA_ONLY)
        if running:
            horse.start()
        report = shadow.host.purge(domain)
        assert (report.checkpoints, report.bitmaps, report.trouble) == ((), (name,), ())
        if not running:
            horse.start()
        assert bitmaps_in(horse, "vda") == bitmaps_in(horse, "vdb") == []


def test_purge_of_a_stopped_domain(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A stopped domain loses checkpoints and bitmaps, so that nothing blocks undefine."""
    horse = make_domain(Disk(size=MiB))
    shadow = make_shadow(horse)
    shadow.run()
    horse.stop()
    assert shadow.anchor
    report = shadow.host.purge(shadow.host.domain(horse.name))
    assert report.checkpoints == (shadow.anchor.checkpoint,)
    assert horse.checkpoints() == []
    horse.start()
    assert bitmaps_in(horse, "vda") == []


def test_a_transient_domain_is_backed_up(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """A domain without a definition gives its live XML, and works."""
    horse = make_domain(Disk(size=MiB))
    horse.domain.undefine()
    shadow = make_shadow(horse)
    shadow.run()
    horse.write("vda", 0, K64, 1)
    with shadow.begin() as running:
        assert f"<uuid>{horse.uuid}</uuid>" in running.documents["domain.xml"].decode()
        assert [disk.mode for disk in running.disks] == ["incremental"]
    shadow.host.purge(shadow.host.domain(horse.name))
    # libvirt's backupBegin writes a definition of a transient domain, which it reads when it starts again (9.0).
    Path(f"/etc/libvirt/qemu/{horse.name}.xml").unlink(missing_ok=True)


@pytest.fixture
def lab_host(lab: Lab, scratch_dir: Path, work_dir: Path) -> Callable[[int], Host]:
    """Opens hosts that keep more than one checkpoint."""
    opened: list[Host] = []

    def make(keep: int) -> Host:
        opened.append(open_host(lab, scratch_dir, work_dir / "state", keep))
        return opened[-1]

    yield make  # type: ignore[misc]
    for host in opened:
        host.close()


def test_an_anchor_survives_json(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """The anchor's XML is enough to define the checkpoint again after any loss, and names no domain."""
    horse = make_domain(Disk(size=MiB))
    shadow = make_shadow(horse)
    shadow.run()
    assert shadow.anchor
    assert "<domain>" not in shadow.anchor.xml
    assert len(shadow.anchor.xml) < 400
    shadow.anchor = replace(shadow.anchor, disks=dict(shadow.anchor.disks))
    horse.domain.checkpointLookupByName(shadow.anchor.checkpoint).delete(_METADATA_ONLY)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
