"""Guests as virt-install, virt-manager, oVirt, Proxmox and Windows administrators made them, put right for a host."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmbackup.errors import UsageError
from vmbackup.hypervisor.define.capabilities import Capabilities, Firmware
from vmbackup.hypervisor.rebuild.guest import NbdSource, NewDisk, Rebuilt, Wishes, rebuild
from vmbackup.hypervisor.rebuild.machine import nearest

GUESTS = Path(__file__).parent / "guests"
QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
FIRMWARE = (
    Firmware("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", 540672, False, False, ("pc-q35-*",)),
    Firmware("/usr/share/OVMF/SECBOOT.fd", "/usr/share/OVMF/VARS.fd", 540672, True, False, ("pc-q35-*",)),
    Firmware("/usr/share/OVMF/SECBOOT.fd", "/usr/share/OVMF/VARS.ms.fd", 540672, True, True, ("pc-q35-*",)),
    Firmware("/usr/share/OVMF/OLD_SECBOOT.fd", "/usr/share/OVMF/OLD.fd", 131072, True, True, ("pc-q35-*",)),
)
PRESENT = frozenset(
    ("/usr/bin/qemu-system-x86_64", "/usr/share/OVMF/VARS.fd", "/usr/share/OVMF/VARS.ms.fd", "/dev/vhost-vsock")
)
DEBIAN = Capabilities(
    emulator="/usr/bin/qemu-system-x86_64",
    machines={
        "pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2", "pc-i440fx-7.2": "pc-i440fx-7.2",
        "pc-q35-7.2": "pc-q35-7.2", "pc-q35-7.1": "pc-q35-7.1", "pc-q35-2.6": "pc-q35-2.6",
    },
    enums={
        "graphics": frozenset(("vnc", "spice")), "video": frozenset(("virtio", "qxl", "vga")),
        "tpm": frozenset(("emulator", "passthrough")),
    },
    firmware=FIRMWARE,
    networks=frozenset(("default",)),
    bridges=frozenset(("br0",)),
    interfaces=frozenset(("eno1", "br0", "lo")),
    addresses=frozenset(("127.0.0.1", "10.9.9.9")),
    cpus=frozenset(range(4)),
    memory_bytes=32 << 30,
    security_models=frozenset(("apparmor", "dac")),
    libvirt=9_001_000,
    present=PRESENT.__contains__,
)  # fmt: skip


def chance() -> Callable[[int], bytes]:
    """0101..., 0202..., and so on."""
    counter = itertools.count(1)
    return lambda size: bytes([next(counter)]) * size


def rebuilt(guest: str, host: Capabilities = DEBIAN, **wishes: Any) -> tuple[Rebuilt, ET.Element]:
    """The guest of a file (or XML) with all its disks in /images."""
    xml = guest if guest.startswith("<") else (GUESTS / f"{guest}.xml").read_text()
    targets = [t.get("dev", "") for t in ET.fromstring(xml).findall("./devices/disk[@device='disk']/target")]
    disks = {target: NewDisk(Path(f"/images/{target}.qcow2")) for target in targets}
    made = rebuild(xml, Wishes(**{"disks": disks, **wishes}), host, chance=chance())
    return made, ET.fromstring(made.xml)


def said(made: Rebuilt) -> str:
    """Every sentence."""
    return "\n".join((*made.notes, *made.warnings, *map(str, made.lacking)))


def attribute(root: ET.Element, path: str, name: str) -> str | None:
    found = root.find(path)
    assert found is not None, path
    return found.get(name)


# Who it is


def test_a_move_keeps_the_guest() -> None:
    """Name, UUID, MAC address, and all devices that describe the guest, with their addresses."""
    made, root = rebuilt("virt-install", keep_uuid=True, keep_mac=True)
    original = ET.parse(GUESTS / "virt-install.xml").getroot()
    assert (made.name, made.uuid) == ("web1", original.findtext("uuid"))
    assert (root.findtext("name"), root.findtext("uuid")) == (made.name, made.uuid)
    assert attribute(root, "./devices/interface/mac", "address") == "52:54:00:6b:3c:58"
    places = [each.attrib for each in root.findall("./devices/*/address")]
    assert places == [each.attrib for each in original.findall("./devices/*/address")]
    assert [each.tag for each in root] == [each.tag for each in original]
    assert attribute(root, "./os/type", "machine") == "pc-q35-7.2"
    assert attribute(root, "./cpu", "mode") == "host-passthrough"
    assert not made.lacking
    assert not made.warnings
    assert len(made.notes) == 2, "the machine and the medium, nothing else"


def test_a_clone_is_another_guest() -> None:
    """With a UUID, MAC address and name of its own; the same chance gives the same guest."""
    made, root = rebuilt("virt-install", name="web2")
    assert (made.name, made.uuid) == ("web2", "01010101-0101-4101-8101-010101010101")
    assert root.findtext("uuid") == made.uuid
    assert attribute(root, "./devices/interface/mac", "address") == "52:54:00:02:02:02"
    assert rebuilt("virt-install", name="web2")[0].xml == made.xml


def test_a_clone_may_keep_each() -> None:
    made, root = rebuilt("virt-install", name="web2", keep_mac=True)
    assert made.uuid.startswith("0101")
    assert attribute(root, "./devices/interface/mac", "address") == "52:54:00:6b:3c:58"


def test_the_smbios_uuid_is_the_guests() -> None:
    """libvirt refuses a domain with two."""
    made, root = rebuilt("ovirt", name="copy", networks=None)
    assert root.findtext("./sysinfo/system/entry[@name='uuid']") == made.uuid
    assert root.findtext("./sysinfo/system/entry[@name='serial']") == "4c4c4544-0051-3610-8054-b7c04f485432"


@pytest.mark.parametrize("keep", [True, False])
def test_a_restored_guest_has_a_new_generation(keep: bool) -> None:
    """Also where it keeps its UUID: its past was taken back."""
    made, root = rebuilt("windows", keep_uuid=keep, networks=None)
    assert root.findtext("genid") not in (None, "43dc0cf8-809b-4adf-9bea-a9abb5f3d90e", made.uuid)
    assert "generation id" in said(made)


def test_what_is_no_domain() -> None:
    for text in ("<network/>", "nonsense", "<!DOCTYPE x><domain/>"):
        with pytest.raises(ValueError, match=r"not|no"):
            rebuild(text, Wishes(), DEBIAN)


# Machine, emulator, CPU

MACHINES = {
    "pc": "pc-i440fx-7.2", "q35": "pc-q35-7.2",
    **{name: name for name in ("pc-i440fx-7.2", "pc-q35-7.2", "pc-q35-7.1", "pc-q35-6.2", "pc-q35-2.6", "microvm")},
}  # fmt: skip
RHEL = {"q35": "pc-q35-rhel9.4.0", **{n: n for n in ("pc-q35-rhel9.4.0", "pc-q35-rhel9.2.0", "pc-q35-rhel8.6.0")}}
UBUNTU = {"q35": "pc-q35-noble", **{name: name for name in ("pc-q35-noble", "pc-q35-jammy", "pc-q35-8.2")}}


@pytest.mark.parametrize(
    ("wanted", "machines", "found"),
    [
        ("pc-q35-7.1", MACHINES, "pc-q35-7.1"),
        ("pc-q35-9.2", MACHINES, "pc-q35-7.2"),
        ("pc-q35-10.0", MACHINES, "pc-q35-7.2"),
        ("pc-q35-7.0", MACHINES, "pc-q35-6.2"),
        ("pc-q35-2.4", MACHINES, "pc-q35-2.6"),
        ("pc-q35-rhel9.4.0", MACHINES, "pc-q35-7.2"),
        ("pc-q35-jammy-hpb", MACHINES, "pc-q35-7.2"),
        ("pc-q35-8.1+pve0", MACHINES, "pc-q35-7.2"),
        ("pc-q35-7.1+pve0", MACHINES, "pc-q35-7.1"),
        ("pc-i440fx-8.1+pve0", MACHINES, "pc-i440fx-7.2"),
        ("pc-i440fx-2.4", MACHINES, "pc-i440fx-7.2"),
        ("pc-0.15", MACHINES, "pc-i440fx-7.2"),
        ("pc", MACHINES, "pc"),
        ("q35", MACHINES, "q35"),
        ("microvm", MACHINES, "microvm"),
        ("isapc", MACHINES, None),
        ("s390-ccw-virtio-8.2", MACHINES, None),
        ("pc-q35-rhel9.6.0", RHEL, "pc-q35-rhel9.4.0"),
        ("pc-q35-rhel9.0.0", RHEL, "pc-q35-rhel8.6.0"),
        ("pc-q35-9.2", RHEL, "pc-q35-rhel9.4.0"),
        ("pc-i440fx-9.2", RHEL, None),
        ("pc-q35-jammy", UBUNTU, "pc-q35-jammy"),
        ("pc-q35-mantic", UBUNTU, "pc-q35-noble"),
        ("pc-q35-9.2", UBUNTU, "pc-q35-8.2"),
        ("virt-9.2", {"virt": "virt-7.2", "virt-7.2": "virt-7.2"}, "virt-7.2"),
        ("virt-9.2", {"virt-7.2": "virt-7.2", "virt-7.1": "virt-7.1"}, "virt-7.2"),
        ("virt-rhel9.2.0", {"virt-7.2": "virt-7.2", "virt-7.1": "virt-7.1"}, "virt-7.2"),
    ],
)
def test_the_nearest_machine(wanted: str, machines: dict[str, str], found: str | None) -> None:
    assert nearest(wanted, machines) == found


def test_a_machine_of_another_kind_is_lacking() -> None:
    made, root = rebuilt("proxmox", replace(DEBIAN, machines={"q35": "pc-q35-7.2", "pc-q35-7.2": "pc-q35-7.2"}))
    assert "no machine type like pc-i440fx-8.1+pve0" in said(made)
    assert attribute(root, "./os/type", "machine") is None
    (lack,) = [each for each in made.lacking if each.kind == "machine"]
    assert lack.grave
    assert "q35" in lack.hint


def test_an_emulator_that_is_not_here() -> None:
    made, root = rebuilt("ovirt", networks=None)
    assert root.findtext("./devices/emulator") == "/usr/bin/qemu-system-x86_64"
    assert "/usr/libexec/qemu-kvm is not here" in said(made)
    made, root = rebuilt("ovirt", replace(DEBIAN, present=lambda _path: True), networks=None)
    assert root.findtext("./devices/emulator") == "/usr/libexec/qemu-kvm", "one of one's own stays"


def test_no_kvm() -> None:
    """It runs emulated, and what only KVM can do is replaced."""
    host = replace(DEBIAN, domain_type="qemu", cpu_modes=frozenset(("maximum", "host-model", "custom")))
    made, root = rebuilt("virt-install", host)
    assert root.get("type") == "qemu"
    assert attribute(root, "cpu", "mode") == "host-model"
    assert attribute(root, "cpu", "migratable") is None
    assert "no KVM" in "".join(made.warnings)


def test_a_cpu_that_fits_stays() -> None:
    asked: list[str] = []

    def fits(xml: str) -> bool:
        asked.append(xml)
        return True

    made, root = rebuilt("ovirt", replace(DEBIAN, cpu_fits=fits), networks=None)
    assert root.findtext("./cpu/model") == "Cascadelake-Server-noTSX"
    assert "Cascadelake" not in said(made)
    assert "<cpu" in asked[0]


@pytest.mark.parametrize(
    ("modes", "mode"),
    [
        (("host-passthrough", "host-model", "custom"), "host-model"),
        (("maximum", "custom"), "maximum"),
        (("custom",), None),
    ],
)
def test_a_cpu_that_does_not_fit(modes: tuple[str, ...], mode: str | None) -> None:
    """The best that the host has instead; the guest's topology and NUMA cells and what it must not see stay."""
    host = replace(DEBIAN, cpu_fits=lambda _xml: False, cpu_modes=frozenset(modes))
    made, root = rebuilt("ovirt", host, networks=None)
    cpu = root.find("cpu")
    assert cpu is not None
    assert cpu.get("mode") == mode
    assert (cpu.get("match"), cpu.find("model"), cpu.find("vendor")) == (None, None, None)
    assert attribute(root, "./cpu/topology", "cores") == "4"
    assert attribute(root, "./cpu/numa/cell", "memory") == "16777216"
    assert [feature.get("name") for feature in cpu.findall("feature")] == (["mpx"] if mode else [])
    assert "Cascadelake-Server-noTSX is more than this host can give" in said(made)


