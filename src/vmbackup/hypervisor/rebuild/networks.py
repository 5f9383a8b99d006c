"""Network interfaces: mapped to what this host has, with their addresses kept or new."""

from collections.abc import Mapping

from vmbackup.errors import UsageError
from vmbackup.hypervisor.rebuild.draft import Draft, drop
from vmbackup.hypervisor.rebuild.wishes import EVERY_NETWORK, NO_NETWORK
from vmbackup.hypervisor.xmltree import Element, element

# The attribute of <source> that names what an interface of that type is connected to.
_NAMED_BY = {"network": "network", "bridge": "bridge", "direct": "dev"}
_PREFIXES = ("network:", "bridge:", "direct:")


def fit(draft: Draft) -> None:
    """Every <interface>."""
    networks = draft.wishes.networks
    interfaces = draft.devices.findall("interface")
    if networks is None:
        for interface in interfaces:
            draft.devices.remove(interface)
        return
    _refuse_unknown(networks, interfaces)
    for interface in interfaces:
        if _connect(draft, interface, networks):
            _active(draft, interface)
            _filter(draft, interface)
            _address(draft, interface)


def connections(interfaces: list[Element]) -> list[str]:
    """What the interfaces are connected to, each once."""
    return list(dict.fromkeys(name for each in interfaces if (name := _connection(each))))


def _connection(interface: Element) -> str:
    attribute = _NAMED_BY.get(interface.get("type", ""))
    source = interface.find("source")
    return source.get(attribute, "") if attribute and source is not None else ""


def _refuse_unknown(networks: Mapping[str, str], interfaces: list[Element]) -> None:
    known = connections(interfaces)
    for name in networks:
        if name not in (*known, EVERY_NETWORK):
            hint = f"it is connected to {', '.join(known)}" if known else "it has none that could be mapped"
            raise UsageError(f"the guest is connected to no network or bridge '{name}'", hint)


def _connect(draft: Draft, interface: Element, networks: Mapping[str, str]) -> bool:
    """False where the interface was taken out."""
    name = _connection(interface)
    wanted = networks.get(name, networks.get(EVERY_NETWORK)) if name else networks.get(EVERY_NETWORK)
    if wanted == NO_NETWORK:
        draft.devices.remove(interface)
        draft.note(f"the interface on {name or interface.get('type')} is left out, as wished")
        return False
    if wanted is not None:
        _map(draft, interface, wanted)
        return True
    if _here(draft, interface, name):
        return True
    draft.devices.remove(interface)
    draft.lack("network", *_missing(draft, interface, name))
    return False


def _here(draft: Draft, interface: Element, name: str) -> bool:
    kind = interface.get("type", "")
    if kind == "network":
        return name in draft.host.networks
    if kind == "bridge":
        switched = interface.find("./virtualport[@type='openvswitch']") is not None
        return name in (draft.host.switches if switched else draft.host.bridges)
    if kind == "direct":
        return name in draft.host.interfaces
    if kind in ("vhostuser", "vdpa"):
        source = interface.find("source")
        return source is not None and draft.host.present(source.get("path") or source.get("dev") or "")
    return True  # user, ethernet, ...: of the guest alone; hostdev: looked at with the other host devices


def _missing(draft: Draft, interface: Element, name: str) -> tuple[str, str]:
    kind = interface.get("type", "")
    what = {"network": "network", "bridge": "bridge", "direct": "network device"}.get(kind, f"{kind} socket")
    name = name or kind
    choice = _choice(draft)
    among = f"TO is one of {', '.join(choice)}, or none" if choice else "TO is none, for this host has no network"
    return f"the {what} {name} of the guest is not on this host", f"map it: --network {name}=TO, where {among}"


def _choice(draft: Draft) -> list[str]:
    return sorted(draft.host.networks | draft.host.bridges | draft.host.switches)


def _map(draft: Draft, interface: Element, wanted: str) -> None:
    kind, name = _split(draft, wanted)
    old = interface.find("source")
    position = list(interface).index(old) if old is not None else 0
    # A port of Open vSwitch, of a VLAN switch, or a macvtap belongs to the old connection.
    drop(interface, "source", "virtualport", *(("target", "script") if interface.get("type") != kind else ()))
    interface.set("type", kind)
    source = element("source", {_NAMED_BY[kind]: name})
    if kind == "direct":
        source.set("mode", "bridge")
    interface.insert(position, source)
    if kind == "bridge" and name in draft.host.switches:
        interface.append(element("virtualport", {"type": "openvswitch"}))


def _split(draft: Draft, wanted: str) -> tuple[str, str]:
    """Type and name of what is wished. Raises UsageError where it is not here."""
    host = draft.host
    places = {"network": host.networks, "bridge": host.bridges | host.switches, "direct": host.interfaces}
    for prefix in _PREFIXES:
        kind, name = prefix[:-1], wanted.removeprefix(prefix)
        if wanted.startswith(prefix) and name in places[kind]:
            return kind, name
    for kind in ("network", "bridge"):
        if wanted in places[kind]:
            return kind, wanted
    choice = ", ".join(_choice(draft)) or "no network at all"
    raise UsageError(f"this host has no network or bridge '{wanted}'", f"it has {choice}")


def _active(draft: Draft, interface: Element) -> None:
    name = _connection(interface)
    if interface.get("type") == "network" and name in draft.host.idle_networks:
        draft.warn(f"network {name} of this host is not active, and the guest needs it: 'virsh net-start {name}'")


def _filter(draft: Draft, interface: Element) -> None:
    for found in interface.findall("filterref"):
        name = found.get("filter", "")
        if name not in draft.host.filters:
            interface.remove(found)
            draft.lack(
                "filters",
                f"the network filter {name} of the guest is not on this host",
                "bring it here ('virsh nwfilter-dumpxml' there, 'virsh nwfilter-define' here), or: --without filters",
            )


def _address(draft: Draft, interface: Element) -> None:
    if not draft.wishes.keep_mac:
        drop(interface, "mac")
        interface.insert(0, element("mac", {"address": draft.new_mac()}))
    if draft.clone:
        # The name of the tap device and the id of the switch port are the original's.
        drop(interface, "target")
        for parameters in interface.findall("./virtualport/parameters"):
            parameters.attrib.pop("interfaceid", None)
            parameters.attrib.pop("instanceid", None)
