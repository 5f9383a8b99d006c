"""Images whose clusters are written past QEMU: QEMU finds them sound, and the very bytes in them."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from vmbackup.engine.images import qcow2_layout
from vmbackup.engine.images.direct_qcow2 import DirectQcow2Target
from vmbackup.engine.images.image_options import ImageOptions
from vmbackup.engine.images.qcow2_target import make_image

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


def made(folder: Path, size: int, **create: str) -> Path:
    path = folder / "image.qcow2"
    make_image(path, size, ImageOptions("qcow2", create), None)
    return path


def opened(path: Path) -> DirectQcow2Target:
    target = DirectQcow2Target.of(path)
    assert target is not None
    return target


def tool(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def content(path: Path) -> bytes:
    tool("qemu-img", "convert", "-O", "raw", str(path), f"{path}.raw")
    return Path(f"{path}.raw").read_bytes()


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
@pytest.mark.parametrize("cluster", [4 * KIB, 64 * KIB, 2 * MIB])
def test_random_parts(tmp_path: Path, cluster: int, compat: str) -> None:
    """Chunks of 64 KiB in random order, some together, in clusters that are smaller, as large, or larger."""
    chance, size = random.Random(cluster), 40 * MIB + 512
    path = made(tmp_path, size, cluster_size=str(cluster), compat=compat)
    target, data = opened(path), bytearray(size)
    writer = target.open_writer()
    starts = list(range(0, size, 256 * KIB))
    chance.shuffle(starts)
    for start in starts[:100]:
        length = min(chance.randrange(1, 5) * 64 * KIB, size - start)
        data[start : start + length] = chance.randbytes(length)
        target.expect(start, length)
        writer.write(start, [bytes(data[start : start + length])])
        if chance.random() < 0.1:
            target.sync()
    writer.close()
    writer.abandon()
    target.finish()
    assert content(path) == data
    report = json.loads(tool("qemu-img", "check", "--output=json", str(path)))
    assert (report.get("leaks", 0), report.get("corruptions", 0), report["check-errors"]) == (0, 0, 0)
    assert path.stat().st_size == report["image-end-offset"]


def test_tables_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that are not in memory are read back, by who places and by who writes; refcounts of many blocks."""
    monkeypatch.setattr(qcow2_layout, "_TABLE_BYTES", 3 * 4 * KIB)
    chance, size = random.Random(1), 24 * MIB
    path = made(tmp_path, size, cluster_size=str(4 * KIB))
    target, data = opened(path), chance.randbytes(size)
    starts = list(range(0, size, 64 * KIB))
    chance.shuffle(starts)
    writer = target.open_writer()
    for start in starts:
        target.expect(start, 64 * KIB)
    for start in starts:
        writer.write(start, [data[start : start + 64 * KIB]])
    writer.abandon()
    target.finish()
    assert content(path) == data


def test_a_disk_of_terabytes(tmp_path: Path) -> None:
    """Written here and there, up to its end; the image stays small."""
    path = made(tmp_path, 8 * TIB)
    target = opened(path)
    writer = target.open_writer()
    places = [0, 3 * TIB + 64 * KIB, 8 * TIB - 64 * KIB]
    for place in places:
        target.expect(place, 64 * KIB)
        writer.write(place, [place.to_bytes(8, "big") * (8 * KIB)])
    writer.abandon()
    target.finish()
    assert path.stat().st_blocks * 512 < 4 * MIB
    for place in places:
        pattern = f"read -P {place.to_bytes(8, 'big')[-1]} {place + 7} 1"
        assert "verification failed" not in tool("qemu-io", "-r", "-c", pattern, str(path))


def test_killed_after_a_sync(tmp_path: Path) -> None:
    """What had been written is there; the rest QEMU mends."""
    path = made(tmp_path, 16 * MIB)
    target, data = opened(path), random.Random(1).randbytes(8 * MIB)
    writer = target.open_writer()
    target.expect(0, 8 * MIB)
    for at in range(0, 8 * MIB, MIB):
        writer.write(at, [data[at : at + MIB]])
    target.sync()
    target.expect(8 * MIB, 8 * MIB)
    writer.abandon()
    target.abandon()  # no tables are written
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", str(path)], check=True)
    assert content(path)[: 8 * MIB] == data


def test_what_is_not_expected_is_not_written(tmp_path: Path) -> None:
    """A mistake of ours ends the restore; it hits no other cluster."""
    target = opened(made(tmp_path, 16 * MIB))
    writer = target.open_writer()
    with pytest.raises(ValueError, match="nothing was placed at 65536"):
        writer.write(65536, [bytes(65536)])
    writer.abandon()
    target.abandon()


def test_images_that_qemu_must_write(tmp_path: Path) -> None:
    """Other options than the usual ones, or a table of refcounts that would not suffice."""
    for size, create in (
        (16 * MIB, {"extended_l2": "on", "cluster_size": "131072"}),
        (16 * MIB, {"refcount_bits": "1"}),
        (16 * MIB, {"cluster_size": "512"}),
        (64 * GIB, {"cluster_size": "4096"}),
    ):
        path = made(tmp_path, size, **create)
        assert DirectQcow2Target.of(path) is None
    assert os.listdir(tmp_path) == ["image.qcow2"]