# Disks


def test_each_disk_is_the_restored_one() -> None:
    """Nothing of the old image is left; all that describes the drive is."""
    made, root = rebuilt("ovirt", networks=None)
    disk = root.find("./devices/disk/target[@dev='sda']/..")
    assert disk is not None
    assert (disk.get("type"), attribute(disk, "source", "file")) == ("file", "/images/sda.qcow2")
    assert list(disk.findall("./source/*")) == []
    driver = disk.find("driver")
    assert driver is not None
    assert driver.attrib == {
        "name": "qemu", "type": "qcow2", "cache": "none", "error_policy": "stop", "io": "native",
    }  # fmt: skip
    assert disk.findtext("serial") == "dd0e1a4c-7d0e-4d9f-9f0c-38d3a3e6f8f1"
    assert attribute(disk, "boot", "order") == "1"
    assert "rhev" not in made.xml.replace("/rhev/lease", "")


def test_a_volume_with_a_backing_chain() -> None:
    made, root = rebuilt("virt-manager", networks=None)
    assert attribute(root, "./devices/disk", "type") == "file"
    assert root.find("./devices/disk/backingStore") is None
    assert "template.qcow2" not in made.xml


def test_a_disk_of_ceph_becomes_a_file() -> None:
    _, root = rebuilt("proxmox", networks=None)
    assert attribute(root, "./devices/disk", "type") == "file"
    assert root.find("./devices/disk/auth") is None
    assert root.find("./devices/disk/source/host") is None


