"""What libvirt tells of a host, of several versions, as capabilities."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor.define import inventory

CAPABILITIES = """<capabilities><host><cpu><arch>x86_64</arch></cpu>
<topology><cells num='2'>
<cell id='0'><pages unit='KiB' size='4'>1000</pages><pages unit='KiB' size='2048'>3</pages>
<cpus num='2'><cpu id='0'/><cpu id='2'/></cpus></cell>
<cell id='1'><pages unit='KiB' size='2048'>4</pages><cpus num='1'><cpu id='1'/></cpus></cell>
</cells></topology><secmodel><model>apparmor</model></secmodel><secmodel><model>dac</model></secmodel></host>
<guest><os_type>hvm</os_type><arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator>
<machine>pc-q35-7.2</machine><machine canonical='pc-q35-7.2'>q35</machine>
<domain type='qemu'/>{kvm}</arch></guest></capabilities>"""
KVM = "<domain type='kvm'><emulator>/usr/bin/kvm</emulator><machine>pc-q35-8.0</machine></domain>"
DOMAIN = """<domainCapabilities><cpu><mode name='host-passthrough' supported='no'/>
<mode name='custom' supported='yes'/></cpu>
<devices><graphics supported='yes'><enum name='type'><value>vnc</value></enum></graphics>
<tpm supported='no'><enum name='backendModel'><value>passthrough</value></enum></tpm></devices>
<features><sev supported='no'/>{features}</features></domainCapabilities>"""
GUEST = "<domain type='{kind}'><os><type arch='{arch}' machine='pc-q35-9.2'>hvm</type></os></domain>"


class Named:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Host:
    """As much of a virConnect as is asked."""

    def __init__(self, *, kvm: bool = True, features: str = "") -> None:
        self._kvm, self._features = kvm, features
        self.asked: tuple[Any, ...] = ()

    def getCapabilities(self) -> str:  # noqa: N802 (libvirt's)
        return CAPABILITIES.format(kvm=KVM if self._kvm else "")

    def getDomainCapabilities(self, *asked: Any) -> str:  # noqa: N802
        self.asked = asked
        return DOMAIN.format(features=self._features)

    def listAllNetworks(self, flags: int) -> list[Named]:  # noqa: N802
        return [Named("lan")] if flags else [Named("default"), Named("lan")]

    def listAllNWFilters(self, _flags: int) -> list[Named]:  # noqa: N802
        return [Named("clean-traffic")]

    def listAllSecrets(self, _flags: int) -> list[Any]:  # noqa: N802
        return []

    def getInfo(self) -> list[Any]:  # noqa: N802
        return ["x86_64", 4096]

    def getLibVersion(self) -> int:  # noqa: N802
        return 9_000_000


def read(host: Host, kind: str = "kvm", arch: str = "x86_64") -> Any:
    return inventory._read(host, ET.fromstring(GUEST.format(kind=kind, arch=arch)))


def test_a_host_with_kvm() -> None:
    """Asked for the machine type that the guest will get, with KVM's own emulator and machines."""
    host = Host()
    found = read(host)
    assert host.asked == ("/usr/bin/kvm", "x86_64", "pc-q35-8.0", "kvm", 0)
    assert (found.domain_type, found.emulator) == ("kvm", "/usr/bin/kvm")
    assert found.machines == {"pc-q35-7.2": "pc-q35-7.2", "q35": "pc-q35-7.2", "pc-q35-8.0": "pc-q35-8.0"}
    assert found.cpu_modes == {"custom"}
    assert (found.nodes, found.cpus, found.pages) == ({0, 1}, {0, 1, 2}, {2048: 7})
    assert found.memory_bytes == 4 << 30
    assert (found.networks, found.idle_networks) == ({"default", "lan"}, {"lan"})
    assert found.security_models == {"apparmor", "dac"}


def test_a_host_without() -> None:
    host = Host(kvm=False)
    assert read(host).domain_type == "qemu"
    assert host.asked == ("/usr/bin/qemu-system-x86_64", "x86_64", "pc-q35-7.2", "qemu", 0)


def test_guests_that_the_host_cannot_run() -> None:
    with pytest.raises(HypervisorError, match="runs no aarch64 guests"):
        read(Host(), arch="aarch64")


def test_what_is_told_of_devices() -> None:
    """One that is not supported has no value; one that is not told of is not known."""
    found = read(Host())
    assert found.enums == {"graphics": {"vnc"}, "tpm": frozenset()}


@pytest.mark.parametrize(
    ("features", "kinds"),
    [
        ("", set()),
        ("<launchSecurity supported='no'><enum name='sectype'><value>tdx</value></enum></launchSecurity>", set()),
        ("<s390-pv supported='yes'/>", {"s390-pv"}),
        ("<launchSecurity supported='yes'><enum name='sectype'><value>sev-snp</value></enum></launchSecurity>",
         {"sev-snp"}),
    ],
)  # fmt: skip
def test_launch_security(features: str, kinds: set[str]) -> None:
    """In the words of old and new versions."""
    assert read(Host(features=features)).launch_security == kinds
