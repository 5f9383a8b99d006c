"""A throw-away guest reaches nothing of its host, of a network, or of the guest that it is a copy of."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from vmbackup.hypervisor.rebuild.isolate import isolate

MIB = 1 << 20
HOSTILE = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web01</name><uuid>f707ff3b-b71b-4e4e-8f78-acacb883c7e3</uuid>
  <metadata><app:x xmlns:app='http://host.example'/></metadata>
  <maxMemory slots='4' unit='GiB'>16</maxMemory><memory unit='GiB'>4</memory><currentMemory unit='GiB'>2</currentMemory>
  <memoryBacking><hugepages/><source type='file'/><locked/></memoryBacking>
  <vcpu placement='auto' cpuset='0-3'>4</vcpu><cputune><vcpupin vcpu='0' cpuset='1'/></cputune>
  <numatune><memory mode='strict' nodeset='1'/></numatune>
  <resource><partition>/host</partition></resource><seclabel type='none'/>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/><bootmenu enable='yes' timeout='60000'/></os>
  <cpu mode='host-model'><topology sockets='1' cores='4' threads='1'/>
    <numa><cell id='0' cpus='0-3' memory='4' unit='GiB' memAccess='shared'/></numa></cpu>
  <on_poweroff>restart</on_poweroff><on_crash>coredump-restart</on_crash>
  <qemu:commandline><qemu:arg value='-netdev'/><qemu:arg value='user,id=host'/></qemu:commandline>
  <blkiotune><device><path>/dev/host</path><weight>1</weight></device></blkiotune>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk' rawio='yes'><driver name='qemu' type='qcow2'/><source file='/host/vda.qcow2'/>
      <target dev='vda' bus='virtio'/><shareable/><iotune><total_bytes_sec>1</total_bytes_sec></iotune>
      <serial>KEPT</serial><address type='pci' bus='0x04' slot='0x00'/></disk>
    <disk type='block' device='lun'><source dev='/dev/host'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='cdrom'><source file='/host/a.iso'/><target dev='sdb' bus='sata'/></disk>
    <controller type='pci' index='1' model='pcie-expander-bus'><target busNr='180'><node>0</node></target></controller>
    <controller type='usb' model='qemu-xhci'/>
    <interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='host0'/></interface>
    <interface type='hostdev'><source><address type='pci' bus='3'/></source></interface>
    <hostdev mode='subsystem' type='pci'><source><address bus='1'/></source></hostdev>
    <filesystem type='mount'><source dir='/host'/><target dir='share'/></filesystem>
    <shmem name='host'/><lease><lockspace>host</lockspace><key>k</key><target path='/host/l'/></lease>
    <serial type='file'><source path='/host/serial.log'/>
      <log file='/host/log'/><target type='isa-serial' port='0'/></serial>
    <serial type='tcp'><source mode='bind' host='0.0.0.0' service='2445'/><target port='1'/></serial>
    <parallel type='dev'><source path='/dev/parport0'/><target port='0'/></parallel>
    <console type='file'><source path='/host/serial.log'/><target type='serial' port='0'/></console>
    <channel type='unix'><source mode='bind' path='/host/agent.sock'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <address type='virtio-serial' port='1'/></channel>
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>
    <channel type='unix'><source mode='connect' path='/host/other.sock'/><target type='virtio' name='other'/></channel>
    <input type='tablet' bus='usb'/><input type='passthrough' bus='virtio'><source evdev='/dev/input/host'/></input>
    <input type='evdev'><source dev='/dev/input/host'/></input>
    <tpm model='tpm-crb'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>
    <graphics type='vnc' port='5901' listen='0.0.0.0' passwd='secret'/>
      <graphics type='spice'><listen type='socket'/></graphics>
    <sound model='ich9'/><audio id='1' type='oss'/>
    <video><model type='qxl' ram='65536' primary='yes'/><address type='pci' bus='0' slot='1'/></video>
    <hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>
    <redirdev bus='usb' type='spicevmc'/><smartcard mode='host'/><hub type='usb'/>
    <watchdog model='itco' action='poweroff'/><memballoon model='virtio'/>
    <rng model='virtio'><backend model='egd' type='udp'><source mode='bind' service='1234'/></backend></rng>
    <memory model='nvdimm'><source><path>/host/nvdimm</path></source><target><size>1</size></target></memory>
    <pstore backend='acpi-erst'><path>/host/pstore</path></pstore>
      <vsock model='virtio'><cid auto='no' address='3'/></vsock>
    <panic model='isa'/><crypto model='virtio' type='qemu'><backend model='lkcf'/></crypto>
    <somethingnew path='/host/new'/>
  </devices>
</domain>
"""


def isolated(xml: str = HOSTILE, memory: int | None = None) -> ET.Element:
    return ET.fromstring(isolate(xml, {"vda"}, memory).xml)