def test_a_block_device() -> None:
    _, root = rebuilt(
        "hardware", disks={"vda": NewDisk(Path("/dev/vg/new"), "raw", block=True)}, networks=None
    )
    disk = root.find("./devices/disk")
    assert disk is not None
    assert (disk.get("type"), attribute(disk, "source", "dev")) == ("block", "/dev/vg/new")
    assert attribute(disk, "driver", "type") == "raw"


def test_an_export() -> None:
    """On a unix socket; the guest waits for its server where libvirt can tell QEMU so."""
    source = NbdSource("vda", Path("/run/served.sock"), reconnect_seconds=60)
    for libvirt, waits in ((9_000_000, False), (9_002_000, True)):
        host = replace(DEBIAN, libvirt=libvirt)
        _, root = rebuilt("windows", host, disks={"vda": NewDisk(source, "raw")}, networks=None)
        disk = root.find("./devices/disk")
        assert disk is not None
        assert (disk.get("type"), attribute(disk, "driver", "type")) == ("network", "raw")
        assert disk.find("./driver/metadata_cache") is None, "a cache of qcow2's tables"
        assert attribute(disk, "./source/host", "socket") == "/run/served.sock"
        assert (disk.find("./source/reconnect[@delay='60']") is not None) == waits


def test_an_overlay_on_an_export() -> None:
    """The whole chain is told, so that libvirt opens nothing."""
    new = NewDisk(Path("/images/o.qcow2"), backing=NbdSource("vda", host="10.0.0.1", port=10810), driver={"io": None})
    _, root = rebuilt("virt-manager", disks={"vda": new}, networks=None)
    disk = root.find("./devices/disk")
    assert disk is not None
    assert attribute(disk, "source", "file") == "/images/o.qcow2"
    assert attribute(disk, "./backingStore/source/host", "port") == "10810"
    assert attribute(disk, "./backingStore/format", "type") == "raw"
    assert disk.find("./backingStore/backingStore") is not None
    assert attribute(disk, "driver", "io") is None


def test_native_io_needs_its_cache_mode() -> None:
    """libvirt refuses one without the other."""
    new = NewDisk(Path("/images/o.qcow2"), driver={"cache": "unsafe"})
    _, root = rebuilt("virt-manager", disks={"vda": new}, networks=None)
    assert attribute(root, "./devices/disk/driver", "cache") == "unsafe"
    assert attribute(root, "./devices/disk/driver", "io") is None


def test_an_encrypted_disk() -> None:
    """It needs its secret here, or is not encrypted any more, which is said."""
    made, root = rebuilt("windows", networks=None)
    assert root.find(".//encryption") is None
    assert "vda was encrypted on its host, and is not any more" in "".join(made.warnings)
    disks = {"vda": NewDisk(Path("/images/vda.qcow2"), encrypted=True)}
    made, root = rebuilt("windows", disks=disks, networks=None)
    assert "secret 0f7b3c0e-8b6e-45f0-b7e1-3c8f5a2d9d10, which is not here" in said(made)
    secrets = frozenset(("0f7b3c0e-8b6e-45f0-b7e1-3c8f5a2d9d10",))
    made, root = rebuilt("windows", replace(DEBIAN, secrets=secrets), disks=disks, networks=None)
    assert attribute(root, "./devices/disk/source/encryption", "format") == "luks"
    assert not [lack for lack in made.lacking if lack.kind == "secrets"]


