"""A restored guest on this host: as itself, as a copy, refused before a byte is written, backed up again."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.lab.disk import Disk, MiB, same_content
from tests.lab.domain import Workhorse
from tests.lab.session import Lab
from tests.real.cli.test_commands import Program
from vmbackup.errors import VmbackupError
from vmbackup.hypervisor import Host
from vmbackup.hypervisor.define.define import DefineOptions
from vmbackup.hypervisor.rebuild.wishes import NewDisk

pytestmark = pytest.mark.real
MakeDomain = Callable[..., Workhorse]
Look = Callable[[str], Any]
CHECKPOINTS = Path("/var/lib/libvirt/qemu/checkpoint")
UNDEFINE = libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
CARD = "<interface type='{kind}'><mac address='52:54:00:{mac}'/>{source}<model type='virtio'/></interface>"


def add_devices(horse: Workhorse, devices: str) -> None:
    """Into its definition for the next start, which is what a backup keeps."""
    xml = horse.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    horse.domain = horse.domain.connect().defineXML(xml.replace("</devices>", f"{devices}</devices>"))


def forget(horse: Workhorse) -> None:
    """The guest and its images are gone from this host."""
    horse.domain.destroy()
    horse.domain.undefineFlags(UNDEFINE)
    for target in horse.disks:
        horse.path(target).unlink()


def paths(domain: Any) -> list[str]:
    root = ET.fromstring(domain.XMLDesc(0))
    return [source.get("file", "") for source in root.findall("./devices/disk/source")]


def macs(domain: Any) -> list[str]:
    return [mac.get("address", "") for mac in ET.fromstring(domain.XMLDesc(0)).findall("./devices/interface/mac")]


def test_a_guest_moves(vmbackup: Program, make_domain: MakeDomain, domain: Look, work_dir: Path) -> None:
    """It is itself on the new host; stale checkpoints go; its history goes on, the second backup is incremental."""
    horse = make_domain(Disk("vda", size=32 * MiB), Disk("vdb", size=8 * MiB, format="raw"))
    add_devices(horse, CARD.format(kind="user", mac="00:00:01", source=""))
    horse.write("vda", 0, 4 * MiB, 0x11)
    vmbackup("backup", horse.name)
    horse.write("vda", MiB, 65536, 0x22)
    horse.domain.setAutostart(1)
    first = vmbackup.json("backup", horse.name)["points"][0]
    assert [disk["mode"] for disk in first["disks"]] == ["incremental", "reread"]
    kept = horse.copy("vda")
    (stale,) = horse.checkpoints()
    forget(horse)
    left = CHECKPOINTS / horse.name
    left.mkdir(parents=True)
    (left / f"{stale}.xml").write_text("<domaincheckpoint/>")

    output = work_dir / "restored"
    said = vmbackup.json("restore", horse.name, "--output", str(output), "--define", "--start")
    moved = domain(horse.name)
    horse.domain = moved
    notes = ["it is started with this host, as it was with its own"]
    assert said["domain"] == {"name": horse.name, "uuid": horse.uuid, "started": True, "notes": notes}
    assert moved.autostart()
    assert said["warnings"] == []
    assert not list(left.glob("*"))
    assert (moved.UUIDString(), moved.isActive(), moved.listAllCheckpoints()) == (horse.uuid, True, [])
    assert paths(moved) == [str(output / "vda.qcow2"), str(output / "vdb.qcow2")]
    assert macs(moved) == ["52:54:00:00:00:01"]
    assert same_content(output / "vda.qcow2", kept) is None

    again = vmbackup.json("backup", horse.name)["points"][0]
    assert [disk["mode"] for disk in again["disks"]] == ["reread", "reread"]
    assert (again["parent"], again["disks"][0]["changed_bytes"]) == (first["id"], 0)
    third = vmbackup.json("backup", horse.name)["points"][0]
    assert [disk["mode"] for disk in third["disks"]] == ["incremental", "incremental"]
    assert vmbackup.json("verify", "--read-data")["damaged"] == []


def test_a_copy_beside_the_original(
    vmbackup: Program, make_domain: MakeDomain, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """Another guest with another history; the original, running on, is not touched."""
    horse = make_domain(Disk("vda", size=16 * MiB))
    add_devices(horse, CARD.format(kind="user", mac="00:00:02", source=""))
    horse.write("vda", 0, MiB, 0x33)
    horse.domain.setAutostart(1)
    vmbackup("backup", horse.name)
    name = lab.new_name()
    told = vmbackup("restore", horse.name, "--output", str(work_dir / "copy"), "--define", "--name", name, "--start")
    copy = domain(name)
    assert f"domain {name} is defined (UUID {copy.UUIDString()}) and runs" in told
    assert f"this copy is not: virsh autostart {name}" in told
    assert not copy.autostart()
    assert copy.UUIDString() != horse.uuid
    assert macs(copy) != ["52:54:00:00:00:02"]
    assert macs(copy)[0].startswith("52:54:00:")
    assert (copy.isActive(), horse.running) == (True, True)
    modes = [vmbackup.json("backup", name)["points"][0]["disks"][0]["mode"] for _ in range(2)]
    assert modes == ["full", "incremental"]
    assert vmbackup.json("backup", horse.name)["points"][0]["disks"][0]["mode"] == "incremental"


def test_a_chain_is_defined_by_its_top(
    vmbackup: Program, make_domain: MakeDomain, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """And starts: the levels below are found by their relative names."""
    horse = make_domain(Disk("vda", size=16 * MiB))
    for pattern in (1, 2):
        horse.write("vda", 0, MiB, pattern)
        vmbackup("backup", horse.name)
    name, output = lab.new_name(), work_dir / "chain"
    command = ("restore", horse.name, "--output", str(output), "--chain", "--define", "--name", name, "--start")
    assert vmbackup.json(*command)["domain"]["name"] == name
    assert paths(domain(name))[0] == str(output / "vda.qcow2")


def test_what_is_refused(lab: Lab, make_domain: MakeDomain, work_dir: Path) -> None:
    """A taken name or UUID, a network that is not here, a folder that QEMU may not enter; each with what mends it."""
    horse = make_domain(Disk("vda", size=4 * MiB), start=False)
    add_devices(horse, CARD.format(kind="bridge", mac="00:00:03", source="<source bridge='br-nowhere'/>"))
    documents = {"domain.xml": horse.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()}
    name, mapped = lab.new_name(), {"br-nowhere": "none"}
    closed = work_dir / "closed"
    closed.mkdir(mode=0o700)
    with Host.open("qemu:///system", scratch_dir=str(work_dir), state_dir=str(work_dir / "state")) as host:

        def refused(folder: Path = work_dir, **options: Any) -> str:
            with pytest.raises(VmbackupError) as error:
                host.plan_definition(documents, {"vda": NewDisk(folder / "vda.qcow2")}, DefineOptions(**options))
            return f"{error.value} [{error.value.hint}]"

        assert "there is a domain" in (told := refused(networks=mapped))
        assert "--name NEW" in told
        assert f"domain {horse.name} of this host has the UUID" in refused(name=name, keep_uuid=True, networks=mapped)
        assert "br-nowhere of the guest is not on this host [map it: --network br-nowhere=TO" in refused(name=name)
        assert "no network or bridge 'br-other'" in refused(name=name, networks={"br-nowhere": "br-other"})
        assert "connected to no network or bridge 'x'" in refused(name=name, networks={"x": "none"})
        assert f"may not pass {closed}" in refused(closed / "deep" / "er", name=name, networks=mapped)
        assert "cannot be the name" in refused(name="a/b", networks=mapped)
        documents.clear()
        assert "holds no definition of the guest" in refused()


def test_nothing_is_restored_of_what_is_refused(vmbackup: Program, make_domain: MakeDomain, work_dir: Path) -> None:
    """Not a byte, and not a folder."""
    horse = make_domain(Disk("vda", size=4 * MiB))
    vmbackup("backup", horse.name)
    output = work_dir / "refused"
    command = ("restore", horse.name, "--output", str(output))
    said = vmbackup.json(*command, "--define", code=1)["error"]
    assert "there is a domain" in said["message"]
    assert "maps nothing" in vmbackup(*command, "--define", "--network", "lan", code=2)
    assert "--start goes with --define" in vmbackup(*command, "--start", code=2)
    told = vmbackup(*command, "--define", "--name", "vmbackup-other", "--dry-run")
    assert "domain vmbackup-other would be defined" in told
    assert vmbackup.json(*command, "--define", "--name", "vmbackup-other", "--dry-run")["domain"]["warnings"] == []
    assert not output.exists()


def test_a_guest_that_does_not_start_is_said(
    vmbackup: Program, make_domain: MakeDomain, domain: Look, lab: Lab, work_dir: Path
) -> None:
    """It stays defined, with its disks, and the sentence says both."""
    horse = make_domain(Disk("vda", size=4 * MiB))
    address = "<address domain='0x0000' bus='0x7f' slot='0x1f' function='0x7'/>"
    add_devices(horse, f"<hostdev mode='subsystem' type='pci' managed='yes'><source>{address}</source></hostdev>")
    vmbackup("backup", horse.name)
    name, output = lab.new_name(), work_dir / "out"
    command = ("restore", horse.name, "--output", str(output), "--define", "--name", name, "--start")
    told = vmbackup(*command, code=1)
    assert "the host device pci 0000:7f:1f.7 of the guest is not here" in told
    assert "--without host-devices" in told
    said = vmbackup.json(*command, "--without", "host-devices", code=3)
    assert "pci 0000:7f:1f.7" in said["warnings"][0]
    assert domain(name).isActive()

    xml = horse.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    start, _, end = xml.partition("<hostdev")
    broken = start + end.partition("</hostdev>")[2]
    broken = broken.replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ")
    broken = broken.replace("</domain>", "<qemu:commandline><qemu:arg value='-nonsense'/></qemu:commandline></domain>")
    horse.domain = lab.connection.defineXML(broken)
    vmbackup("backup", horse.name)
    name, output = lab.new_name(), work_dir / "out2"
    told = vmbackup("restore", horse.name, "--output", str(output), "--define", "--name", name, "--start", code=1)
    assert f"domain {name} is restored and defined, but it does not start" in told
    assert not domain(name).isActive()
    assert (output / "vda.qcow2").exists()


def test_a_define_that_fails_leaves_nothing(lab: Lab, work_dir: Path) -> None:
    """Neither domain nor UEFI variables nor TPM state, though libvirt refuses only at the end."""
    name = lab.new_name()
    xml = (
        f"<domain type='qemu'><name>{name}</name><uuid>6d7e9a43-3c0c-4be1-9a6e-1f6f53c0aa01</uuid>"
        "<memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type>"
        "<loader readonly='yes' type='pflash'>/bin/true</loader><nvram>/x</nvram></os><features><acpi/></features>"
        "<devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/x'/>"
        "<target dev='vda' bus='nonsense'/></disk></devices></domain>"
    )
    documents = {"domain.xml": xml.encode(), "nvram.fd": b"variables", "tpm2-00.permall": b"keys"}
    before = {path for folder in ("qemu/nvram", "swtpm") for path in Path("/var/lib/libvirt", folder).rglob("*")}
    with Host.open("qemu:///system", scratch_dir=str(work_dir), state_dir=str(work_dir / "state")) as host:
        disks = {"vda": NewDisk(work_dir / "x.qcow2")}
        with pytest.raises(VmbackupError, match=r"libvirt does not take the guest's definition.*nonsense"):
            host.plan_definition(documents, disks, DefineOptions())
        documents["domain.xml"] = xml.replace("nonsense", "virtio").encode()
        definition = host.plan_definition(documents, disks, DefineOptions())
        assert definition.rebuilt.nvram == Path(f"/var/lib/libvirt/qemu/nvram/{name}_VARS.fd")
        assert definition.rebuilt.tpm_version == "2.0"
        late = replace(definition.rebuilt, xml=definition.rebuilt.xml.replace('bus="virtio"', 'bus="nonsense"'))
        with pytest.raises(VmbackupError, match="nonsense"):
            host.define(replace(definition, rebuilt=late))
    after = {path for folder in ("qemu/nvram", "swtpm") for path in Path("/var/lib/libvirt", folder).rglob("*")}
    assert {path for path in after - before if name in str(path) or "6d7e9a43" in str(path)} == set()
    with pytest.raises(libvirt.libvirtError):
        lab.connection.lookupByName(name)


def test_what_an_earlier_guest_left_is_not_taken_over(
    vmbackup: Program, make_domain: MakeDomain, work_dir: Path
) -> None:
    """Its saved memory would run on restored disks."""
    horse = make_domain(Disk("vda", size=4 * MiB))
    vmbackup("backup", horse.name)
    forget(horse)
    saved = Path(f"/var/lib/libvirt/qemu/save/{horse.name}.save")
    saved.write_bytes(b"memory")
    try:
        told = vmbackup("restore", horse.name, "--output", str(work_dir / "out"), "--define", code=1)
    finally:
        os.unlink(saved)
    assert f"the saved memory of an earlier guest lies in {saved}" in told
    assert not (work_dir / "out").exists()
