"""The files that lie below a qcow2 image, told by its own header: also of a guest that is off, whose XML names none."""

import json
import os
import struct
from collections.abc import Iterator
from typing import Any

_HEAD = struct.Struct(">4sIQI")  # magic, version, where the backing file's name lies, its bytes
_MAGIC = b"QFI\xfb"
_LONGEST = 1023  # bytes of a name (QEMU, docs/interop/qcow2.txt)
_DEEPEST = 200  # levels: libvirt takes a longer chain for a loop


def backing_files(path: str) -> Iterator[str]:
    """The local files below an image, the nearest first; ends where one cannot be read. Never raises."""
    for _ in range(_DEEPEST):
        name = _local(_backing_name(path))
        if name is None:
            return
        path = os.path.join(os.path.dirname(path), name)
        yield path


def _backing_name(path: str) -> str:
    """As the image's header has it; "" where it has none."""
    try:
        with open(path, "rb") as file:
            magic, _, offset, length = _HEAD.unpack(file.read(_HEAD.size))
            if magic != _MAGIC or not offset or length > _LONGEST:
                return ""
            file.seek(offset)
            return os.fsdecode(file.read(length))
    except (OSError, struct.error):
        return ""


def _local(name: str) -> str | None:
    """The file that a name of QEMU's means; None where it is none of this host."""
    if name.startswith("json:"):
        try:
            return _filename(json.loads(name.removeprefix("json:")))
        except ValueError:
            return None
    name = name.removeprefix("file:")
    protocol, colon, _ = name.partition(":")
    return None if not name or (colon and "/" not in protocol) else name


def _filename(node: Any) -> str | None:
    """The file name of a block node: its own, or that of the node below it."""
    if not isinstance(node, dict):
        return None
    found = node.get("filename", node.get("file.filename"))
    return found if isinstance(found, str) else _filename(node.get("file"))
