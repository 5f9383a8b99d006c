"""A system of one sector: it prints a line on its screen and on its serial port, and halts. It boots in a second."""

from __future__ import annotations

SECTOR = 512
_ADDRESS = 0x7C00  # where the BIOS loads it
# In 16-bit code: for each byte up to a zero: int 10h AH=0Eh (teletype), then, once bit 5 of COM1's line status is set,
# out to COM1. At the end halt for ever.
_CODE = bytes.fromhex("31c08ed8be287cac84c07419b40ebb070088c1cd10bafd03eca82074fbbaf80388c8eeebe2f4ebfd")


def boot_sector(line: str) -> bytes:
    """The sector that prints this line, of at most 400 bytes."""
    code = _CODE + line.encode("ascii") + b"\r\n\0"
    assert _CODE[5:7] == (_ADDRESS + len(_CODE)).to_bytes(2, "little")
    return code.ljust(SECTOR - 2, b"\0") + b"\x55\xaa"
