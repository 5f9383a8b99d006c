"""A disk brought to a restore point where it lies: compared by ids, and only what differs is written."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.lab.luks import create_luks
from tests.unit.engine.kit import RamKit
from vmbackup.engine.images.image_server import ImageServer
from vmbackup.engine.restore.in_place_disk import InPlaceDisk
from vmbackup.errors import DamageError, TargetError, UsageError
from vmbackup.hypervisor.disks import StoppedDisk
from vmbackup.progress import Silent
from vmbackup.repository.points import Point

MIB = 1 << 20
CHUNK = 64 << 10


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def made_of(path: Path, data: bytes, fmt: str, *options: str) -> Path:
    """An image that holds these bytes, holes where they are zeros."""
    raw = path.with_suffix(".data")
    raw.write_bytes(data)
    tool("qemu-img", "convert", "-f", "raw", "-O", fmt, *options, str(raw), str(path))
    raw.unlink()
    return path


def content(path: Path, fmt: str) -> bytes:
    raw = path.with_suffix(".out")
    tool("qemu-img", "convert", "-f", fmt, "-O", "raw", str(path), str(raw))
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()


def bring(kit: RamKit, point: Point, path: Path, fmt: str, **options: Any) -> InPlaceDisk:
    """What a restore in place does with one disk, without a guest around it."""
    place = StoppedDisk("vda", str(path), fmt, encrypted="passphrase" in options)
    disk = InPlaceDisk(kit.repository, point, point.disks[0], place, 2, **{"half_done": False, **options})
    try:
        disk.claim()
        disk.hold()
        if disk.resize_needed():
            disk.let_go()
            disk.resize()
            disk.hold()
        disk.compare([], quick=False, progress=Silent())
        if disk.differs:
            disk.check_ready()
            disk.write(Silent())
        disk.finish()
    finally:
        disk.abandon()
    return disk


@pytest.fixture
def kit(tmp_path: Path) -> RamKit:
    """Two points; the second has data changed, zeroed and added."""
    made = RamKit(tmp_path, {"vda": 8 * MIB}, chunk_size=CHUNK)
    made.disk().write(0, random.Random(1).randbytes(4 * MIB))
    made.backup()
    made.disk().write(3 * CHUNK + 100, b"new")
    made.disk().write(10 * CHUNK, bytes(2 * CHUNK))
    made.disk().write(100 * CHUNK, b"where zeros were")
    made.backup()
    return made


def ends(kit: RamKit) -> tuple[Point, Point, bytes, bytes]:
    newer, older = kit.points()
    return newer, older, kit.kept[newer.id]["vda"], kit.kept[older.id]["vda"]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_damaged_image_is_refused_before_it_is_read(kit: RamKit, tmp_path: Path, read_only: bool) -> None:
    """Also by a dry run; one that is half restored already is mended, which a dry run leaves to the restore."""
    newer, _, new, _ = ends(kit)
    path = made_of(tmp_path / "image", new, "qcow2")
    with open(path, "r+b") as file:
        file.seek(40)
        table = int.from_bytes(file.read(8), "big")
        file.seek(table)
        file.write((1 << 40).to_bytes(8, "big"))
    before = path.read_bytes()
    place = StoppedDisk("vda", str(path), "qcow2", encrypted=False)
    disk = InPlaceDisk(kit.repository, newer, newer.disks[0], place, 2, half_done=False)
    disk.claim()
    with pytest.raises(TargetError, match=f"the image {path} is damaged"):
        disk.hold(read_only=read_only)
    disk.abandon()
    assert path.read_bytes() == before


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_just_what_differs_is_written(kit: RamKit, tmp_path: Path, fmt: str) -> None:
    """There and back again; a disk that is right is not written at all."""
    newer, older, new, old = ends(kit)
    path = made_of(tmp_path / "disk", new, fmt)
    disk = bring(kit, older, path, fmt)
    assert content(path, fmt) == old
    assert disk.written_bytes == 4 * CHUNK
    disk = bring(kit, newer, path, fmt)
    assert content(path, fmt) == new
    assert disk.written_bytes == 4 * CHUNK
    assert bring(kit, newer, path, fmt).written_bytes == 0


@pytest.mark.parametrize("raw", ["on", "off"])
def test_data_in_a_file_of_its_own_is_read_there(kit: RamKit, tmp_path: Path, raw: str) -> None:
    """Not at the same offset of the qcow2, where something else is, or nothing."""
    _, older, new, old = ends(kit)
    beside = tmp_path / "beside"
    path = made_of(tmp_path / "disk", new, "qcow2", "-o", f"data_file={beside},data_file_raw={raw}")
    disk = bring(kit, older, path, "qcow2")
    assert content(path, "qcow2") == old
    assert disk.written_bytes == 4 * CHUNK
    if raw == "on":
        assert beside.read_bytes() == old


def test_holes_are_not_read(kit: RamKit, tmp_path: Path) -> None:
    """What is nowhere allocated differs from data, and equals zeros, unseen."""
    _, older, _, old = ends(kit)
    path = tmp_path / "disk"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(8 * MIB))
    disk = bring(kit, older, path, "qcow2")
    assert content(path, "qcow2") == old
    assert (disk.compared_bytes, disk.written_bytes) == (0, 4 * MIB)


@pytest.mark.parametrize("options", [("-c",), ("-o", "cluster_size=4096"), ("-o", "cluster_size=2M"),
                                     ("-o", "preallocation=full"), ("-o", "compat=0.10"),
                                     ("-o", "extended_l2=on,cluster_size=128k")])  # fmt: skip
def test_images_of_all_kinds(kit: RamKit, tmp_path: Path, options: tuple[str, ...]) -> None:
    """Compressed clusters, small and large ones, subclusters, preallocated ones, old versions."""
    newer, older, new, old = ends(kit)
    path = made_of(tmp_path / "disk", new, "qcow2", *options)
    bring(kit, older, path, "qcow2")
    assert content(path, "qcow2") == old
    assert "No errors" in tool("qemu-img", "check", str(path))
    bring(kit, newer, path, "qcow2")
    assert content(path, "qcow2") == new


def test_an_overlay_is_read_through(kit: RamKit, tmp_path: Path) -> None:
    """What lies in the backing file counts, and is not touched; zeros hide it."""
    newer, older, new, old = ends(kit)
    below = made_of(tmp_path / "below", old, "qcow2")
    before = below.read_bytes()
    path = tmp_path / "disk"
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", "qcow2", str(path))
    disk = bring(kit, newer, path, "qcow2")
    assert disk.written_bytes == 4 * CHUNK
    assert content(path, "qcow2") == new
    bring(kit, older, path, "qcow2")
    assert content(path, "qcow2") == old
    assert below.read_bytes() == before


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("size", [5 * MIB, 8 * MIB + 512, 11 * MIB])
def test_another_size_is_put_right(kit: RamKit, tmp_path: Path, fmt: str, size: int) -> None:
    """Grown with zeros, or cut."""
    _, older, _, old = ends(kit)
    path = made_of(tmp_path / "disk", random.Random(2).randbytes(size), fmt)
    bring(kit, older, path, fmt)
    assert content(path, fmt) == old


def test_a_small_difference_anywhere_is_found(tmp_path: Path) -> None:
    """A byte, wherever it is, in data or in zeros, the odd end of the disk among them."""
    kit = RamKit(tmp_path, {"vda": 3 * MIB + 1536}, chunk_size=CHUNK)
    chance = random.Random(3)
    kit.disk().write(MIB, chance.randbytes(MIB))
    kit.disk().write(3 * MIB, chance.randbytes(1536))
    kit.backup()
    (point,) = kit.points()
    wanted = kit.kept[point.id]["vda"]
    path = made_of(tmp_path / "disk", wanted, "raw")
    places = [0, CHUNK - 1, MIB, 2 * MIB - 1, 2 * MIB, 3 * MIB - 1, 3 * MIB + 1535]
    for place in [*places, *(chance.randrange(len(wanted)) for _ in range(5))]:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([wanted[place] ^ 1]))
        disk = bring(kit, point, path, "raw")
        assert path.read_bytes() == wanted, place
        assert disk.written_bytes == CHUNK, place


def test_a_file_that_ends_within_a_cluster(tmp_path: Path) -> None:
    """As QEMU leaves it where a new cluster was written in part: the rest reads as zeros."""
    kit = RamKit(tmp_path, {"vda": MIB}, chunk_size=CHUNK)
    kit.disk().write(5 * CHUNK, b"x" * 512)
    kit.disk().write(6 * CHUNK, b"y" * CHUNK)
    kit.backup()
    (point,) = kit.points()
    path = tmp_path / "disk"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(MIB))
    tool("qemu-io", "-c", f"write -P 0x79 {6 * CHUNK} {CHUNK}", "-c", f"write -P 0x78 {5 * CHUNK} 512", str(path))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // CHUNK * CHUNK - CHUNK + 512)
    assert content(path, "qcow2") == kit.kept[point.id]["vda"]
    assert bring(kit, point, path, "qcow2").written_bytes == 0
    server = ImageServer(path, "qcow2", 1)
    try:
        image = server.image(mapped=True)
        (region,) = [one for one in image.regions(0, MIB) if one.offset == 5 * CHUNK]
        buffer = bytearray(b"z" * CHUNK)
        reader = image.open_reader()
        reader.read(region._replace(length=CHUNK), memoryview(buffer))
        reader.close()
    finally:
        server.abandon()
    assert buffer == b"x" * 512 + bytes(CHUNK - 512)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 9 MiB."""
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(4).randbytes(9 * MIB))
    command = ["losetup", "--find", "--show", str(backing)]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_device_keeps_its_size(kit: RamKit, tmp_path: Path, device: Path) -> None:
    """What it is larger by is zeros then, and is told; one that is too small or mounted is refused."""
    newer, older, new, old = ends(kit)
    disk = bring(kit, older, device, "raw")
    assert device.read_bytes() == old + bytes(MIB)
    assert [f"{9 * MIB} bytes" in note for note in disk.notes] == [True]
    bring(kit, newer, device, "raw")
    assert device.read_bytes() == new + bytes(MIB)
    assert not bring(kit, newer, device, "raw").differs
    with pytest.raises(TargetError, match="is the loop device"):
        bring(kit, older, tmp_path / "backing", "raw")
    large = RamKit(tmp_path / "large", {"vda": 10 * MIB}, chunk_size=CHUNK)
    large.backup()
    with pytest.raises(TargetError, match="is too small"):
        bring(large, large.points()[0], device, "raw")
    assert device.read_bytes() == new + bytes(MIB)


