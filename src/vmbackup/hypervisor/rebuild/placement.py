"""What ties a guest to its host's hardware: NUMA nodes, CPUs, hugepages, memory encryption, labels, cgroups."""

from vmbackup.hypervisor.rebuild.draft import Draft, drop, drop_in, numbers
from vmbackup.hypervisor.xmltree import Element

_UNITS = {
    "b": 1, "bytes": 1, "KB": 1000, "k": 1 << 10, "KiB": 1 << 10, "MB": 1000**2, "M": 1 << 20, "MiB": 1 << 20,
    "GB": 1000**3, "G": 1 << 30, "GiB": 1 << 30, "TB": 1000**4, "T": 1 << 40, "TiB": 1 << 40,
}  # fmt: skip
_PINS = ("vcpupin", "emulatorpin", "iothreadpin")
_SPEED = "the guest is only slower without; add it again with 'virsh edit' where the host has something like it"
_NO_LAUNCH_SECURITY = (
    "restore it on a host that has it, or let the guest run with its memory open to the host: --without launch-security"
)


def fit(draft: Draft) -> None:
    """All of it."""
    _numa(draft)
    _pinning(draft)
    _memory(draft)
    _hugepages(draft)
    _launch_security(draft)
    _labels(draft)
    _partition(draft)


def size_of(entry: Element | None, default: str = "KiB") -> int:
    """Bytes of <memory unit='GiB'>4</memory> and its like; 0 where there is none or it is nonsense."""
    text = (entry.text or "").strip() if entry is not None else ""
    if entry is None or not text.isdecimal():
        return 0
    return int(text) * _UNITS.get(entry.get("unit", default), 1 << 10)


def _numa(draft: Draft) -> None:
    tune = draft.root.find("numatune")
    if tune is None:
        return
    wanted: set[int] = set()
    for child in tune:
        wanted |= numbers(child.get("nodeset", ""))
    missing = wanted - draft.host.nodes
    if missing:
        drop(draft.root, "numatune")
        draft.lack("placement", f"the guest's memory is bound to NUMA {_some('node', missing)}, not here", _SPEED)


def _some(thing: str, members: set[int]) -> str:
    listed = ", ".join(map(str, sorted(members)))
    return f"{thing} {listed}" if len(members) == 1 else f"{thing}s {listed}"


def _pinning(draft: Draft) -> None:
    if not draft.host.cpus:
        return
    missing: set[int] = set()
    vcpu = draft.root.find("vcpu")
    if vcpu is not None and (beyond := numbers(vcpu.get("cpuset", "")) - draft.host.cpus):
        missing |= beyond
        del vcpu.attrib["cpuset"]
    tune = draft.root.find("cputune")
    for tag in _PINS if tune is not None else ():
        for pin in drop_in(draft.root, f"./cputune/{tag}", lambda pin: _beyond(draft, pin)):
            missing |= numbers(pin.get("cpuset", "")) - draft.host.cpus
    if missing:
        draft.lack("placement", f"the guest is pinned to {_some('CPU', missing)}, not on this host", _SPEED)


def _beyond(draft: Draft, pin: Element) -> bool:
    return bool(numbers(pin.get("cpuset", "")) - draft.host.cpus)


def _memory(draft: Draft) -> None:
    wanted = size_of(draft.root.find("memory"))
    if draft.host.memory_bytes and wanted > draft.host.memory_bytes:
        draft.lack(
            "placement",
            f"the guest has {_mib(wanted)} of memory, and this host {_mib(draft.host.memory_bytes)}",
            "give it less with 'virsh setmaxmem' and 'virsh setmem' before it is started",
        )


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _hugepages(draft: Draft) -> None:
    backing = draft.root.find("memoryBacking")
    huge = backing.find("hugepages") if backing is not None else None
    if backing is None or huge is None:
        return
    need = size_of(draft.root.find("memory"))
    sizes = [_page_kib(page) for page in huge.findall("page")] or sorted(draft.host.pages)[:1]
    enough = bool(sizes) and all(draft.host.pages.get(size, 0) for size in sizes)
    enough = enough and sum(size * draft.host.pages[size] << 10 for size in set(sizes)) >= need
    if not enough:
        backing.remove(huge)
        draft.lack(
            "placement",
            f"the guest's {_mib(need)} lie in hugepages, and this host has set aside too few",
            "the guest is only slower without; 'sysctl vm.nr_hugepages' sets them aside, 'virsh edit' asks for them",
        )


def _page_kib(page: Element) -> int:
    size = page.get("size", "0")
    return int(size) * _UNITS.get(page.get("unit", "KiB"), 1 << 10) >> 10 if size.isdecimal() else 0


def _launch_security(draft: Draft) -> None:
    """Confidential computing: the guest's memory is encrypted, and its host cannot look into it."""
    for found in draft.root.findall("launchSecurity"):
        kind = found.get("type", "")
        if kind in draft.host.launch_security:
            continue
        draft.root.remove(found)
        draft.lack(
            "launch-security",
            f"the guest's memory is encrypted by its CPU ({kind}), and this host cannot do that",
            _NO_LAUNCH_SECURITY,
        )


def _labels(draft: Draft) -> None:
    """Confinement by a model that the host lacks, or with a label that was made for the original's images."""
    for label in draft.root.findall("seclabel"):
        model, kind = label.get("model", ""), label.get("type", "dynamic")
        plain = kind == "dynamic" and label.find("baselabel") is None
        if kind == "none" or (model in draft.host.security_models and not (draft.clone and kind == "static")):
            continue
        draft.root.remove(label)
        if not plain:
            draft.warn(
                f"the guest's own label of {model or 'a security model'} does not fit this host: it is confined as "
                "every other guest"
            )


def _partition(draft: Draft) -> None:
    """A cgroup that an administrator of the old host made."""
    found = draft.root.findtext("./resource/partition")
    if found is not None and found.strip() != "/machine":
        drop(draft.root, "resource")
        draft.note(f"the guest's cgroup {found.strip()} is its old host's: it runs in the usual one")
