"""The qcow2 that tracks raw data: the data is never written, and is seen whole through it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.tracking import file as tracking_file
from vmbackup.hypervisor.tracking.file import DataFile

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
KiB, MiB = 1 << 10, 1 << 20


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """8 MiB and a sector, with holes; a comma in its name, which qemu-img's options are parted by."""
    path = tmp_path / "a,b.raw"
    with path.open("wb") as file:
        file.write(os.urandom(MiB))
        file.seek(5 * MiB)
        file.write(os.urandom(300 * KiB))
        file.truncate(8 * MiB + 512)
    path.chmod(0o640)
    return path


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_data_is_seen_through_it_and_is_not_written(raw: Path, tmp_path: Path) -> None:
    before, found = raw.read_bytes(), raw.stat()
    place = tmp_path / "tracking.qcow2"
    tracking_file.make(place, DataFile.look(raw))
    assert raw.read_bytes() == before
    after = raw.stat()
    assert (after.st_mtime_ns, after.st_blocks, after.st_ino) == (found.st_mtime_ns, found.st_blocks, found.st_ino)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, place)
    tracking_file.compare(place, raw)
    assert tracking_file.tracked_data(place) == raw
    assert place.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a,b.raw", "tracking.qcow2"]
    qemu_img("bitmap", "--add", place, "b0")
    qemu_img("check", "-q", place)


def test_zeros_that_a_guest_wrote_are_zeros_of_the_data(raw: Path, tmp_path: Path) -> None:
    """QEMU notes them in the qcow2 and writes them; where it had only noted them, that is told."""
    place = tmp_path / "tracking.qcow2"
    tracking_file.make(place, DataFile.look(raw))
    for command in ("write -z 0 64k", "write -z -u 64k 64k", "discard 5M 64k", "write -z -u 3M 2M"):
        subprocess.run(["qemu-io", "-d", "unmap", "-c", command, str(place)], check=True, capture_output=True)
    tracking_file.verify(place, DataFile.look(raw))
    with raw.open("r+b") as file:
        file.seek(4 * MiB + 4096)
        file.write(b"x")
    with pytest.raises(HypervisorError, match="at byte 3145728"):
        tracking_file.verify(place, DataFile.look(raw))


def test_it_is_made_again_over_one_of_the_same_data_alone(raw: Path, tmp_path: Path) -> None:
    """One that a killed run left; never a file of somebody else."""
    place, data = tmp_path / "tracking.qcow2", DataFile.look(raw)
    tracking_file.make(place, data)
    tracking_file.check_free(place, raw)
    tracking_file.make(place, data)
    other = tmp_path / "other.raw"
    shutil.copy(raw, other)
    with pytest.raises(HypervisorError, match="is there already"):
        tracking_file.check_free(place, other)
    for foreign in (b"", b"QFI\xfb", os.urandom(KiB)):
        (tmp_path / "foreign").write_bytes(foreign)
        with pytest.raises(HypervisorError, match="is there already"):
            tracking_file.check_free(tmp_path / "foreign", raw)
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(HypervisorError, match="is there already"):
        tracking_file.check_free(tmp_path / "link", raw)
    with pytest.raises(HypervisorError, match="there is no folder"):
        tracking_file.check_free(tmp_path / "nowhere" / "x", raw)


def test_what_does_not_show_the_data_as_it_is_is_told(raw: Path, tmp_path: Path) -> None:
    place, data = tmp_path / "tracking.qcow2", DataFile.look(raw)
    tracking_file.make(place, data)

    other = tmp_path / "other.raw"
    shutil.copy(raw, other)
    with pytest.raises(HypervisorError, match="does not name"):
        tracking_file.verify(place, DataFile.look(other))

    plain = tmp_path / "plain.qcow2"
    qemu_img("convert", "-O", "qcow2", raw, plain)
    with pytest.raises(HypervisorError, match="does not name"):
        tracking_file.verify(plain, data)

    mapped = tmp_path / "mapped.qcow2"  # with data beside it, but not as it is
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'beside'}", mapped, data.size)
    subprocess.run(["qemu-io", "-c", "write -P 1 4M 64k", "-c", "write -P 2 0 64k", str(mapped)], check=True,
                   capture_output=True)  # fmt: skip
    with pytest.raises(HypervisorError, match="does not name"):
        tracking_file.verify(mapped, DataFile.look(tmp_path / "beside"))

    with raw.open("r+b") as file:
        file.truncate(9 * MiB)
    with pytest.raises(HypervisorError, match="has 9437184"):
        tracking_file.verify(place, DataFile.look(raw))


def test_data_that_changes_meanwhile_is_told(raw: Path, tmp_path: Path) -> None:
    data = DataFile.look(raw)
    with raw.open("r+b") as file:
        file.write(b"x")
    with pytest.raises(HypervisorError, match="changed while it was worked with"):
        tracking_file.make(tmp_path / "tracking.qcow2", data)
    assert [path.name for path in tmp_path.iterdir()] == ["a,b.raw"]


def test_a_comparison_tells_where_they_differ(raw: Path, tmp_path: Path) -> None:
    place = tmp_path / "tracking.qcow2"
    tracking_file.make(place, DataFile.look(raw))
    other = tmp_path / "other.raw"
    other.write_bytes(b"x" + raw.read_bytes()[1:])
    with pytest.raises(HypervisorError, match="mismatch at offset 0"):
        tracking_file.compare(place, other)


@pytest.mark.parametrize("size", [0, 511, 513])
def test_what_is_no_number_of_sectors_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "odd").write_bytes(bytes(size))
    with pytest.raises(HypervisorError, match="no number of sectors"):
        DataFile.look(tmp_path / "odd")
