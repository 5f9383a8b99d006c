"""The JSON of a restore point, as it must be (docs/repository-format.md, section 9)."""

from vmbackup.repository.layout import SESSION_BYTES
from vmbackup.repository.shapes import Hex, Maybe, Up

CHUNK_SIZES = (4 << 10, 16 << 20)  # bytes, least and most
_U32 = Up((1 << 32) - 1)
_REF = {"level": _U32, "chunks": int, "session": _U32, "pack": _U32, "slot": _U32, "id": Hex(32)}
_DISK = {
    **dict.fromkeys(("name", "target", "format", "mode"), str),
    **dict.fromkeys(("virtual_size", "chunk_size", "read_bytes", "changed_bytes", "stored_bytes"), int),
    "reason": Maybe(str),
    "root": _REF,
    "attributes": {str: str},
    "read_whole?": Maybe(str),
}

MOST_FILE = 1 << 30  # bytes of a file that a guest is started from: an initrd has 100 MiB
FILES = {
    "session": Hex(SESSION_BYTES),
    "saved": [
        {
            **dict.fromkeys(("path", "kind"), str),
            "size": Up(MOST_FILE),
            "mode": Up(0o7777),
            "state": Maybe(str),
            "chunk_size": int,
            "root": _REF,
            "stored_bytes": int,
        }
    ],
}

_GROUP = {
    "id": Hex(8),
    "job": str,
    "instant": bool,
    "members": [{"name": str, "uuid": str, "session": Hex(SESSION_BYTES)}],
    "failed": [{"name": str, "uuid": Maybe(str), "error": str}],
}

# A restore point, a partial or a table of moves.
ANY = {
    "epoch": _U32,
    "envelope": Hex(),
    "index": {"number": _U32, "digest": Hex(32)},
    "features?": [str],
    "host?": str,
}
POINT = {
    **ANY,
    "domain": {"name": str, "uuid": str},
    "time": str,
    "seq": int,
    "parent": Maybe({"session": Hex(SESSION_BYTES), "digest": Hex(32)}),
    "anchor": Maybe({"kind": str, "checkpoint": str, "xml": str, "disks": {str: int}}),
    "next_session_number": _U32,
    "disks": [_DISK],
    "files?": Maybe(FILES),
    "warnings?": [str],
    "consistency?": str,
    "quiesce_note?": Maybe(str),
    "freeze_seconds?": Maybe(float),
    "duration_seconds?": float,
    "seal_seconds?": float,
    "group?": Maybe(_GROUP),
    "copied_from?": Maybe({"realm": Hex(), "repository": Hex(), "session": Hex(), "lacking?": [Hex()]}),
}
PRIVATE = {"documents": [{"name": str, "data": Hex(), "length?": Up(64 << 20)}]}
