"""Which disks of a domain's XML are in the backup, and why not."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import disks, images
from vmbackup.hypervisor.disks import DomainDisk, read_disks
from vmbackup.hypervisor.images import ImageInfo


class Domain:
    """A domain that has one disk."""

    def __init__(self, disk: str, *, active: bool = True) -> None:
        self.disk, self.active = disk, active

    def isActive(self) -> bool:  # noqa: N802
        return self.active

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        return f"<domain><devices>{self.disk}</devices></domain>"

    def name(self) -> str:
        return "the guest"

    def blockInfo(self, _target: str, _flags: int) -> list[int]:  # noqa: N802
        return [1 << 20, 0, 0]


class Connection:
    """A connection with one pool, to libvirt of the version `number`."""

    def __init__(self, number: int = 9_000_000) -> None:
        self._number = number

    def getLibVersion(self) -> int:  # noqa: N802
        return self._number

    def getURI(self) -> str:  # noqa: N802 (libvirt's)
        return "qemu:///system"

    def __getattr__(self, name: str) -> Any:
        return lambda *_: "/pool/volume" if name == "path" else self


def read(
    disk: str, monkeypatch: pytest.MonkeyPatch, image: ImageInfo | None = None, version: int = 9_000_000
) -> DomainDisk:
    """The disk, with what qemu-img would say of its image."""

    def look(_path: str, _driver: str) -> ImageInfo:
        if image is None:
            raise HypervisorError("no such file")
        return image

    monkeypatch.setattr(disks, "image_info", look)
    (found,) = read_disks(Connection(version), Domain(disk))
    return found


GOOD = "<driver name='qemu' type='qcow2'/><source file='/a.qcow2'/><target dev='vda' bus='virtio'/>"
V3 = ImageInfo("/a.qcow2", "qcow2", 1 << 20, {"compat": "1.1", "cluster_size": "65536"})


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        ("<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>", "cdrom"),
        ("<disk type='file' device='floppy'><target dev='fda'/></disk>", "floppy"),
        (f"<disk type='block' device='lun'>{GOOD}</disk>", "SCSI"),
        (f"<disk type='file' device='disk'>{GOOD}<readonly/></disk>", "read-only"),
        (f"<disk type='file' device='disk'>{GOOD}<transient/></disk>", "transient"),
        (f"<disk type='file' device='disk'>{GOOD}<shareable/></disk>", "shareable"),
        ("<disk type='vhostuser' device='disk'><source type='unix' path='/s'/><target dev='vda'/></disk>", "vhost"),
        ("<disk type='file' device='disk'><source file='/a'/><target dev='sda' bus='sd'/></disk>", "SD bus"),
        ("<disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>", "no medium"),
    ],
)
def test_what_is_left_out_has_a_reason(xml: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out in silence."""
    assert reason in (read(xml, monkeypatch, V3).left_out or "")


def test_a_good_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Format, size, place, serial, bus and the image's settings."""
    disk = read(f"<disk type='file' device='disk'>{GOOD}<serial> S1 </serial></disk>", monkeypatch, V3)
    info = disk.info
    assert (disk.left_out, disk.untracked, disk.note) == (None, None, None)
    assert (info.target, info.format, info.virtual_size, info.path, info.serial, info.bus) == (
        "vda", "qcow2", 1 << 20, "/a.qcow2", "S1", "virtio",
    )  # fmt: skip
    assert info.attributes == {"compat": "1.1", "cluster_size": "65536"}


def test_the_format_decides_not_the_kind_of_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """qcow2 on a block device has bitmaps; a raw one has none."""
    block = "<disk type='block' device='disk'><driver type='{}'/><source dev='/dev/x'/><target dev='vda'/></disk>"
    assert read(block.format("qcow2"), monkeypatch, V3).untracked is None
    raw = read(block.format("raw"), monkeypatch, ImageInfo("/dev/x", "raw", 1 << 20))
    assert (raw.info.path, raw.left_out) == ("/dev/x", None)
    assert "raw" in (raw.untracked or "")


def test_the_old_format_has_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """qcow2 v2 is read whole, and the cure is a command."""
    old = ImageInfo("/a.qcow2", "qcow2", 1 << 20, {"compat": "0.10"})
    disk = read(f"<disk type='file' device='disk'>{GOOD}</disk>", monkeypatch, old)
    assert disk.untracked
    assert disk.cure == "qemu-img amend -f qcow2 -o compat=1.1 /a.qcow2"
    odd = read(f"<disk type='file' device='disk'>{GOOD.replace('/a.qcow2', '/a b;c.qcow2')}</disk>", monkeypatch, old)
    assert odd.cure == "qemu-img amend -f qcow2 -o compat=1.1 '/a b;c.qcow2'"


def test_network_and_volume_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """rbd is read whole; a volume is resolved through its pool."""
    start = "<disk type='{}' device='disk'><driver type='{}'/><target dev='vda'/>"
    rbd = start.format("network", "raw") + "<source protocol='rbd' name='p/i'/></disk>"
    assert read(rbd, monkeypatch).info.path == "rbd:p/i"
    volume = start.format("volume", "qcow2") + "<source pool='p' volume='v'/></disk>"
    assert read(volume, monkeypatch, V3).info.path == "/pool/volume"


