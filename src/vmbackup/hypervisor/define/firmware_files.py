"""The UEFI builds of this host, by the descriptors that QEMU's and the distributions' packages install.

Source: docs/interop/firmware.json of QEMU. A file of a later folder is replaced by one of the same name in an earlier.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmbackup.hypervisor.define.capabilities import Firmware

_FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
_MOST = 1 << 20  # bytes of a descriptor


def installed_firmware(arch: str, folders: Sequence[Path] = _FOLDERS) -> tuple[Firmware, ...]:
    """Those with variables of their own for guests of `arch`, in the order in which libvirt would try them."""
    found = {path.name: path for folder in reversed(folders) for path in folder.glob("*.json")}
    return tuple(each for name in sorted(found) if (each := _described(found[name], arch)) is not None)


def _described(path: Path, arch: str) -> Firmware | None:
    """None where it is no such firmware, or its files or description are not there."""
    try:
        with open(path, encoding="utf-8") as file:
            told = json.loads(file.read(_MOST))
        return _firmware(told, arch)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _firmware(told: Any, arch: str) -> Firmware | None:
    mapping, features = told["mapping"], told["features"]
    targets = [target for target in told["targets"] if target["architecture"] == arch]
    if "uefi" not in told["interface-types"] or mapping["device"] != "flash" or not targets:
        return None
    executable, template = mapping["executable"], mapping["nvram-template"]
    if not os.path.exists(executable["filename"]):
        return None
    return Firmware(
        executable=executable["filename"],
        template=template["filename"],
        nvram_bytes=os.stat(template["filename"]).st_size,
        secure_boot="secure-boot" in features,
        enrolled_keys="enrolled-keys" in features,
        machines=tuple(machine for target in targets for machine in target["machines"]),
        format=executable.get("format", "raw"),
    )