def test_encrypted_where_the_guest_knows_no_secret() -> None:
    disks = {"vda": NewDisk(Path("/images/vda.qcow2"), encrypted=True)}
    made, _ = rebuilt("virt-install", disks=disks)
    assert [lack.kind for lack in made.lacking] == ["secrets"]


def test_media() -> None:
    """One that is not here leaves an empty drive; an empty drive and one that is here stay as they are."""
    made, root = rebuilt("virt-install")
    assert root.find("./devices/disk[@device='cdrom']/source") is None
    assert "debian-12.iso in drive sda is not here" in said(made)
    made, root = rebuilt("virt-install", replace(DEBIAN, present=lambda _path: True))
    assert attribute(root, "./devices/disk[@device='cdrom']/source", "file") == "/var/lib/libvirt/boot/debian-12.iso"
    assert "debian-12.iso" not in said(made)
    assert "drive" not in said(rebuilt("ovirt", networks=None)[0])


def test_disks_that_no_restore_point_has() -> None:
    """A shared or passed-through one is lacking, unless it is here; a plain one that was not restored goes."""
    made, root = rebuilt("ovirt", networks=None)
    assert root.find("./devices/disk/target[@dev='sdb']") is None
    assert "disk sdb is not in the restore point, and /dev/mapper/36001405 is not here" in said(made)
    one = {"vda": NewDisk(Path("/images/vda.raw"), "raw")}
    made, root = rebuilt("hardware", replace(DEBIAN, present=lambda _path: True), disks=one, networks=None)
    assert attribute(root, "./devices/disk/target[@dev='vdb']/../source", "dev") == "/dev/vg/quorum"
    assert "disk vdb is not in the restore point: the guest gets /dev/vg/quorum" in said(made)
    made, root = rebuilt("virt-install", disks={})
    assert root.find("./devices/disk[@device='disk']") is None
    assert "disk vda is not restored" in "".join(made.warnings)


# Networks


def test_no_network_at_all() -> None:
    """As for a drill: no interface, whatever its type, and nothing is lacking for it."""
    for guest in ("virt-manager", "hardware", "ovirt"):
        made, root = rebuilt(guest, networks=None)
        assert root.find("./devices/interface") is None
        assert not [lack for lack in made.lacking if lack.kind in ("network", "filters")]


def test_a_network_that_is_not_here() -> None:
    """It is named with the option that mends it."""
    made, root = rebuilt("virt-manager")
    lacks = [lack for lack in made.lacking if lack.kind == "network"]
    assert [str(lack) for lack in lacks] == [
        "the bridge br-office of the guest is not on this host",
        "the network device eno2 of the guest is not on this host",
    ]
    assert lacks[0].hint == "map it: --network br-office=TO, where TO is one of br0, default, or none"
    assert root.find("./devices/interface") is None


@pytest.mark.parametrize(
    ("to", "kind", "source"),
    [
        ("default", "network", {"network": "default"}),
        ("br0", "bridge", {"bridge": "br0"}),
        ("bridge:br0", "bridge", {"bridge": "br0"}),
        ("network:default", "network", {"network": "default"}),
        ("direct:eno1", "direct", {"dev": "eno1", "mode": "bridge"}),
    ],
)
def test_a_mapped_network(to: str, kind: str, source: dict[str, str]) -> None:
    """The card stays what it was to the guest."""
    made, root = rebuilt("windows", networks={"domain": to}, keep_mac=True, keep_uuid=True)
    interface = root.find("./devices/interface")
    assert interface is not None
    found = interface.find("source")
    assert found is not None
    assert (interface.get("type"), found.attrib) == (kind, source)
    assert attribute(interface, "mac", "address") == "52:54:00:dc:00:01"
    assert attribute(interface, "model", "type") == "e1000e"
    assert "network" not in {lack.kind for lack in made.lacking}


def test_all_others() -> None:
    made, root = rebuilt("virt-manager", networks={"br-office": "br0", "*": "default"})
    assert [each.get("type") for each in root.findall("./devices/interface")] == ["bridge", "network"]
    assert not [lack for lack in made.lacking if lack.kind == "network"]


def test_a_network_that_is_not_active() -> None:
    """The guest would not start: which is said before, with what mends it."""
    made, root = rebuilt("virt-install", replace(DEBIAN, idle_networks=frozenset(("default",))))
    assert root.find("./devices/interface") is not None
    assert "virsh net-start default" in "".join(made.warnings)
    assert not rebuilt("virt-install")[0].warnings


def test_an_interface_that_is_not_wanted() -> None:
    made, root = rebuilt("virt-install", networks={"default": "none"})
    assert root.find("./devices/interface") is None
    assert "left out, as wished" in said(made)


def test_mapping_what_is_not_there() -> None:
    with pytest.raises(UsageError, match="connected to no network or bridge 'lan'") as error:
        rebuilt("virt-install", networks={"lan": "br0"})
    assert error.value.hint == "it is connected to default"
    with pytest.raises(UsageError, match="no network or bridge 'lan'") as error:
        rebuilt("virt-install", networks={"default": "lan"})
    assert error.value.hint == "it has br0, default"
    for wrong in ("bridge:default", "network:br0", "direct:eno7"):
        with pytest.raises(UsageError):
            rebuilt("virt-install", networks={"default": wrong})