PCI = "<address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>"
NETWORK = [
    ("network", "<source protocol='rbd' name='p/i'><host name='m'/><auth username='u'/></source>", "rbd:p/i"),
    ("network", "<source protocol='iscsi' name='iqn.2026:t/1'><host name='h'/></source>", "iscsi:iqn.2026:t/1"),
    ("network", "<source protocol='nbd' name='x'><host name='h'/></source>", "nbd:x"),
    ("nvme", f"<source type='pci' managed='yes' namespace='1'>{PCI}</source>", "nvme:0x0000:0x01:0x00:0x0/1"),
]


@pytest.mark.parametrize(("kind", "source", "path"), NETWORK)
def test_disks_that_are_no_file(kind: str, source: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the guest runs QEMU reads them, whole each time; while it is off nobody does, and that is told."""
    xml = f"<disk type='{kind}' device='disk'><driver type='raw'/>{source}<target dev='vda' bus='virtio'/></disk>"
    found = read(xml, monkeypatch)
    assert (found.info.path, found.left_out, found.closed) == (path, None, None)
    assert found.untracked == "a raw image has no dirty bitmap"
    (off,) = read_disks(Connection(), Domain(xml, active=False))
    assert off.closed == f"it is no file or device of this host ({path}): its QEMU alone opens it"
    assert off.left_out is None


def test_what_is_off_and_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image below whose format nobody tells is not guessed at; nor is one below an encrypted one opened."""
    top = replace(V3, backing="/b")
    plain = f"<disk type='file' device='disk'>{GOOD}</disk>"
    encrypted = plain.replace("/>", "><encryption format='luks'/></source>", 2).replace(
        "<driver name='qemu' type='qcow2'><encryption format='luks'/></source>", "<driver name='qemu' type='qcow2'/>"
    )
    for xml, image, why in (
        (plain, top, "/a.qcow2 does not tell the format of /b below it"),
        (encrypted, replace(top, backing_format="raw"), "it is encrypted, and other images lie below it"),
        (plain, replace(top, backing_format="raw"), None),
    ):
        chain = [image, ImageInfo("/b", "raw", 1 << 20)]
        monkeypatch.setattr(disks, "image_chain", lambda _path, _driver, chain=chain: chain)
        (off,) = read_disks(Connection(), Domain(xml, active=False))
        assert off.closed == why
        assert off.info.attributes["below"] == "/b"


def test_an_image_that_cannot_be_looked_at_is_backed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its settings are unknown; a note says so."""
    disk = read(f"<disk type='file' device='disk'>{GOOD}</disk>", monkeypatch)
    assert (disk.left_out, disk.untracked, disk.info.attributes) == (None, None, {})
    assert "could not be looked at" in (disk.note or "")


def test_an_encrypted_image_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The XML's word counts, whatever qemu-img says."""
    xml = f"<disk type='file' device='disk'>{GOOD}</disk>".replace(
        "<source file='/a.qcow2'/>", "<source file='/a.qcow2'><encryption format='luks'/></source>"
    )
    assert read(xml, monkeypatch, V3).info.attributes["encryption"] == "yes"


def test_what_qemu_img_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings as text, bitmaps with their flags, the backing image."""
    answer = {
        "filename": "/a", "format": "qcow2", "virtual-size": 5, "cluster-size": 4096, "full-backing-filename": "/b",
        "encrypted": True,
        "format-specific": {"type": "qcow2", "data": {
            "compat": "1.1", "compression-type": "zstd", "lazy-refcounts": True, "refcount-bits": 16, "corrupt": False,
            "encrypt": {"format": "luks"}, "bitmaps": [{"name": "x", "flags": ["auto", "in-use"]}],
        }},
    }  # fmt: skip
    monkeypatch.setattr(images, "run_tool", lambda _command: json.dumps(answer))
    found = images.image_info("/a")
    assert found.attributes == {
        "compat": "1.1", "compression_type": "zstd", "lazy_refcounts": "true", "refcount_bits": "16",
        "cluster_size": "4096", "encryption": "luks",
    }  # fmt: skip
    assert found.bitmaps == {"x": ("auto", "in-use")}
    assert (found.backing, found.holds_bitmaps) == ("/b", True)


def test_a_missing_image_is_one_sentence() -> None:
    """qemu-img's own word, without its name."""
    with pytest.raises(HypervisorError, match="No such file") as caught:
        images.image_info("/nowhere/x.qcow2")
    assert not str(caught.value).startswith("qemu-img")


def test_space_that_an_image_has_reserved(tmp_path: Path) -> None:
    """All of it, a place for each cluster only, or none: so that a restore makes it alike."""
    path = tmp_path / "image.qcow2"
    found = {}
    for preallocation in ("off", "metadata", "falloc", "full"):
        options = ["-f", "qcow2", "-o", f"preallocation={preallocation}"]
        subprocess.run(["qemu-img", "create", "-q", *options, str(path), str(16 << 20)], check=True)
        found[preallocation] = disks._preallocation(str(path), 16 << 20)
    assert found == {"off": None, "metadata": "metadata", "falloc": "falloc", "full": "falloc"}
    assert disks._preallocation("/nowhere", 1) is None


@pytest.mark.parametrize(("version", "cure"), [(10_009_999, None), (10_010_000, "vmbackup cbt enable 'the guest' vda")])
def test_a_raw_disk_can_be_tracked_where_libvirt_is_new(
    version: int, cure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = ImageInfo("/a.raw", "raw", 1 << 20)
    xml = "<disk type='file' device='disk'><source file='/a.raw'/><target dev='vda' bus='virtio'/></disk>"
    disk = read(xml, monkeypatch, image, version)
    assert "raw image has no dirty bitmap" in (disk.untracked or "")
    assert disk.cure == cure
