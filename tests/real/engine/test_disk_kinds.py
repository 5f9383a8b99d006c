"""A guest with a disk of each kind, on and off: each comes back to the byte, or is told in one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.block_device import NoDeviceError
from tests.lab.disk_kinds import PASSPHRASE, DiskKinds
from tests.lab.session import Lab
from tests.real.engine.kit import Kit
from vmbackup.engine.images import qcow2_target
from vmbackup.engine.images.image_file import image_name
from vmbackup.engine.restore.flat import RestoreOptions, restore
from vmbackup.errors import HypervisorError, UsageError
from vmbackup.hypervisor.qemu_secret import QemuSecret
from vmbackup.progress import Silent
from vmbackup.repository import PointSummary

pytestmark = pytest.mark.real
K64 = 65536
TRACKED = {"vda", "sda", "sdc", "hda", "vdd", "vde", "vdf", "vdh"}
_CHEAP = ",encrypt.iter-time=10"
WHOLE = {"sdb", "vdb", "vdc", "vdg"}


@pytest.fixture(scope="module")
def kinds(lab: Lab) -> Iterator[DiskKinds]:
    try:
        with DiskKinds(lab) as made:
            yield made
    except NoDeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def long_kit(lab: Lab) -> Iterator[Kit]:
    """A repository for the whole module."""
    work, scratch = lab.new_folder("work"), lab.new_folder("scratch")
    made = Kit(work, scratch)
    yield made
    made.close()
    shutil.rmtree(work)
    scratch.rmdir()


def restored(kit: Kit, point: PointSummary, **options: object) -> dict[str, bytes]:
    folder = kit.root / f"restored-{point.id}"
    wishes = RestoreOptions(folder, "raw", workers=2, plain=True)
    files = restore(kit.repository, kit.point(point.id), wishes, Silent()).files
    return {file.target: file.path.read_bytes() for file in files}


def check(kit: Kit, kinds: DiskKinds, point: PointSummary) -> None:
    """Each disk is in it, as it is now."""
    found = restored(kit, point)
    assert set(found) == set(kinds.content)
    for target, data in found.items():
        assert data == bytes(kinds.content[target]), f"{target} is not what it was"


def modes(point: PointSummary) -> dict[str, str]:
    return {disk.target: disk.mode for disk in point.disks}


def test_each_kind_while_it_runs(long_kit: Kit, kinds: DiskKinds) -> None:
    """Full, then incremental for all that can have a bitmap, the others whole with their reason."""
    for number, target in enumerate(kinds.content, start=1):
        kinds.write(target, number * K64, 3 * K64, number)
    first = long_kit.backup(kinds.horse)
    assert set(modes(first).values()) == {"full"}
    check(long_kit, kinds, first)
    for number, target in enumerate(kinds.content, start=1):
        kinds.write(target, (number + 1) * K64, K64, 100 + number)
    second = long_kit.backup(kinds.horse)
    assert {target for target, mode in modes(second).items() if mode == "incremental"} == TRACKED
    assert {target for target, mode in modes(second).items() if mode == "reread"} == WHOLE
    check(long_kit, kinds, second)
    reasons = {disk.target: disk.reason or "" for disk in second.disks}
    assert "qemu-img amend" in reasons["vdb"]
    assert all("raw" in reasons[target] for target in ("sdb", "vdc", "vdg"))
    told = "\n".join(second.warnings)
    assert "disk vdi is left out: it is shareable" in told
    assert "disk vdf is encrypted" in told
    assert not any(f"disk {target}" in told for target in ("vdj", "hdc", "hdd", "fda")), "nothing of the guest"


def test_an_encrypted_disk_is_never_silently_plain(
    long_kit: Kit, kinds: DiskKinds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored under the repository's encryption, and comes back encrypted, or not at all."""
    create = qcow2_target.create_options  # LUKS makes a key cost seconds of CPU
    monkeypatch.setattr(qcow2_target, "create_options", lambda o: [*create(o)[:-1], create(o)[-1] + _CHEAP])
    newest = max(long_kit.points(), key=lambda point: point.time)
    plain = bytes(kinds.content["vdf"])
    folder = long_kit.root / "luks"
    with pytest.raises(UsageError, match="disk vdf was encrypted, and would be restored readable"):
        restore(long_kit.repository, newest, RestoreOptions(folder, disks=("vdf",), workers=2), Silent())
    wishes = RestoreOptions(folder, disks=("vdf",), workers=2, passphrases={"vdf": PASSPHRASE})
    path = restore(long_kit.repository, newest, wishes, Silent()).files[0].path
    marker = next(plain[at : at + 512] for at in range(0, len(plain), K64) if plain[at])
    for where in (path, *(p for p in (long_kit.root / "repository").rglob("*") if p.is_file())):
        assert marker not in where.read_bytes(), f"readable in {where}"
    with QemuSecret(PASSPHRASE) as secret:
        image = image_name(path, "qcow2", encrypted=True)
        command = ["qemu-img", "convert", *secret.arguments, "-O", "raw", image, f"{path}.raw"]
        subprocess.run(command, check=True, pass_fds=(secret.fd,))
    assert Path(f"{path}.raw").read_bytes() == plain


def test_each_kind_while_it_is_off(long_kit: Kit, kinds: DiskKinds) -> None:
    """The network disk only QEMU can read; without it all others are read from their images, and go on afterwards."""
    horse = kinds.horse
    kinds.write("vdf", 0, K64, 0x51)
    kinds.write("sdc", 0, K64, 0x52)
    kinds.write("vdd", 0, K64, 0x53)
    horse.stop()
    with pytest.raises(HypervisorError, match=r"is off, and its disk vdg cannot be read: .* its QEMU alone opens it"):
        long_kit.backup(horse)
    kinds.detach("vdg")
    point = long_kit.backup(horse)
    assert {target for target, mode in modes(point).items() if mode == "incremental"} == TRACKED
    check(long_kit, kinds, point)
    again = long_kit.backup(horse)
    assert sum(disk.changed_bytes for disk in again.disks) == 0
    horse.start()
    kinds.write("vdf", K64, K64, 0x54)
    kinds.write("hda", K64, K64, 0x55)
    on = long_kit.backup(horse)
    assert {target for target, mode in modes(on).items() if mode == "incremental"} == TRACKED
    assert {disk.target for disk in on.disks if disk.changed_bytes} == {"vdf", "hda"}
    check(long_kit, kinds, on)
    assert len(horse.checkpoints()) == 1


def test_a_disk_that_comes_back_under_another_name(long_kit: Kit, kinds: DiskKinds) -> None:
    """Removed, it is in no new point; plugged in as another target it is a new disk. The others stay incremental."""
    kinds.horse.stop()
    kinds.rename("sda", "sdx")
    kinds.horse.start()
    kinds.write("sdx", 0, K64, 0x61)
    point = long_kit.backup(kinds.horse)
    assert (modes(point)["sdx"], "sda" in modes(point)) == ("full", False)
    assert {target for target, mode in modes(point).items() if mode == "incremental"} == TRACKED - {"sda"}
    kinds.write("sdx", K64, K64, 0x62)
    again = long_kit.backup(kinds.horse)
    assert modes(again)["sdx"] == "incremental"
    check(long_kit, kinds, again)