def test_a_network_filter_that_is_not_here() -> None:
    """It protects the others from the guest: not dropped without a word."""
    made, root = rebuilt("ovirt", networks={"ovirtmgmt": "br0"})
    assert root.find("./devices/interface/filterref") is None
    assert [lack.kind for lack in made.lacking if "vdsm-no-mac-spoofing" in lack.message] == ["filters"]
    host = replace(DEBIAN, filters=frozenset(("vdsm-no-mac-spoofing",)))
    made, root = rebuilt("ovirt", host, networks={"ovirtmgmt": "br0"})
    assert root.find("./devices/interface/filterref") is not None


def test_open_vswitch() -> None:
    """A bridge of its own kind; the id of the port is the original's, a VLAN the guest's."""
    made, _ = rebuilt("proxmox", replace(DEBIAN, bridges=frozenset(("vmbr0",))))
    assert "bridge vmbr0 of the guest is not on this host" in said(made), "a bridge of Linux is another thing"
    host = replace(DEBIAN, switches=frozenset(("vmbr0", "ovs1")))
    _, root = rebuilt("proxmox", host, keep_uuid=True)
    assert attribute(root, "./devices/interface/virtualport/parameters", "interfaceid")
    _, root = rebuilt("proxmox", host)
    assert attribute(root, "./devices/interface/virtualport/parameters", "interfaceid") is None
    _, root = rebuilt("proxmox", host, networks={"vmbr0": "ovs1"})
    assert attribute(root, "./devices/interface/virtualport", "type") == "openvswitch"
    assert attribute(root, "./devices/interface/vlan/tag", "id") == "42"
    _, root = rebuilt("proxmox", host, networks={"vmbr0": "default"})
    assert root.find("./devices/interface/virtualport") is None


def test_the_name_of_a_tap_device_is_the_originals() -> None:
    for keep in (True, False):
        _, root = rebuilt("virt-manager", networks={"br-office": "br0", "eno2": "none"}, keep_uuid=keep)
        assert (root.find("./devices/interface/target") is not None) == keep


# Firmware and TPM

NVRAM = Path("/var/lib/libvirt/qemu/nvram/dc1_VARS.fd")


def test_uefi_of_another_distribution() -> None:
    """The host's build with the same say on Secure Boot, with room for the variables that come along."""
    made, root = rebuilt("windows", networks=None, nvram=NVRAM, nvram_bytes=540672)
    loader, nvram = root.find("./os/loader"), root.find("./os/nvram")
    assert loader is not None
    assert nvram is not None
    assert loader.text == "/usr/share/OVMF/SECBOOT.fd"
    assert loader.attrib == {"readonly": "yes", "secure": "yes", "type": "pflash"}
    assert (nvram.text, made.nvram) == (str(NVRAM), NVRAM)
    assert nvram.attrib == {"template": "/usr/share/OVMF/VARS.ms.fd"}
    assert "OVMF_CODE.secboot.fd is not here: /usr/share/OVMF/SECBOOT.fd instead" in said(made)


def test_variables_fit_one_size_of_firmware() -> None:
    _, root = rebuilt("windows", networks=None, nvram=NVRAM, nvram_bytes=131072)
    assert root.findtext("./os/loader") == "/usr/share/OVMF/OLD_SECBOOT.fd"
    made, root = rebuilt("windows", networks=None, nvram=NVRAM, nvram_bytes=12345)
    assert next(lack.kind for lack in made.lacking if lack.grave) == "firmware"
    assert made.nvram is None
    assert "install" in made.lacking[0].hint


def test_secure_boot_is_not_given_up() -> None:
    """Nor forced on a guest that had none."""
    secure, plain = FIRMWARE[2], FIRMWARE[0]
    for only, had, found in ((plain, True, False), (secure, False, False), (secure, True, True), (plain, False, True)):
        xml = (GUESTS / "windows.xml").read_text()
        made, _ = rebuilt(xml if had else xml.replace("secure='yes' ", ""), replace(DEBIAN, firmware=(only,)))
        assert ("firmware" not in {lack.kind for lack in made.lacking}) == found


def test_variables_elsewhere() -> None:
    """As newer libvirts tell of a file, or of a volume on the network: here they are a plain file."""
    old = "format='raw'>/var/lib/libvirt/qemu/nvram/dc1_VARS.fd</nvram>"
    xml = (GUESTS / "windows.xml").read_text()
    assert old in xml
    xml = xml.replace(old, "type='file'><source file='/old/dc1_VARS.fd'/></nvram>")
    made, root = rebuilt(xml, replace(DEBIAN, present=lambda _p: True), networks=None, nvram=NVRAM, nvram_bytes=1)
    nvram = root.find("./os/nvram")
    assert nvram is not None
    assert (nvram.text, nvram.get("type"), list(nvram)) == (str(NVRAM), None, [])
    assert made.nvram == NVRAM


def test_firmware_that_is_here_stays() -> None:
    made, root = rebuilt("windows", replace(DEBIAN, present=lambda _p: True), networks=None, nvram=NVRAM, nvram_bytes=1)
    assert root.findtext("./os/loader") == "/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd"
    assert attribute(root, "./os/nvram", "template") == "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"
    assert made.nvram == NVRAM
    assert "firmware" not in said(made)


def test_firmware_that_libvirt_chooses() -> None:
    """With variables to bring along it is chosen here: libvirt would take the first, of whatever size."""
    xml = (GUESTS / "virt-install.xml").read_text().replace("<os>", "<os firmware='efi'>")
    made, root = rebuilt(xml, nvram=NVRAM, nvram_bytes=540672)
    assert root.findtext("./os/loader") == "/usr/share/OVMF/OVMF_CODE_4M.fd"
    assert attribute(root, "os", "firmware") is None
    made, root = rebuilt(xml)
    assert attribute(root, "os", "firmware") == "efi"
    assert root.find("./os/loader") is None
    assert "no UEFI variables" in "".join(made.warnings)
    assert made.nvram is None


