"""QEMU's user, and how a file of ours is opened to it: also by a service that may not give files away.

Source of the attribute's form: linux/posix_acl_xattr.h.
"""

import os
import struct
from pathlib import Path

from vmbackup.hypervisor.checks.host import qemu_user
from vmbackup.hypervisor.connection import Connection

_ACL = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")  # whose it is, what may be done, id
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_READ_WRITE = 6


def image_owner(connection: Connection) -> tuple[int, int]:
    """QEMU's user and group; those of this process where libvirt runs QEMU as whom it is itself."""
    xml = connection.call("ask for capabilities", lambda raw: raw.getCapabilities())
    return qemu_user(xml) or (os.geteuid(), os.getegid())


def let_in(path: Path, owner: tuple[int, int]) -> None:
    """Lets that user read and write a file or socket of ours, and nobody else. Raises OSError."""
    path.chmod(0o600)
    if owner[0] == os.geteuid():
        return
    try:
        os.chown(path, *owner)
    except PermissionError:  # no CAP_CHOWN
        os.setxattr(path, _ACL, _acl(owner[0]))


def _acl(uid: int) -> bytes:
    entries = (
        (_OWNER, _READ_WRITE, _NOBODY),
        (_USER, _READ_WRITE, uid),
        (_GROUP, 0, _NOBODY),
        (_MASK, _READ_WRITE, _NOBODY),
        (_OTHERS, 0, _NOBODY),
    )
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)
