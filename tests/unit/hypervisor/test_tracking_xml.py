"""A raw disk's definition with its tracking file, and without it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmbackup.hypervisor.tracking.disk import with_tracking, without_tracking
from vmbackup.hypervisor.xmltree import parse

DISK = """<disk type='{kind}' device='disk'>
<driver name='qemu' type='raw' cache='none' io='native' discard='unmap'/>
<source {source}/>
<target dev='vdb' bus='virtio'/><serial>S1</serial><boot order='1'/></disk>"""
OTHER = "<disk type='file' device='disk'><source file='/o.qcow2'/><target dev='vda'/></disk>"


def domain(kind: str, source: str) -> str:
    disk = DISK.format(kind=kind, source=source)
    return f"<domain><name>d</name><devices>{OTHER}{disk}</devices></domain>"


def canonical(xml: str) -> list[tuple[str, dict[str, str], str]]:
    return [(each.tag, dict(each.attrib), (each.text or "").strip()) for each in parse(xml).iter()]


@pytest.mark.parametrize(("kind", "attribute", "path"), [("file", "file", "/i/d.raw"), ("block", "dev", "/dev/null")])
def test_there_and_back(
    kind: str, attribute: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the disk's source and driver change; without tracking it is what it was."""
    monkeypatch.setattr(Path, "is_block_device", lambda self: str(self) == "/dev/null")
    xml = domain(kind, f"{attribute}='{path}'")
    tracked = with_tracking(xml, "vdb", Path(path), Path("/i/t.qcow2"))
    disk = parse(tracked).findall("./devices/disk")[1]
    driver = disk.find("driver")
    assert disk.get("type") == "file"
    assert driver is not None
    assert driver.attrib == {"name": "qemu", "type": "qcow2", "cache": "none", "io": "native", "discard": "unmap"}
    store = disk.find("./source[@file='/i/t.qcow2']/dataStore")
    assert store is not None
    assert store.get("type") == kind
    assert store.find("./format[@type='raw']") is not None
    assert store.find(f"./source[@{attribute}='{path}']") is not None
    assert canonical(without_tracking(tracked, "vdb")) == canonical(xml)


def test_a_disk_that_is_not_there() -> None:
    xml = domain("file", "file='/i/d.raw'")
    with pytest.raises(ValueError, match="vdz"):
        with_tracking(xml, "vdz", Path("/i/d.raw"), Path("/t"))
    with pytest.raises(ValueError, match="vdb"):
        without_tracking(xml, "vdb")