def test_what_a_newer_libvirt_chose() -> None:
    """It tells the choice and its path; an older one refuses both together, and takes the path."""
    host = replace(DEBIAN, present=lambda _path: True)
    made, root = rebuilt("debian-13", host, networks=None, nvram=NVRAM, nvram_bytes=540672, tpm=True)
    assert (root.find("./os/firmware"), attribute(root, "os", "firmware")) == (None, None)
    assert root.findtext("./os/loader") == "/usr/share/OVMF/OVMF_CODE_4M.ms.fd"
    assert attribute(root, "./os/loader", "secure") == "yes"
    assert made.nvram == NVRAM


def test_variables_that_were_not_kept() -> None:
    """The guest starts with the template's, and that is said."""
    made, root = rebuilt("windows", networks=None)
    assert root.findtext("./os/nvram") == ""
    assert attribute(root, "./os/nvram", "template") == "/usr/share/OVMF/VARS.ms.fd"
    assert "holds no UEFI variables" in "".join(made.warnings)


def test_a_bios_guest_has_none() -> None:
    made, root = rebuilt("virt-install", nvram=NVRAM, nvram_bytes=540672)
    assert root.find("./os/nvram") is None
    assert made.nvram is None


def test_a_tpm() -> None:
    made, root = rebuilt("windows", networks=None, tpm=True, keep_uuid=True)
    assert made.tpm_version == "2.0"
    assert "TPM" not in said(made)
    made, root = rebuilt("windows", networks=None, tpm=True)
    assert "TPM of the original" in said(made)
    made, root = rebuilt("windows", networks=None)
    assert "empty TPM" in "".join(made.warnings)
    made, root = rebuilt("windows", replace(DEBIAN, enums={"tpm": frozenset()}), networks=None, tpm=True)
    assert made.tpm_version is None
    assert root.find("./devices/tpm") is None
    assert [lack.kind for lack in made.lacking] == ["tpm"]


def test_a_tpm_with_its_state_elsewhere() -> None:
    """It is brought to libvirt's own place."""
    place = "persistent_state='yes'><source type='dir' path='/old/tpm'/></backend>"
    xml = (GUESTS / "windows.xml").read_text().replace("persistent_state='yes'/>", place)
    made, root = rebuilt(xml, networks=None, tpm=True)
    assert "/old/tpm" not in made.xml
    assert attribute(root, "./devices/tpm/backend", "persistent_state") == "yes"


def test_a_tpm_whose_state_is_encrypted() -> None:
    encrypted = "><encryption secret='s1'/></backend>"
    xml = (GUESTS / "windows.xml").read_text().replace("persistent_state='yes'/>", encrypted)
    made, _ = rebuilt(xml, networks=None, tpm=True)
    assert "secret s1, which is not here" in said(made)
    made, _ = rebuilt(xml, replace(DEBIAN, secrets=frozenset(("s1",))), networks=None, tpm=True)
    assert not made.lacking


@pytest.mark.parametrize(
    "backend", ["<backend type='passthrough'><device path='/dev/tpm0'/></backend>",
                "<backend type='external'><source type='unix' mode='connect' path='/run/tpm.sock'/></backend>"]
)  # fmt: skip
def test_a_tpm_of_the_host(backend: str) -> None:
    xml = (GUESTS / "virt-install.xml").read_text().replace("<rng ", f"<tpm model='tpm-tis'>{backend}</tpm><rng ")
    made, root = rebuilt(xml)
    assert root.find("./devices/tpm") is None
    assert [lack.kind for lack in made.lacking] == ["tpm"]


def test_direct_kernel_boot() -> None:
    made, root = rebuilt("hardware", networks=None)
    assert [root.find(f"./os/{tag}") for tag in ("kernel", "initrd", "cmdline")] == [None, None, None]
    (lack,) = [each for each in made.lacking if each.kind == "kernel"]
    assert "/var/lib/kernels/vmlinuz-hpc, /var/lib/kernels/initrd-hpc" in lack.message
    _, root = rebuilt("hardware", replace(DEBIAN, present=lambda _path: True), networks=None)
    assert root.findtext("./os/cmdline") == "root=/dev/vda console=ttyS0"


def test_a_shim_goes_with_its_kernel() -> None:
    """libvirt takes no shim without one."""
    xml = (GUESTS / "hardware.xml").read_text().replace("<cmdline>", "<shim>/srv/shim.efi</shim><cmdline>")
    made, root = rebuilt(xml, networks=None)
    assert root.find("./os/shim") is None
    (lack,) = [each for each in made.lacking if each.kind == "kernel"]
    assert "initrd-hpc, /srv/shim.efi of its host" in lack.message


def test_acpi_tables_of_the_host() -> None:
    """Refused before a byte is restored, not by QEMU at the guest's start."""
    tables = "<acpi><table type='slic'>/srv/slic</table></acpi></os>"
    xml = (GUESTS / "virt-install.xml").read_text().replace("</os>", tables)
    made, root = rebuilt(xml)
    assert root.find("./os/acpi") is None
    assert [(lack.kind, lack.grave) for lack in made.lacking] == [("kernel", True)]
    assert "/srv/slic of its host" in made.lacking[0].message
    made, root = rebuilt(xml, replace(DEBIAN, present=lambda _path: True))
    assert root.findtext("./os/acpi/table") == "/srv/slic"
    assert made.lacking == ()


