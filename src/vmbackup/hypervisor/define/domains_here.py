"""The domains that a new guest comes to, and what of theirs it must not have."""

from dataclasses import dataclass
from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.failures import code_of
from vmbackup.hypervisor.rebuild.wishes import Rebuilt
from vmbackup.hypervisor.xmltree import Element, parse


@dataclass(frozen=True)
class Other:
    """A domain of this host, running or not."""

    name: str
    uuid: str
    macs: frozenset[str]


def domains_here(raw: Any) -> list[Other]:
    """All of them. `raw` is the virConnect."""
    return [found for domain in raw.listAllDomains(0) if (found := _other(domain)) is not None]


def _other(domain: Any) -> Other | None:
    """None for one that went away meanwhile."""
    try:
        return Other(domain.name(), domain.UUIDString(), _macs(parse(domain.XMLDesc(0))))
    except lv.binding().libvirtError as error:
        if code_of(error) == lv.NO_DOMAIN:
            return None
        raise


def _macs(root: Element) -> frozenset[str]:
    return frozenset(mac.get("address", "").lower() for mac in root.findall("./devices/interface/mac"))


def refuse_taken(rebuilt: Rebuilt, others: list[Other]) -> None:
    """Raises HypervisorError where a domain has the name or the UUID."""
    for other in others:
        if other.name == rebuilt.name:
            raise HypervisorError(
                f"there is a domain {other.name} on this host already",
                "restore a copy beside it with --name NEW; to replace it, shut it off and take it away first: "
                f"'virsh undefine {other.name} --nvram --checkpoints-metadata'",
            )
        if other.uuid == rebuilt.uuid:
            raise HypervisorError(
                f"domain {other.name} of this host has the UUID {other.uuid}",
                "restore a copy beside it: without --keep-uuid it gets one of its own",
            )


def shared_macs(rebuilt: Rebuilt, others: list[Other]) -> list[tuple[str, str]]:
    """Names of domains with a MAC address of the new guest's, and that address."""
    own = _macs(parse(rebuilt.xml))
    return [(other.name, mac) for other in others for mac in sorted(own & other.macs)]