def test_nothing_of_the_host_is_left() -> None:
    """But for the disk's source, which a new one takes the place of, and the program that runs it."""
    root = isolated()
    for disk in root.findall("./devices/disk"):
        disk.remove(disk.find("source"))  # type: ignore[arg-type]
    text = ET.tostring(root, encoding="unicode")
    for trace in ("host/", "/dev/host", "host0", "52:54", "secret", "0.0.0.0", "2445", "commandline", "-netdev"):
        assert trace not in text.replace("/dev/urandom", ""), trace
    assert {device.tag for device in root.find("devices") or ()} == {
        "emulator", "disk", "controller", "serial", "channel", "input", "video", "watchdog", "memballoon", "rng", "hub",
        "panic",
    }  # fmt: skip
    assert {child.tag for child in root} == {
        "name", "uuid", "memory", "vcpu", "os", "cpu", "devices", "on_poweroff", "on_reboot", "on_crash",
    }  # fmt: skip


def test_what_stays_is_bound_to_nothing_of_the_host() -> None:
    """No keyboard of the host, no watchdog that ends it, no cell of memory, no CPU."""
    root = isolated()
    assert [device.get("type") for device in root.findall("./devices/input")] == ["tablet"]
    assert [device.get("action") for device in root.findall("./devices/watchdog")] == ["none"]
    assert root.find("./devices/controller/target") is not None
    assert root.find("./devices/controller/target/node") is None
    assert [dict(vcpu.attrib) for vcpu in root.findall("vcpu")] == [{}]


def test_what_describes_its_drives_stays() -> None:
    (disk,) = isolated().findall("./devices/disk")
    assert (disk.findtext("serial"), disk.find("address") is not None, disk.get("rawio")) == ("KEPT", True, None)
    assert disk.find("shareable") is None
    assert disk.find("iotune") is None


def test_what_it_may_miss_is_told() -> None:
    found = isolate(HOSTILE, {"vda"})
    assert found.has_agent
    assert found.left_out == (
        "host devices", "folders of the host", "shared memory", "redirected devices", "memory devices",
        "the drives sda, sdb", "the host's TPM", "its own arguments for QEMU",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("memory", "kib"), [(None, 2 << 20), (512 * MIB, 512 << 10)], ids=["as at its start", "as it was told"]
)
def test_its_memory_is_in_one_piece(memory: int | None, kib: int) -> None:
    root = isolated(memory=memory)
    assert (root.findtext("memory"), root.find("./cpu/numa"), root.find("currentMemory")) == (str(kib), None, None)
    assert root.find("./cpu/topology") is not None


def test_a_guest_that_crashes_or_ends_is_ended() -> None:
    root = isolated()
    found = [root.findtext(f"on_{what}") for what in ("poweroff", "reboot", "crash")]
    assert found == ["destroy", "restart", "destroy"]


@pytest.mark.parametrize(
    ("video", "shown"),
    [
        ("<video><model type='qxl'/><address type='pci' slot='0x01'/></video>", ("vga", False)),
        ("<video><model type='none'/></video>", ("vga", False)),
        ("<video><model type='virtio'><acceleration accel3d='yes'/></model><address/></video>", ("virtio", True)),
        ("<video><model type='cirrus'/></video><video><model type='qxl'/></video>", ("cirrus", False)),
        ("", ("vga", False)),
    ],
)
def test_it_has_a_screen(video: str, shown: tuple[str, bool]) -> None:
    """One that shows a picture with no graphics server, in the slot of its own card where it is that."""
    xml = f"<domain><os><type arch='x86_64'>hvm</type></os><devices>{video}</devices></domain>"
    (found,) = isolated(xml).findall("./devices/video")
    assert (found.find("model").attrib, found.find("address") is not None) == ({"type": shown[0]}, shown[1])  # type: ignore[union-attr]


def test_a_screen_of_another_architecture() -> None:
    found = isolated("<domain><os><type arch='s390x'>hvm</type></os><devices/></domain>")
    assert found.find("./devices/video/model").get("type") == "virtio"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ports", "tag", "target"),
    [
        ("<serial type='tcp'><source/><protocol type='telnet'/><target type='isa'/></serial>", "serial", "isa"),
        ("<console type='pty' tty='/dev/pts/1'><target type='virtio' port='0'/></console>", "console", "virtio"),
        ("", "serial", None),
    ],
)  # fmt: skip
def test_it_has_a_console(ports: str, tag: str, target: str | None) -> None:
    (found,) = isolated(f"<domain><devices>{ports}</devices></domain>").findall(f"./devices/{tag}")
    kept = found.find("target")
    assert (dict(found.attrib), kept.get("type") if kept is not None else None) == ({"type": "pty"}, target)
    assert {child.tag for child in found} <= {"target", "address"}


def test_a_guest_without_an_agent() -> None:
    assert not isolate("<domain><devices/></domain>", set()).has_agent


@pytest.mark.parametrize("xml", ["<network/>", "<domain/>", "no xml", "<!DOCTYPE x><domain><devices/></domain>"])
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(ValueError, match=r"domain|XML"):
        isolate(xml, set())