def test_boot_files_that_are_brought_along() -> None:
    """Each element leads to the copy, and says why there is one; what is here as it was stays as it is."""
    xml = (GUESTS / "virt-install.xml").read_text()
    tags = "<loader type='rom'>/srv/own.bin</loader><kernel> /boot/k </kernel><initrd>/boot/i</initrd>"
    tags += "<cmdline>x</cmdline>"
    tables = "<acpi><table type='slic'>/srv/slic</table><table type='raw'>/srv/raw</table></acpi>"
    start, _, end = xml.partition("<os")
    xml = f"{start}<os><type arch='x86_64' machine='q35'>hvm</type>{tags}{tables}</os>{end.partition('</os>')[2]}"
    here = replace(DEBIAN, present=lambda path: path in ("/boot/k", "/boot/i", "/srv/raw"))
    copies = {path: Path(f"/new{path}") for path in ("/srv/own.bin", "/boot/k", "/srv/slic")}
    made, root = rebuilt(xml, here, boot_files=copies)
    found = [root.findtext(f"./os/{tag}") for tag in ("loader", "kernel", "initrd", "cmdline")]
    assert found == ["/new/srv/own.bin", "/new/boot/k", "/boot/i", "x"]
    assert [each.text for each in root.findall("./os/acpi/table")] == ["/new/srv/slic", "/srv/raw"]
    assert "the kernel /boot/k is another file here: the restored copy /new/boot/k instead" in made.notes
    assert "the acpi /srv/slic is not here: the restored copy /new/srv/slic instead" in made.notes
    assert made.lacking == ()


# The host's hardware


def test_all_that_a_machine_with_hardware_of_its_own_lacks() -> None:
    """Each is said, none is left in the XML; what costs only speed is no reason to refuse."""
    made, root = rebuilt("hardware")
    assert {lack.kind for lack in made.lacking if lack.grave} == {"host-devices", "launch-security", "kernel"}
    text = said(made)
    for sentence in (
        "bound to NUMA node 1, not here",
        "pinned to CPUs 8, 9, 10, 11, 12, 13, 14, 15, not on this host",
        "lie in hugepages",
        "65536 MiB of memory, and this host 32768 MiB",
        "encrypted by its CPU (sev)",
        "pci 0000:81:10.2",
        "pci 0000:41:00.0",
        "mdev c2177883-f1bb-47f0-914d-32a22e3a8804",
        "memory device on /dev/pmem0",
        "limits on the host's device /dev/nvme9n1",
    ):
        assert sentence in text
    assert [lack.kind for lack in made.lacking if not lack.grave] == ["placement"] * 4
    for path in (
        "numatune", "./memoryBacking/hugepages", "./devices/hostdev", "./devices/interface", "./devices/memory",
        "launchSecurity", "./blkiotune/device",
    ):  # fmt: skip
        assert root.find(path) is None
    assert root.find("./memoryBacking/locked") is not None
    assert attribute(root, "vcpu", "cpuset") is None


def test_a_host_that_has_it_all() -> None:
    """Nothing is changed but the disks."""
    host = replace(
        DEBIAN,
        nodes=frozenset((0, 1)),
        cpus=frozenset(range(16)),
        memory_bytes=128 << 30,
        pages={1 << 20: 64},
        devices=frozenset(("pci 0000:81:10.2", "pci 0000:41:00.0", "mdev c2177883-f1bb-47f0-914d-32a22e3a8804")),
        launch_security=frozenset(("sev",)),
        machines={"pc-q35-9.1": "pc-q35-9.1"},
        present=lambda _path: True,
    )
    one = {"vda": NewDisk(Path("/dev/vg/new"), "raw", block=True)}
    made, root = rebuilt("hardware", host, keep_uuid=True, keep_mac=True, disks=one)
    assert said(made) == "disk vdb is not in the restore point: the guest gets /dev/vg/quorum of this host"
    original = ET.parse(GUESTS / "hardware.xml").getroot()
    assert [each.tag for each in root.iter()] == [each.tag for each in original.iter()]


def test_too_few_hugepages() -> None:
    for pages, enough in (({1 << 20: 64}, True), ({1 << 20: 63}, False), ({2048: 1 << 20}, False)):
        made, root = rebuilt("hardware", replace(DEBIAN, pages=pages), networks=None)
        assert (root.find("./memoryBacking/hugepages") is not None) == enough
        assert ("hugepages" in said(made)) != enough


def test_pins_that_fit_stay() -> None:
    made, root = rebuilt("ovirt", networks=None)
    assert [pin.get("cpuset") for pin in root.findall("./cputune/*")] == ["2", "0-1"]
    assert "pinned to CPU 40, not on this host" in said(made)


def test_usb_devices_and_shares() -> None:
    made, root = rebuilt("virt-manager", networks=None)
    assert {lack.kind for lack in made.lacking} == {"host-devices", "shares"}
    assert "usb 046d:c52b" in said(made)
    assert "/srv/projects" in said(made)
    here = replace(DEBIAN, devices=frozenset(("usb 046d:c52b",)), present=lambda _path: True)
    made, root = rebuilt("virt-manager", here, networks=None)
    assert not made.lacking
    assert root.find("./devices/hostdev") is not None
    assert root.find("./devices/filesystem") is not None
    assert "cannot run while another guest has it" in said(made)


def test_labels_of_another_host() -> None:
    """A static label was made for the old host's users; a plain dynamic one is what every guest gets anyhow."""
    made, root = rebuilt("ovirt", networks=None)
    assert root.findall("seclabel") == []
    assert said(made).count("label") == 1
    assert "own label of dac does not fit" in said(made)


def test_leases_and_cgroups_of_another_host() -> None:
    made, root = rebuilt("ovirt", networks=None)
    assert root.find("./devices/lease") is None
    assert root.find("resource") is None
    assert "sanlock" in said(made)
    assert "/machine/ovirt" in said(made)


