"""Bitmaps taken out of the images of a guest that is off: of encrypted disks and of volumes, never the guest's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.lab.block_device import NoDeviceError
from tests.lab.disk import Disk, MiB
from tests.lab.disk_kinds import DiskKinds
from tests.lab.session import Lab
from tests.real.hypervisor.conftest import OTHER_REPOSITORY, new_session
from tests.real.hypervisor.test_stopped import MakeDomain, MakeShadow
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.images import image_info
from vmbackup.hypervisor.names import CheckpointName

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kinds(lab: Lab) -> Iterator[DiskKinds]:
    """A plain disk, an encrypted one and a volume of a pool."""
    try:
        with DiskKinds(lab, only=("vdf", "vdh")) as made:
            made.horse.stop()
            yield made
    except NoDeviceError as error:
        pytest.skip(str(error))


def bitmaps(kinds: DiskKinds) -> list[list[str]]:
    """Those of each of its images."""
    folder = kinds.horse.folder
    paths = (kinds.horse.path("vda"), folder / "vdf.qcow2", folder / "pool/volume.qcow2")
    return [list(image_info(str(path)).bitmaps) for path in paths]


def test_of_an_encrypted_disk_and_of_a_volume(kinds: DiskKinds, make_shadow: MakeShadow) -> None:
    """Off all the time: one bitmap stays after each run, and none after a purge."""
    shadow = make_shadow(kinds.horse)
    for _ in range(3):
        shadow.run()
        assert shadow.anchor is not None
        assert bitmaps(kinds) == [[shadow.anchor.checkpoint]] * 3
        assert not [note for note in shadow.notes if "could not" in note]
    assert kinds.horse.checkpoints() == [shadow.anchor.checkpoint]
    report = shadow.host.purge(shadow.host.domain(kinds.horse.name))
    assert (report.trouble, bitmaps(kinds), kinds.horse.checkpoints()) == ((), [[]] * 3, [])


def test_purged_while_libvirt_knows_nothing_of_them(kinds: DiskKinds, make_shadow: MakeShadow) -> None:
    """On and off: the images tell, also that of a volume."""
    horse, shadow = kinds.horse, make_shadow(kinds.horse)
    for start in (False, True):
        shadow.run()
        horse.domain.checkpointLookupByName(horse.checkpoints()[0]).delete(2)
        if start:
            horse.start()
        report = shadow.host.purge(shadow.host.domain(horse.name))
        if start:
            horse.stop()
        assert (report.trouble, bitmaps(kinds)) == ((), [[]] * 3)


def test_a_secret_that_libvirt_lacks_keeps_one_disk_only(kinds: DiskKinds, make_shadow: MakeShadow, lab: Lab) -> None:
    """It is told, the others are done, and libvirt keeps its record of the bitmap that is left."""
    shadow = make_shadow(kinds.horse)
    shadow.run()
    secret = lab.connection.secretLookupByUUIDString(kinds.secret)
    xml = secret.XMLDesc(0)
    secret.undefine()
    report = shadow.host.purge(shadow.host.domain(kinds.horse.name))
    assert "disk vdf: it is encrypted, and libvirt does not give its secret" in report.trouble[0]
    (left,) = kinds.horse.checkpoints()
    assert bitmaps(kinds) == [[], [left], []]
    lab.connection.secretDefineXML(xml).setValue(b"open sesame", 0)
    assert shadow.host.purge(shadow.host.domain(kinds.horse.name)).trouble == ()
    assert bitmaps(kinds) == [[]] * 3


@pytest.mark.parametrize("below", [None, "/nowhere/below.qcow2"])
def test_what_a_raw_disk_holds_is_the_guests(
    make_domain: MakeDomain, make_shadow: MakeShadow, host: Host, work_dir: Path, below: str | None
) -> None:
    """A qcow2 inside it, with a bitmap of a vmbackup that runs in the guest, or with an image below: never touched."""
    horse = make_domain(Disk(size=MiB), Disk("vdb", size=MiB, format="raw"), start=False)
    inner, path = work_dir / "inner.qcow2", horse.path("vdb")
    options = ["-u", "-b", below, "-F", "qcow2"] if below else []
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(inner), "64M"], check=True)
    if not below:
        name = CheckpointName.make(OTHER_REPOSITORY, new_session(), datetime.now(UTC))
        subprocess.run(["qemu-img", "bitmap", "--add", str(inner), str(name)], check=True)
    with path.open("r+b") as file:
        file.write(inner.read_bytes())
    before = path.read_bytes()
    shadow = make_shadow(horse)
    for _ in range(2):
        shadow.run()
        assert not [note for note in shadow.notes if "could not" in note]
    report = host.purge(host.domain(horse.name))
    assert (report.trouble, report.bitmaps) == ((), ())
    assert path.read_bytes() == before
    assert image_info(str(horse.path("vda"))).bitmaps == {}
