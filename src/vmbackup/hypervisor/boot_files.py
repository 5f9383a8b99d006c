"""The files of its host that a guest is started from, as its XML names them."""

import os
from pathlib import Path

from vmbackup.hypervisor.source import BootFile
from vmbackup.hypervisor.xmltree import Element

_LOADER = "loader"
# Below <os>, with what people call them, in the order in which they think of them.
KINDS = {"kernel": "kernel", "initrd": "initrd", "dtb": "dtb", "shim": "shim", "acpi/table": "acpi", _LOADER: "loader"}
# Firmware below these is a package's: the next host installs it.
_PACKAGED = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/libexec"))


def boot_files(root: Element) -> list[BootFile]:
    """Those that the guest of this XML is started from, each path once; a package's firmware is none."""
    found: dict[str, BootFile] = {}
    for tag, kind in KINDS.items():
        for each in root.findall(f"./os/{tag}"):
            path = (each.text or "").strip()
            if path and not (tag == _LOADER and _is_packaged(path)):
                found.setdefault(path, BootFile(kind, path))
    return list(found.values())


def _is_packaged(path: str) -> bool:
    """By its name, links in it unfollowed: a package's link may lead anywhere."""
    return any(Path(os.path.normpath(path)).is_relative_to(folder) for folder in _PACKAGED)
