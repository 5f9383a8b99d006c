"""Which blocks a run reads: dirty maps of real jobs, put together to what the disk holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.disk import Disk, MiB
from tests.lab.domain import Workhorse
from tests.real.hypervisor.conftest import Shadow
from vmbackup.nbd import Kind

pytestmark = [pytest.mark.real, pytest.mark.versions]
MakeDomain = Callable[..., Workhorse]
MakeShadow = Callable[..., Shadow]
K64 = 65536


def test_an_incremental_reads_exactly_what_changed(
    make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path
) -> None:
    """After a full read only the written 64 KiB blocks are DATA, at their places."""
    horse = make_domain(Disk(size=16 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", MiB, MiB, 0x11)
    shadow.run()
    assert shadow.modes == {"vda": "full"}
    assert shadow.kinds("vda")[Kind.DATA] == MiB
    shadow.compare(work_dir)
    horse.write("vda", 5 * MiB, 3 * K64, 0x22)
    horse.write("vda", 9 * MiB + 100, 512, 0x33)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    data = [(run.offset, run.length) for run in shadow.runs["vda"] if run.kind == Kind.DATA]
    assert data == [(5 * MiB, 3 * K64), (9 * MiB, K64)]
    shadow.compare(work_dir)


def test_a_run_with_no_change_reads_nothing(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """Without a write the whole disk is one UNCHANGED run."""
    shadow = make_shadow(make_domain(Disk(size=16 * MiB)))
    shadow.run()
    shadow.run()
    assert [tuple(run) for run in shadow.runs["vda"]] == [(0, 16 * MiB, Kind.UNCHANGED)]


@pytest.mark.parametrize("how", ["zero", "zero_unmap", "discard"])
def test_what_became_zero_is_zero_and_not_unchanged(
    make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path, how: str
) -> None:
    """Zero writes, write-zeroes with unmap and discards over old data are ZERO runs of the incremental."""
    horse = make_domain(Disk(size=16 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, 16 * MiB, 0xAB)
    shadow.run()
    getattr(horse, how)("vda", 4 * MiB, 2 * MiB)
    shadow.run()
    zero = [(run.offset, run.length) for run in shadow.runs["vda"] if run.kind == Kind.ZERO]
    assert zero == [(4 * MiB, 2 * MiB)]
    shadow.compare(work_dir)


def test_a_grown_disk_stays_incremental(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """A disk that grew between runs is read incrementally, with its new size and its new area."""
    horse = make_domain(Disk(size=16 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, MiB, 0x44)
    shadow.run()
    horse.grow("vda", 24 * MiB)
    horse.write("vda", 20 * MiB, K64, 0x55)
    shadow.run()
    assert shadow.modes == {"vda": "incremental"}
    assert len(shadow.images["vda"]) == 24 * MiB
    shadow.compare(work_dir)


@pytest.mark.parametrize("cluster_size", [4096, 65536])
def test_a_random_evolution_is_followed(
    make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path, cluster_size: int
) -> None:
    """A disk that is written, zeroed and discarded at random is right after each of 8 incremental runs."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    size = 8 * MiB
    horse = make_domain(Disk(size=size, cluster_size=cluster_size), Disk("vdb", size=size))
    shadow = make_shadow(horse)
    shadow.run()
    for _ in range(8):
        for _ in range(12):
            target = chance.choice(("vda", "vdb"))
            # A hot spot of 1 MiB, so that zeros meet old data.
            offset = chance.randrange(MiB if chance.random() < 0.7 else size - 64 * 1024) // 4096 * 4096
            length = chance.randrange(1, 16) * 4096
            match chance.randrange(4):
                case 0 | 1:
                    horse.write(target, offset, length, chance.randrange(1, 256))
                case 2:
                    horse.zero_unmap(target, offset, length)
                case _:
                    horse.discard(target, offset, length)
        shadow.run()
        assert set(shadow.modes.values()) == {"incremental"}
        shadow.compare(work_dir)


def test_the_point_in_time_is_the_begin(make_domain: MakeDomain, make_shadow: MakeShadow, work_dir: Path) -> None:
    """What is written after the begin is in the next restore point, not in this one."""
    horse = make_domain(Disk(size=16 * MiB))
    shadow = make_shadow(horse)
    horse.write("vda", 0, 4 * MiB, 0x01)
    before = horse.copy("vda")
    with shadow.begin() as running:
        horse.write("vda", MiB, 2 * MiB, 0x02)
        images = shadow.read(running)
        running.seal()
        shadow.commit(running, images)
    assert images["vda"][: 4 * MiB] == b"\x01" * (4 * MiB)
    assert horse.read_pattern("vda", MiB, 2 * MiB, 0x02)
    before.unlink()
    shadow.run()
    assert shadow.kinds("vda")[Kind.DATA] == 2 * MiB
    shadow.compare(work_dir)


def test_documents_and_disks_tell_what_a_restore_needs(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """The job carries the inactive XML and the image's settings."""
    horse = make_domain(Disk(size=MiB, cluster_size=4096, options=("lazy_refcounts=on",)))
    shadow = make_shadow(horse)
    with shadow.begin() as running:
        xml = running.documents["domain.xml"].decode()
        assert f"<uuid>{horse.uuid}</uuid>" in xml
        assert "<domain type='qemu'>" in xml, "the live XML was taken: it has the id"
        info = running.disks[0].info
        assert (info.serial, info.bus, info.format, info.path) == (
            "lab-vda", "virtio", "qcow2", str(horse.path("vda")),
        )  # fmt: skip
        wanted = {"cluster_size": "4096", "compat": "1.1", "lazy_refcounts": "true"}
        assert wanted.items() <= info.attributes.items()
        assert running.time.tzinfo is not None
        assert (running.consistency, running.freeze_seconds) == ("crash", None)
        assert running.quiesce_note


def test_several_readers_share_a_disk(make_domain: MakeDomain, make_shadow: MakeShadow) -> None:
    """Two connections with many reads under way each get the right bytes."""
    horse = make_domain(Disk(size=4 * MiB))
    for block in range(64):
        horse.write("vda", block * K64, K64, block + 1)
    with make_shadow(horse).begin() as running:
        readers = [running.disks[0].open_reader() for _ in range(2)]
        buffers = [bytearray(K64) for _ in range(64)]
        for start in range(0, 64, 16):
            cookies = {}
            for block in range(start, start + 16):
                reader = readers[block % 2]
                cookies[reader, reader.submit(block * K64, memoryview(buffers[block]))] = block
            assert [reader.outstanding for reader in readers] == [8, 8]
            while cookies:
                for reader in readers:
                    cookies.pop((reader, reader.wait()))
        assert all(buffer == bytes([block + 1]) * K64 for block, buffer in enumerate(buffers))
        for reader in readers:
            reader.close()