# Screens, consoles, sockets


def test_a_screen_on_an_address_of_another_host() -> None:
    made, root = rebuilt("virt-manager", networks=None, keep_uuid=True)
    screen = root.find("./devices/graphics")
    assert screen is not None
    assert attribute(screen, "listen", "address") == "127.0.0.1"
    assert (screen.get("listen"), screen.get("port"), screen.get("passwd")) == ("127.0.0.1", "5910", "hidden")
    assert "10.1.2.3, not of this host" in said(made)
    made, root = rebuilt("ovirt", networks=None)
    assert attribute(root, "./devices/graphics/listen", "address") == "127.0.0.1"
    assert attribute(root, "./devices/graphics/listen", "network") is None


def test_a_clone_takes_no_port_socket_or_address_of_the_original() -> None:
    made, root = rebuilt("virt-manager", networks=None)
    screen = root.find("./devices/graphics")
    assert screen is not None
    assert (screen.get("port"), screen.get("autoport"), screen.get("tlsPort")) == ("-1", "yes", None)
    assert attribute(root, "./devices/vsock/cid", "auto") == "yes"
    assert root.find("./devices/channel/source") is None
    assert attribute(root, "./devices/serial", "type") == "pty"
    assert "/var/log/desktop/console.log" in said(made)
    _, root = rebuilt("virt-manager", networks=None, keep_uuid=True)
    assert attribute(root, "./devices/vsock/cid", "address") == "17"
    here = replace(DEBIAN, present=lambda _path: True)
    _, root = rebuilt("virt-manager", here, networks=None, keep_uuid=True)
    assert attribute(root, "./devices/serial/source", "path") == "/var/log/desktop/console.log"


@pytest.mark.parametrize(("clone", "folder", "why"), [
    (False, True, None),
    (False, False, "has no folder on this host"),
    (True, True, "is the original's"),
])
def test_the_log_of_a_console(clone: bool, folder: bool, why: str | None) -> None:
    """A guest whose log has no folder would not start, and two guests do not write one."""
    xml = (GUESTS / "virt-install.xml").read_text()
    xml = xml.replace("<serial type='pty'>", "<serial type='pty'><log file='/srv/logs/web1.log' append='on'/>", 1)
    host = replace(DEBIAN, present=lambda path: folder or path != "/srv/logs")
    made, root = rebuilt(xml, host, keep_uuid=not clone)
    assert (root.find("./devices/serial/log") is None) == (why is not None)
    assert (f"the serial says is not logged: /srv/logs/web1.log {why}" in said(made)) == (why is not None)


def test_a_qemu_without_spice() -> None:
    """As from RHEL 9 on: a VNC screen and a card that is there, and nothing that only SPICE could use."""
    enums = {"graphics": frozenset(("vnc",)), "video": frozenset(("virtio", "vga"))}
    made, root = rebuilt("virt-manager", replace(DEBIAN, enums=enums), networks=None)
    screen = root.find("./devices/graphics")
    assert screen is not None
    assert screen.get("type") == "vnc"
    assert [child.tag for child in screen] == ["listen"]
    assert [channel.get("type") for channel in root.findall("./devices/channel")] == ["unix"]
    assert root.find("./devices/redirdev") is None
    assert attribute(root, "./devices/audio", "type") == "none"
    model = root.find("./devices/video/model")
    assert model is not None
    assert model.attrib == {"type": "virtio", "heads": "1", "primary": "yes"}
    assert "no SPICE" in said(made)
    assert "no video card qxl" in said(made)


def test_a_watchdog_that_only_a_newer_libvirt_can_name() -> None:
    made, root = rebuilt("virt-install", replace(DEBIAN, libvirt=9_000_000))
    assert root.find("./devices/watchdog") is None
    assert "itco" in said(made)
    assert rebuilt("virt-install")[1].find("./devices/watchdog") is not None


def test_a_vsock_where_the_kernel_has_none() -> None:
    made, root = rebuilt("virt-manager", replace(DEBIAN, present=lambda _path: False), networks=None)
    assert root.find("./devices/vsock") is None
    assert [lack.hint for lack in made.lacking if "vsock" in lack.message] == ["load it: modprobe vhost_vsock"]


def test_qemus_own_arguments_are_kept_and_said() -> None:
    made, root = rebuilt("proxmox", networks=None)
    assert next(arg.get("value") for arg in root.iter(f"{QEMU}arg")) == "-smbios"
    assert "<qemu:commandline>" in made.xml
    assert "qemu:commandline" in said(made)
    assert attribute(root, "./devices/serial", "type") == "pty"


@pytest.mark.parametrize("guest", sorted(path.stem for path in GUESTS.glob("*.xml")))
def test_what_was_rebuilt_needs_nothing_more(guest: str) -> None:
    """Rebuilt once more for the same host, as itself, nothing of it changes but its generation."""
    made, _ = rebuilt(guest, networks={"*": "default"}, nvram=NVRAM, nvram_bytes=540672, tpm=True)
    disks = {t.get("dev", ""): NewDisk(Path(f"/images/{t.get('dev')}.qcow2"))
             for t in ET.fromstring(made.xml).findall("./devices/disk[@device='disk']/target")}  # fmt: skip
    present = PRESENT | {each.executable for each in FIRMWARE}
    wishes = Wishes(keep_uuid=True, keep_mac=True, disks=disks, nvram=NVRAM, nvram_bytes=540672, tpm=True)
    again = rebuild(made.xml, wishes, replace(DEBIAN, present=present.__contains__), chance=chance())
    assert {str(lack) for lack in again.lacking} <= {str(lack) for lack in made.lacking if not lack.grave}
    assert set(again.notes) <= {note for note in made.notes if "generation" in note or "commandline" in note}
