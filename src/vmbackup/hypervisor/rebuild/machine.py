"""Domain type, emulator, machine type and CPU: those that this host's QEMU has."""

import re
from collections.abc import Iterable, Mapping

from vmbackup.hypervisor.rebuild.draft import Draft
from vmbackup.hypervisor.xmltree import Element, render

# A machine type is a family and a version: pc-q35-9.2, pc-q35-rhel9.4.0, pc-i440fx-8.1+pve0, pc-q35-jammy-hpb.
_FAMILY = re.compile(r"(pc-i440fx|pc-q35|q35|pc|virt|pseries|s390-ccw-virtio)(?:-(.+))?")
_VERSION = re.compile(r"(|[a-z]+)(\d+(?:\.\d+)*)(?:\+pve\d+)?(?:-hpb)?(?:-sxxm)?")
_SAME = {"pc": "pc-i440fx", "q35": "pc-q35"}
# In place of a CPU that the host lacks, best first: what migrates, what is fastest, what emulation can do.
_SUBSTITUTES = ("host-model", "host-passthrough", "maximum")
# Of a CPU's definition these describe the guest and not the host's processor.
_OF_THE_GUEST = ("topology", "numa")


def fit(draft: Draft) -> None:
    """All four."""
    _domain_type(draft)
    _emulator(draft)
    _machine(draft)
    _cpu(draft)


def _domain_type(draft: Draft) -> None:
    wanted = draft.root.get("type", "kvm")
    if wanted != draft.host.domain_type:
        draft.root.set("type", draft.host.domain_type)
        if wanted == "kvm":
            draft.warn("this host has no KVM for the guest: it is emulated, and many times slower")


def _emulator(draft: Draft) -> None:
    found = draft.devices.find("emulator")
    old = (found.text or "").strip() if found is not None else ""
    if found is None or not draft.host.emulator or old == draft.host.emulator or draft.host.present(old):
        return
    found.text = draft.host.emulator
    draft.note(f"the emulator {old} is not here: {draft.host.emulator} instead")


def _machine(draft: Draft) -> None:
    kind = draft.root.find("./os/type")
    wanted = kind.get("machine") if kind is not None else None
    if kind is None or not wanted or not draft.host.machines:
        return
    found = nearest(wanted, draft.host.machines)
    if found is None:
        del kind.attrib["machine"]
        families = ", ".join(sorted({name for name in draft.host.machines if "." not in name})[:8])
        draft.lack(
            "machine",
            f"this host's QEMU has no machine type like {wanted}",
            f"restore it on a host whose QEMU has one; this one has {families}",
        )
    elif found != wanted:
        kind.set("machine", found)
        draft.note(f"machine type {wanted} is not here: {found} instead (Windows may find new devices once)")


def nearest(wanted: str, machines: Mapping[str, str]) -> str | None:
    """The machine of `machines` that is most like `wanted`: itself, else of its family.

    Of the same vendor the newest that is not newer, else the oldest; of another vendor the newest, for their
    versions do not compare. None where the family is not here.
    """
    if wanted in machines:
        return wanted
    parsed = _parse(wanted)
    if parsed is None:
        return None
    family, vendor, version = parsed
    known = _versions(family, machines)
    same = sorted((number, name) for (maker, number), name in known.items() if maker == vendor)
    if same and version:
        older = [name for number, name in same if number <= version]
        return older[-1] if older else same[0][1]
    aliased = [machines[name] for name in machines if _SAME.get(name, name) == family]
    if aliased:
        return aliased[0]
    newest = max(known.items(), default=None)
    return newest[1] if newest else None


def _versions(family: str, machines: Iterable[str]) -> dict[tuple[str, tuple[int, ...]], str]:
    found = {}
    for name in machines:
        parsed = _parse(name)
        if parsed and parsed[0] == family and parsed[2]:
            found[parsed[1:]] = name
    return found


def _parse(machine: str) -> tuple[str, str, tuple[int, ...]] | None:
    """Family, vendor and version; an empty version where there is none to compare."""
    match = _FAMILY.fullmatch(machine)
    if match is None:
        return None
    family, rest = _SAME.get(match[1], match[1]), match[2] or ""
    version = _VERSION.fullmatch(rest)
    if version is None:
        return family, rest, ()
    return family, version[1], tuple(map(int, version[2].split(".")))


def _cpu(draft: Draft) -> None:
    cpu = draft.root.find("cpu")
    if cpu is None:
        return
    mode = cpu.get("mode", "custom")
    model = (cpu.findtext("model") or "").strip()
    if mode == "custom" and not model:
        return  # only a topology
    if mode in draft.host.cpu_modes and (mode != "custom" or draft.host.cpu_fits(render(cpu))):
        return
    wanted = model if mode == "custom" else mode
    instead = next((each for each in _SUBSTITUTES if each in draft.host.cpu_modes), None)
    _replace(cpu, instead)
    what = f"the CPU mode {instead}" if instead else "QEMU's default CPU"
    draft.note(f"the CPU {wanted} is more than this host can give: {what} instead")


def _replace(cpu: Element, mode: str | None) -> None:
    for name in ("mode", "match", "check", "migratable"):
        cpu.attrib.pop(name, None)
    kept = {child for child in cpu if child.tag in _OF_THE_GUEST}
    if mode is not None:
        cpu.set("mode", mode)
        # What the guest must not see stays hidden: it may crash on it.
        kept |= {child for child in cpu if child.tag == "feature" and child.get("policy") in ("disable", "forbid")}
    for child in list(cpu):
        if child not in kept:
            cpu.remove(child)
