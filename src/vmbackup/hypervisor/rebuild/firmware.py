"""Firmware, its variables, direct kernel boot and the TPM."""

import fnmatch

from vmbackup.hypervisor.boot_files import KINDS
from vmbackup.hypervisor.define.capabilities import Firmware
from vmbackup.hypervisor.rebuild.draft import Draft, drop
from vmbackup.hypervisor.xmltree import Element, element

_INSTALL = "install this host's UEFI firmware (package ovmf, edk2-ovmf or qemu-efi-aarch64) and do it again"
_TPM_INSTALL = "install swtpm and swtpm-tools and do it again, or let the guest do without: --without tpm"
_KERNEL_FILES = ("kernel", "initrd", "dtb", "shim")


def fit(draft: Draft) -> None:
    """All of it."""
    found = draft.root.find("os")
    if found is not None:
        _bring(draft, found)
        _kernel(draft, found)
        _loader(draft, found)
    _tpm(draft)


def uses_uefi(os: Element) -> bool:
    """Whether the guest of this <os> boots by firmware with variables."""
    loader = os.find("loader")
    stateless = loader is not None and loader.get("stateless") == "yes"
    pflash = loader is not None and loader.get("type") == "pflash"
    return not stateless and (os.get("firmware") == "efi" or pflash or os.find("nvram") is not None)


def _bring(draft: Draft, os: Element) -> None:
    """Files that were brought along are found where they are put."""
    for tag, kind in KINDS.items():
        for each in os.findall(tag):
            path = (each.text or "").strip()
            place = draft.wishes.boot_files.get(path)
            if place is not None:
                each.text = str(place)
                why = "is another file here" if draft.host.present(path) else "is not here"
                draft.note(f"the {kind} {path} {why}: the restored copy {place} instead")


def _is_here(draft: Draft, path: str) -> bool:
    return draft.host.present(path) or path in map(str, draft.wishes.boot_files.values())


def _kernel(draft: Draft, os: Element) -> None:
    """Files of its host that the guest is started from, where they are not here nor brought along."""
    if missing := _missing(draft, os, *_KERNEL_FILES):
        drop(os, *_KERNEL_FILES, "cmdline")
        draft.lack(
            "kernel",
            f"the guest is started from {', '.join(missing)} of its host, which is not here",
            "bring it here, or start the guest from its own boot loader: --without kernel",
        )
    if missing := _missing(draft, os, "acpi/table"):
        drop(os, "acpi")
        draft.lack(
            "kernel",
            f"the guest has ACPI tables out of {', '.join(missing)} of its host, which is not here",
            "bring it here, or let the guest do without: --without kernel",
        )


def _missing(draft: Draft, os: Element, *tags: str) -> list[str]:
    """The paths in these elements that this host has not."""
    paths = [(each.text or "").strip() for tag in tags for each in os.findall(tag)]
    return [path for path in paths if path and not _is_here(draft, path)]


def _loader(draft: Draft, os: Element) -> None:
    loader = os.find("loader")
    path = (loader.text or "").strip() if loader is not None else ""
    if path and not _is_here(draft, path):
        _other_loader(draft, os, path)
    elif not path and os.get("firmware") == "efi" and draft.wishes.nvram_bytes:
        _loader_of_that_size(draft, os)
    elif path:
        _chosen_already(os)
    if uses_uefi(os):
        _nvram(draft, os)


def _chosen_already(os: Element) -> None:
    """A newer libvirt (from 9.2) tells what it chose beside that it may choose; an older one refuses both together."""
    os.attrib.pop("firmware", None)
    drop(os, "firmware")


def _other_loader(draft: Draft, os: Element, path: str) -> None:
    if not uses_uefi(os):
        draft.lack("firmware", f"the firmware {path} is not here", "bring it here")
        drop(os, "loader")
        return
    chosen = _choose(draft, os)
    if chosen is None:
        draft.lack("firmware", f"the UEFI firmware {path} is not here, nor one like it", _INSTALL)
        drop(os, "loader", "nvram", "firmware")
        os.attrib.pop("firmware", None)
        return
    _set_loader(os, chosen)
    draft.note(f"the UEFI firmware {path} is not here: {chosen.executable} instead")


def _loader_of_that_size(draft: Draft, os: Element) -> None:
    """Where libvirt would choose: the variables that are brought along fit firmware of their size only."""
    chosen = _choose(draft, os)
    if chosen is None:
        draft.lack("firmware", "this host has no UEFI firmware that the guest's variables fit", _INSTALL)
        os.attrib.pop("firmware", None)
        drop(os, "firmware", "nvram")
    else:
        _set_loader(os, chosen)


