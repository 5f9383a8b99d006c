"""Restores onto a guest's own disks and onto block devices; refused while somebody works with them."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.disk import Disk
from tests.lab.domain import Workhorse
from tests.real.engine.kit import Kit, same
from vmbackup.engine.restore.flat import RestoreOptions, RestoreSummary, restore
from vmbackup.errors import TargetError
from vmbackup.progress import Silent

MIB = 1 << 20
SIZE = 32 * MIB
pytestmark = pytest.mark.real


def onto(kit: Kit, point_id: str, to: dict[str, Path]) -> RestoreSummary:
    options = RestoreOptions(None, workers=2).onto(to, kit.host.disk_users, kit.root / "state")
    return restore(kit.repository, kit.point(point_id), options, Silent())


def test_the_guests_own_disks(make_domain: Callable[..., Workhorse], kit: Kit) -> None:
    """Refused while it runs, also to another guest; then it has its old bytes, and the next backups are right."""
    horse = make_domain(Disk("vda", size=SIZE), Disk("vdb", size=8 * MIB, format="raw"))
    other = make_domain(Disk("vda", size=SIZE))
    for at in range(0, SIZE, 4 * MIB):
        horse.write("vda", at, MIB, 0x10 + at // MIB)
    horse.write("vdb", 0, 8 * MIB, 0x55)
    first = kit.backup(horse)
    kept = {target: horse.copy(target) for target in ("vda", "vdb")}
    horse.write("vda", 0, 6 * MIB, 0x99)
    horse.zero("vda", 8 * MIB, 8 * MIB)
    horse.write("vdb", MIB, MIB, 0x66)
    kit.backup(horse)
    own = {target: horse.path(target) for target in ("vda", "vdb")}
    for target, path in own.items():
        with pytest.raises(TargetError, match=f"it is disk {target} of the guest {horse.name}, which runs"):
            onto(kit, first.id, {target: path})
    horse.stop()
    other.stop()
    with pytest.raises(TargetError, match=f"is disk vda of another guest, {other.name}"):
        onto(kit, first.id, {"vda": other.path("vda")})
    below = f"lies below disk vda of the guest {other.name}"
    with built_on(horse.path("vda"), other), pytest.raises(TargetError, match=below):
        onto(kit, first.id, {"vda": horse.path("vda")})
    onto(kit, first.id, own)
    for target, path in own.items():
        same(path, kept[target])
    horse.start()
    for step in range(2):
        horse.write("vda", 20 * MIB, 4096, 0x77 + step)
        kit.check(horse, kit.backup(horse).id)


@contextlib.contextmanager
def built_on(base: Path, guest: Workhorse) -> Iterator[None]:
    """A guest that is off, whose image builds on `base`: its definition does not tell."""
    image = guest.path("vda")
    whole = image.rename(image.with_suffix(".whole"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image], check=True)
    yield
    whole.rename(image)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device that held something else."""
    backing = tmp_path / "backing"
    backing.write_bytes(random.Random(3).randbytes(SIZE + MIB))
    made = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", str(backing)], check=False, capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_block_device(make_domain: Callable[..., Workhorse], kit: Kit, device: Path, tmp_path: Path) -> None:
    """It has the disk's bytes, and zeros behind them; not while it is mounted, nor through its backing file."""
    horse = make_domain(Disk("vda", size=SIZE))
    horse.write("vda", 3 * MIB, 5 * MIB, 0x42)
    horse.write("vda", SIZE - 4096, 4096, 0x43)
    point = kit.backup(horse)
    kept = tmp_path / "kept"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(horse.copy("vda")), str(kept)], check=True)
    with pytest.raises(TargetError, match=f"backing is in use: it is the loop device {device}"):
        onto(kit, point.id, {"vda": tmp_path / "backing"})
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    folder = tmp_path / "a folder"
    folder.mkdir()
    subprocess.run(["mount", str(device), str(folder)], check=True)
    try:
        with pytest.raises(TargetError, match=f"in use: it is mounted at {folder}"):
            onto(kit, point.id, {"vda": device})
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    done = onto(kit, point.id, {"vda": device})
    assert device.read_bytes() == kept.read_bytes() + bytes(MIB)
    assert (done.files[0].format, done.files[0].written_bytes) == ("raw", SIZE)
    assert len(done.warnings) == 1
    assert os.listdir(kit.root / "state/restores") == []
