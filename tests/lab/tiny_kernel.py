"""A kernel of 66 bytes for direct kernel boot: it prints its initrd, a text, on its serial port, and halts."""

from __future__ import annotations

import struct

_ADDRESS = 0x100000  # where a multiboot loader puts it (Multiboot Specification 0.6.96, section 3.1)
_MAGIC, _FLAGS = 0x1BADB002, 0x10000  # the addresses below are valid
_HEADER = struct.Struct("<8I")
# In 32-bit code: esi = the start of the first module (ebx + 24 leads to it); then each byte up to a zero goes out to
# COM1 once bit 5 of its line status is set. At the end halt for ever.
_CODE = bytes.fromhex("fc8b43188b30ac84c0741488c166bafd03eca82074fb88c866baf803eeebe7f4ebfd")


def kernel() -> bytes:
    """The kernel; another initrd makes it say something else."""
    checksum, entry = -(_MAGIC + _FLAGS) % (1 << 32), _ADDRESS + _HEADER.size
    return _HEADER.pack(_MAGIC, _FLAGS, checksum, _ADDRESS, _ADDRESS, 0, 0, entry) + _CODE


def initrd(line: str) -> bytes:
    """The initrd with which it prints this line."""
    return line.encode("ascii") + b"\r\n\0"
