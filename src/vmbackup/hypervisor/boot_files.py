"""The files of its host that a guest is started from, as its XML names them."""

import os
import stat
from pathlib import Path

from vmbackup.hypervisor.source import BootFile
from vmbackup.hypervisor.xmltree import Element

_LOADER = "loader"
# Below <os>, with what people call them, in the order in which they think of them.
KINDS = {"kernel": "kernel", "initrd": "initrd", "dtb": "dtb", "shim": "shim", "acpi/table": "acpi", _LOADER: "loader"}
# Firmware below these is a package's: the next host installs it.
_PACKAGED = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/libexec"))
MOST_BYTES = 1 << 30  # of one that is saved: an initrd has 100 MiB


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


def check_fit(found: os.stat_result) -> None:
    """Whether a file can be saved in a restore point. Raises ValueError."""
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 30} GiB")