def test_an_image_in_use_is_refused(kit: RamKit, tmp_path: Path) -> None:
    """By QEMU's lock; nothing is changed."""
    _, older, new, _ = ends(kit)
    path = made_of(tmp_path / "disk", new, "qcow2")
    place = StoppedDisk("vda", str(path), "qcow2")
    holder = InPlaceDisk(kit.repository, older, older.disks[0], place, 1, half_done=False)
    holder.hold()
    try:
        with pytest.raises(TargetError, match="is in use"):
            bring(kit, older, path, "qcow2")
    finally:
        holder.abandon()
    assert content(path, "qcow2") == new


def test_a_pack_that_is_gone_is_found_before_the_first_change(kit: RamKit, tmp_path: Path) -> None:
    """The disk stays as it is."""
    _, older, new, _ = ends(kit)
    path = made_of(tmp_path / "disk", new, "raw")
    for pack in (tmp_path / "repository" / "data").rglob(f"{older.session.hex()}-*"):
        pack.unlink()
    with pytest.raises(DamageError, match="is missing"):
        bring(kit, older, path, "raw")
    assert path.read_bytes() == new


def test_no_space_is_found_before_the_first_change(
    kit: RamKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the image may grow by is compared with what is free."""
    import os

    _, older, _, _ = ends(kit)
    path = tmp_path / "disk"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(8 * MIB))
    real = os.statvfs(path)
    small = os.statvfs_result((*real[:4], 3, *real[5:]))
    monkeypatch.setattr("os.statvfs", lambda _path: small)
    with pytest.raises(TargetError, match=rf"up to {4 * MIB} bytes more, and {3 * real.f_frsize} are free"):
        bring(kit, older, path, "qcow2")
    monkeypatch.undo()
    assert content(path, "qcow2") == bytes(8 * MIB)


def test_what_a_killed_writer_left_is_put_right(kit: RamKit, tmp_path: Path) -> None:
    """A half-done image is repaired first; one that was damaged by others is refused."""
    _, older, new, old = ends(kit)
    path = made_of(tmp_path / "disk", new, "qcow2")
    with path.open("r+b") as file:
        file.seek(2 * CHUNK)  # the refcount block
        file.write(bytes(CHUNK))
    with pytest.raises(TargetError, match="is damaged"):
        bring(kit, older, path, "qcow2")
    bring(kit, older, path, "qcow2", half_done=True)
    assert content(path, "qcow2") == old


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_an_encrypted_image_stays_so(kit: RamKit, tmp_path: Path, fmt: str) -> None:
    """With its passphrase; without, or into a readable image, it is refused."""
    _, older, new, old = ends(kit)
    source = made_of(tmp_path / "plain", new, "raw")
    path = tmp_path / "disk"
    secret = ("--object", "secret,id=key,data=word")
    driver = "luks" if fmt == "raw" else fmt
    sealed = "encrypt.format=luks,encrypt.key-secret=key" if fmt == "qcow2" else "key-secret=key"
    opened = f"driver={driver},{sealed},file.driver=file,file.filename={path}"
    create_luks(path, driver, len(new), b"word")
    tool("qemu-img", "convert", "-n", *secret, "-f", "raw", "--target-image-opts", str(source), opened)
    bring(kit, older, path, fmt, passphrase=b"word")
    tool("qemu-img", "convert", *secret, "--image-opts", "-O", "raw", opened, str(source))
    assert source.read_bytes() == old
    with pytest.raises(TargetError, match=r"passphrase of .* is wrong"):
        bring(kit, older, path, fmt, passphrase=b"another")
    with pytest.raises(UsageError, match="is encrypted"):
        bring(kit, older, path, fmt, passphrase=None)
    record = replace(older.disks[0], attributes={"encryption": "luks"})
    with pytest.raises(TargetError, match="was encrypted, and"):
        InPlaceDisk(kit.repository, older, record, StoppedDisk("vda", str(path), fmt), 1, half_done=False)
