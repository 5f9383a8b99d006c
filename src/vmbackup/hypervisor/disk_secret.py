"""The passphrase of an encrypted disk, as libvirt keeps it."""

from typing import Any

from vmbackup.errors import HypervisorError
from vmbackup.hypervisor import _libvirt as lv
from vmbackup.hypervisor.xmltree import Element

_VOLUME = 1  # VIR_SECRET_USAGE_TYPE_VOLUME


def secret_of(raw: Any, disk: Element) -> bytes | None:
    """None for a disk that QEMU does not encrypt. Raises HypervisorError, whose message is a reason: "it is ..."."""
    encryption = disk.find("./source/encryption")
    if encryption is None:
        encryption = disk.find("./encryption")
    if encryption is None:
        return None
    secret = encryption.find("./secret")
    if secret is None or encryption.get("format") != "luks":
        raise HypervisorError(f"it is encrypted as {encryption.get('format')}")
    try:
        if secret.get("uuid"):
            return bytes(raw.secretLookupByUUIDString(secret.get("uuid")).value(0))
        return bytes(raw.secretLookupByUsage(_VOLUME, secret.get("usage", "")).value(0))
    except lv.binding().libvirtError as error:
        text = str(error.get_error_message())
        raise HypervisorError(f"it is encrypted, and libvirt does not give its secret ({text})") from error