def _choose(draft: Draft, os: Element) -> Firmware | None:
    """One with the same say on Secure Boot, for the machine, with variables of the same size."""
    secure, machine = _secure(os), _machine(os)
    size = draft.wishes.nvram_bytes
    fits = [
        each
        for each in draft.host.firmware
        if each.secure_boot == secure
        and any(fnmatch.fnmatchcase(machine, pattern) for pattern in each.machines)
        and size in (0, each.nvram_bytes)
    ]
    # Without variables of its own the guest gets the template: one with the vendors' keys where it had Secure Boot.
    return min(fits, key=lambda each: each.enrolled_keys != secure, default=None)


def _machine(os: Element) -> str:
    kind = os.find("type")
    return kind.get("machine", "") if kind is not None else ""


def _secure(os: Element) -> bool:
    loader = os.find("loader")
    if loader is not None and loader.get("secure") == "yes":
        return True
    feature = os.find("./firmware/feature[@name='secure-boot']")
    return feature is not None and feature.get("enabled") == "yes"


def _set_loader(os: Element, chosen: Firmware) -> None:
    """The explicit form, which every libvirt takes."""
    _chosen_already(os)
    secure = {"secure": "yes"} if chosen.secure_boot else {}
    drop(os, "loader")
    loader = element("loader", {"readonly": "yes", **secure, "type": "pflash"}, chosen.executable)
    kind = os.find("type")
    os.insert(list(os).index(kind) + 1 if kind is not None else 0, loader)
    nvram = os.find("nvram")
    if nvram is None:
        nvram = element("nvram")
        os.insert(list(os).index(loader) + 1, nvram)
    nvram.attrib.clear()
    nvram.set("template", chosen.template)


def _nvram(draft: Draft, os: Element) -> None:
    nvram = os.find("nvram")
    if nvram is None:
        nvram = element("nvram")
        os.append(nvram)
    if not draft.host.present(nvram.get("template", "")):
        nvram.attrib.pop("template", None)
        nvram.attrib.pop("templateFormat", None)
    nvram.attrib.pop("type", None)
    drop(nvram, "source")
    draft.nvram = draft.wishes.nvram
    if draft.wishes.nvram is not None:
        nvram.text = str(draft.wishes.nvram)
        return
    nvram.attrib.pop("format", None)
    nvram.text = None
    if not nvram.attrib:
        os.remove(nvram)
    draft.warn(
        "the restore point holds no UEFI variables: the guest starts with those of the firmware's template (boot "
        "entries and enrolled keys are gone)"
    )


def _tpm(draft: Draft) -> None:
    for tpm in draft.devices.findall("tpm"):
        backend = tpm.find("backend")
        kind = backend.get("type", "") if backend is not None else ""
        if backend is None or kind == "passthrough":
            _passed_through(draft, tpm)
        elif kind == "emulator":
            _emulated(draft, tpm, backend)
        elif not draft.host.present(_socket(backend)):
            draft.devices.remove(tpm)
            draft.lack("tpm", f"the external TPM of the guest ({_socket(backend)}) is not here", "--without tpm")


def _socket(backend: Element) -> str:
    source = backend.find("source")
    return source.get("path", "") if source is not None else ""


def _passed_through(draft: Draft, tpm: Element) -> None:
    device = tpm.find("./backend/device")
    path = device.get("path", "/dev/tpm0") if device is not None else "/dev/tpm0"
    if not draft.host.present(path):
        draft.devices.remove(tpm)
        draft.lack("tpm", f"the guest has its host's TPM {path}, which is not here", "--without tpm")


def _emulated(draft: Draft, tpm: Element, backend: Element) -> None:
    if not draft.allows("tpm", "emulator"):
        draft.devices.remove(tpm)
        draft.lack("tpm", "the guest has an emulated TPM, and this host has no program for one (swtpm)", _TPM_INSTALL)
        return
    encryption = backend.find("encryption")
    secret = encryption.get("secret", "") if encryption is not None else ""
    if secret and secret not in draft.host.secrets:
        draft.devices.remove(tpm)
        draft.lack(
            "tpm",
            f"the state of the guest's TPM is encrypted with libvirt's secret {secret}, which is not here",
            "define it with its value ('virsh secret-define', 'virsh secret-set-value') and do it again",
        )
        return
    drop(backend, "source")  # where its state lies: libvirt's own place is taken
    draft.tpm_version = backend.get("version", "2.0")
    if not draft.wishes.tpm:
        draft.warn(
            "the restore point holds no TPM state: the guest gets an empty TPM (have the recovery keys of BitLocker or "
            "LUKS at hand)"
        )
    elif draft.clone:
        draft.note("the guest has the TPM of the original, with its identity and its keys")
