"""Pictures of screens: what QEMU gives (a portable pixmap, or PNG) as PNG.

Sources: the netpbm manual, ppm(5), raw format; the PNG specification, sections 5 and 11.
"""

import re
import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
# P6, width, height, the largest value of a colour; comments, then one blank before the pixels.
_PIXMAP = re.compile(rb"P6\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s+(?:#[^\n]*\n\s*)*(\d{1,5})\s+(?:#[^\n]*\n\s*)*(255)\s")
_MOST_SIDE = 8192  # pixels
_TRUECOLOUR = struct.pack(">BBBBB", 8, 2, 0, 0, 0)


def to_png(data: bytes) -> bytes:
    """A picture as PNG, one that is already as it is. Raises ValueError for anything else: a guest decides on it."""
    if data.startswith(_PNG):
        return data
    found = _PIXMAP.match(data)
    if found is None:
        raise ValueError("the picture is of a kind that nobody here knows")
    width, height = int(found[1]), int(found[2])
    if not (0 < width <= _MOST_SIDE and 0 < height <= _MOST_SIDE):
        raise ValueError(f"the picture has {width} x {height} pixels")
    line, at = width * 3, found.end()
    if len(data) - at < line * height:
        raise ValueError("the picture is cut")
    # Each line begins with the number of its filter: none. Screens are mostly of one colour.
    rows = b"".join(b"\0" + data[start : start + line] for start in range(at, at + line * height, line))
    head = struct.pack(">II", width, height) + _TRUECOLOUR
    return _PNG + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows, 6)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
